//! What of a machine's word was not taken, or not as it was said. For people, and bounded however much a machine says.

use std::collections::BTreeMap;

/// Lines, and names in one line.
const LINES_MAX: usize = 24;
const NAMES_MAX: usize = 8;
const NAME_CHARS_MAX: usize = 40;

#[derive(Debug, Default)]
pub struct Notes {
    lines: Vec<String>,
    more_lines: usize,
    /// Why, with the first names and how many there are.
    left_out: BTreeMap<&'static str, (Vec<String>, usize)>,
}

impl Notes {
    pub fn say(&mut self, line: impl Into<String>) {
        if self.lines.len() < LINES_MAX {
            self.lines.push(line.into());
        } else {
            self.more_lines += 1;
        }
    }

    /// A thing called `name` is not in the inventory, because of `why`.
    pub fn leave_out(&mut self, why: &'static str, name: &str) {
        let (names, count) = self.left_out.entry(why).or_default();
        *count += 1;
        if names.len() < NAMES_MAX && !name.is_empty() {
            names.push(name.chars().take(NAME_CHARS_MAX).collect());
        }
    }

    /// One text for all of it; `None` when there is nothing to say.
    pub fn text(&self) -> Option<String> {
        let mut lines = self.lines.clone();
        if self.more_lines > 0 {
            lines.push(format!("and {} more remarks", self.more_lines));
        }
        for (why, (names, count)) in &self.left_out {
            let more = count - names.len();
            lines.push(match (names.is_empty(), more) {
                (true, _) => format!("left out, {why}: {count}"),
                (false, 0) => format!("left out, {why}: {}", names.join(", ")),
                (false, more) => {
                    format!("left out, {why}: {} and {more} more", names.join(", "))
                }
            });
        }
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_however_much_there_is_to_say() {
        let mut notes = Notes::default();
        assert_eq!(notes.text(), None);
        notes.leave_out("no Ethernet address", "ib0");
        let said = "left out, no Ethernet address: ib0";
        assert_eq!(notes.text().as_deref(), Some(said));
        for n in 0..5000 {
            notes.leave_out("too many", &format!("{}{n}", "x".repeat(500)));
            notes.say(format!("odd {n}"));
        }
        let text = notes.text().unwrap();
        assert!(text.len() < 2000, "{}", text.len());
        assert!(text.contains("and 4992 more") && text.contains("and 4976 more remarks"));
    }
}
