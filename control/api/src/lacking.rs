//! What MAAS has a parameter for and this region has nothing: refused by name, never dropped.
//!
//! Each operation says what it lacks, next to what it reads. A parameter that asks for nothing passes: it is empty, or
//! says what holds here anyway. What MAAS does not know either is ignored, as MAAS does.

use std::collections::BTreeMap;

use crate::body::Form;
use crate::error::ApiError;

/// A parameter of MAAS's that an operation cannot honour.
#[derive(Clone, Copy, Debug)]
pub struct Lacking {
    /// A name that ends with `*` stands for every name that begins so.
    pub name: &'static str,
    /// What may be said all the same, besides nothing.
    pub neutral: Neutral,
}

#[derive(Clone, Copy, Debug)]
pub enum Neutral {
    Nothing,
    /// These words: what holds here for everything.
    Words(&'static [&'static str]),
    /// "No", in any of MAAS's spellings.
    No,
}

/// Refused whenever it is filled.
pub const fn lacks(name: &'static str) -> Lacking {
    Lacking {
        name,
        neutral: Neutral::Nothing,
    }
}

/// Fixed to one of these words.
pub const fn fixed(name: &'static str, words: &'static [&'static str]) -> Lacking {
    Lacking {
        name,
        neutral: Neutral::Words(words),
    }
}

/// A switch that is off.
pub const fn off(name: &'static str) -> Lacking {
    Lacking {
        name,
        neutral: Neutral::No,
    }
}

/// There is one zone.
pub const ZONE: Lacking = fixed("zone", &["default", "1"]);
/// There is one pool.
pub const POOL: Lacking = fixed("pool", &["default", "0"]);
/// There are no spaces.
pub const SPACE: Lacking = fixed("space", &["undefined"]);

impl Lacking {
    fn is_named(&self, field: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => field.starts_with(prefix),
            None => field == self.name,
        }
    }

    /// What is wrong with this value; `None` if it asks for nothing.
    fn refusal(&self, value: &str) -> Option<String> {
        let value = value.trim();
        if value.is_empty() {
            return None;
        }
        match self.neutral {
            Neutral::Nothing => Some("This region does not have this: leave it out.".into()),
            Neutral::Words(words) if words.contains(&value) => None,
            Neutral::Words(words) => Some(format!(
                "Select a valid choice. That choice is not one of the available choices: {}.",
                words[0]
            )),
            Neutral::No => match Form::boolean_of(value) {
                Some(false) => None,
                _ => Some("This region does not have this: leave it out, or say false.".into()),
            },
        }
    }
}

/// Refuses what is asked for and lacking, all of it at once.
pub fn check(lacking: &[Lacking], forms: [&Form; 2]) -> Result<(), ApiError> {
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let named = |field: &str| lacking.iter().find(|one| one.is_named(field));
    for form in forms {
        for (field, value) in form.fields() {
            if let Some(refusal) = named(field).and_then(|one| one.refusal(value)) {
                wrong.insert(field.to_owned(), vec![refusal]);
            }
        }
        for file in form.files.iter().filter(|file| !file.content.is_empty()) {
            if let Some(refusal) = named(&file.name).and_then(|one| one.refusal("a file")) {
                wrong.insert(file.name.clone(), vec![refusal]);
            }
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(ApiError::Validation(wrong)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_nothing_passes_and_everything_else_is_named() {
        const LACKING: &[Lacking] = &[
            POOL,
            lacks("swap_size"),
            off("deployed"),
            lacks("power_parameters_*"),
        ];
        let cases: [(&str, &[&str]); 6] = [
            ("pool=default&swap_size=&deployed=False&pool=0", &[]),
            ("unheard_of=1&deployed=off&deployed=0", &[]),
            ("pool=nosuch", &["pool"]),
            ("swap_size=1&deployed=true", &["deployed", "swap_size"]),
            (
                "power_parameters_power_address=a",
                &["power_parameters_power_address"],
            ),
            ("deployed=maybe", &["deployed"]),
        ];
        for (text, want) in cases {
            let form = Form::urlencoded(text.as_bytes(), &crate::Limits::default()).unwrap();
            let names: Vec<String> = match check(LACKING, [&form, &Form::default()]) {
                Ok(()) => Vec::new(),
                Err(ApiError::Validation(fields)) => fields.into_keys().collect(),
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(names, want, "{text}");
        }
    }

    #[test]
    fn a_file_is_a_value_too() {
        let file = crate::File {
            name: "content".into(),
            filename: "image".into(),
            content: "octets".into(),
        };
        let mut form = Form::default();
        form.files.push(file);
        assert!(check(&[lacks("content")], [&Form::default(), &form]).is_err());
        assert!(check(&[lacks("other")], [&Form::default(), &form]).is_ok());
    }
}
