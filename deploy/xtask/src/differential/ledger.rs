//! docs/spec/kea-differences.md: its rows, and what two servers' answers differ in.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// An answer, or that there was none, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub fields: BTreeMap<String, String>,
}

/// One field of one answer in which the two differ. A field that is not there is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub script: String,
    pub step: String,
    pub field: String,
    pub ours: String,
    pub theirs: String,
}

impl Difference {
    /// As a row of the list, but for the reason.
    pub fn as_row(&self) -> String {
        let cell = |text: &str| match text {
            "" => NOTHING.to_owned(),
            text => text.replace('|', "\\|"),
        };
        format!(
            "| {} | {} | {} | {} | {} | why? |",
            self.script,
            self.step,
            self.field,
            cell(&self.ours),
            cell(&self.theirs)
        )
    }
}

/// What the list says where a field is missing, or has no text.
const NOTHING: &str = "(nothing)";
/// At its end a name goes on as it likes.
const EVERY: char = '*';
/// Any value.
const ANY: &str = "(any)";
const HEAD: &str = "| Script |";

struct Row {
    cells: [String; 6],
    used: bool,
}

pub struct Ledger {
    rows: Vec<Row>,
}

impl Ledger {
    /// The rows of all tables in the text.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rows = Vec::new();
        for line in text.lines() {
            if !line.starts_with("| ") || line.starts_with(HEAD) {
                continue;
            }
            let line = line.replace("\\|", "\u{0}");
            let cells: Vec<String> = line
                .trim()
                .trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('\u{0}', "|"))
                .collect();
            let cells: [String; 6] = cells
                .try_into()
                .map_err(|cells: Vec<String>| anyhow::anyhow!("{} columns: {line}", cells.len()))?;
            ensure!(
                !cells[5].is_empty() && cells[5] != "why?",
                "no reason: {line}"
            );
            rows.push(Row { cells, used: false });
        }
        Ok(Self { rows })
    }

    /// Whether a row lists this difference; all rows that do are marked as used.
    pub fn has(&mut self, one: &Difference) -> bool {
        let mut found = false;
        for row in &mut self.rows {
            let [script, step, field, ours, theirs, _] = &row.cells;
            let is_value = |cell: &str, value: &str| {
                cell == ANY || cell == value || (cell == NOTHING && value.is_empty())
            };
            let is_it = is_name(script, &one.script)
                && is_name(step, &one.step)
                && is_name(field, &one.field)
                && is_value(ours, &one.ours)
                && is_value(theirs, &one.theirs);
            row.used |= is_it;
            found |= is_it;
        }
        found
    }

    /// Rows that nothing was found for.
    pub fn unused(&self) -> Vec<String> {
        let unused = self.rows.iter().filter(|row| !row.used);
        unused
            .map(|row| format!("| {} |", row.cells.join(" | ")))
            .collect()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

fn is_name(cell: &str, name: &str) -> bool {
    match cell.strip_suffix(EVERY) {
        Some(beginning) => name.starts_with(beginning),
        None => cell == name,
    }
}

/// Step by step, field by field. Where only one of the two answers, that is the one difference.
pub fn compare(script: &str, ours: &[Step], theirs: &[Step]) -> Vec<Difference> {
    let mut found = Vec::new();
    for index in 0..ours.len().max(theirs.len()) {
        let (our, their) = (ours.get(index), theirs.get(index));
        let step = our
            .or(their)
            .map_or_else(String::new, |step| step.name.clone());
        let empty = BTreeMap::new();
        let our = our.map_or(&empty, |step| &step.fields);
        let their = their.map_or(&empty, |step| &step.fields);
        let (our_reply, their_reply) = (our.get("reply"), their.get("reply"));
        let names: BTreeSet<&String> = if our_reply == their_reply {
            our.keys().chain(their.keys()).collect()
        } else {
            our.keys()
                .chain(their.keys())
                .filter(|name| *name == "reply")
                .collect()
        };
        for name in names {
            let (ours, theirs) = (our.get(name), their.get(name));
            if ours != theirs {
                found.push(Difference {
                    script: script.to_owned(),
                    step: step.clone(),
                    field: name.clone(),
                    ours: ours.cloned().unwrap_or_default(),
                    theirs: theirs.cloned().unwrap_or_default(),
                });
            }
        }
    }
    found
}

/// What `exchange` prints.
pub fn answers(text: &str) -> Result<BTreeMap<String, Vec<Step>>> {
    let all: BTreeMap<String, Value> = serde_json::from_str(text).context("reading the answers")?;
    all.into_iter()
        .map(|(script, steps)| {
            let steps = steps.as_array().context("a script has steps")?;
            let steps = steps.iter().map(step).collect::<Option<Vec<Step>>>();
            Ok((script, steps.context("a step has a name and fields")?))
        })
        .collect()
}

fn step(value: &Value) -> Option<Step> {
    let fields = value.get("fields")?.as_object()?;
    Some(Step {
        name: value.get("step")?.as_str()?.to_owned(),
        fields: fields
            .iter()
            .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, fields: &[(&str, &str)]) -> Step {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        Step {
            name: name.to_owned(),
            fields: fields.iter().map(own).collect(),
        }
    }

    #[test]
    fn a_silence_is_one_difference_and_fields_are_many() {
        let ack = step(
            "1 REQUEST",
            &[("reply", "ACK"), ("order", "53,1"), ("secs", "0")],
        );
        let silence = step("1 REQUEST", &[("reply", "silence")]);
        let other = step(
            "1 REQUEST",
            &[
                ("reply", "ACK"),
                ("order", "1,53"),
                ("secs", "0"),
                ("file", "x"),
            ],
        );
        let found = compare("s", std::slice::from_ref(&ack), &[silence]);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].ours.as_str(), found[0].theirs.as_str()),
            ("ACK", "silence")
        );
        let found = compare("s", std::slice::from_ref(&ack), &[other]);
        let fields: Vec<&str> = found.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, ["file", "order"]);
        let same = std::slice::from_ref(&ack);
        assert_eq!(compare("s", same, same), []);
        assert_eq!(compare("s", &[ack.clone(), ack.clone()], &[ack]).len(), 1);
    }

    #[test]
    fn rows_match_by_name_or_by_star_and_stale_ones_are_told() {
        let text = "# List\n| Script | Step | Field | Muster | Kea | Why |\n|---|---|---|---|---|---|\n\
                    | * | * | order | (any) | (any) | ours is the boot's |\n\
                    | renewing | 2 REQUEST | file | (nothing) | x\\|y | Kea says so |\n\
                    | s | 1 | option 23* | (nothing) | x | too much |\n\
                    | never | * | secs | 1 | 0 | gone |\n";
        let mut ledger = Ledger::parse(text).expect("three rows");
        let difference =
            |script: &str, step: &str, field: &str, ours: &str, theirs: &str| Difference {
                script: script.into(),
                step: step.into(),
                field: field.into(),
                ours: ours.into(),
                theirs: theirs.into(),
            };
        assert!(ledger.has(&difference("any", "1", "order", "1", "2")));
        assert!(ledger.has(&difference("renewing", "2 REQUEST", "file", "", "x|y")));
        assert!(ledger.has(&difference("s", "1", "option 231", "", "x")));
        assert!(!ledger.has(&difference("s", "1", "option 241", "", "x")));
        assert!(!ledger.has(&difference("renewing", "2 REQUEST", "file", "", "z")));
        assert!(!ledger.has(&difference("renewing", "1 DISCOVER", "file", "", "x|y")));
        assert_eq!(ledger.unused(), ["| never | * | secs | 1 | 0 | gone |"]);
        assert!(
            Ledger::parse("| a | b | c | d | e |  |").is_err(),
            "a row without a reason"
        );
        assert!(
            Ledger::parse("| a | b | c |").is_err(),
            "a row without columns"
        );
    }
}
