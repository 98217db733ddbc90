//! The small part of Python's regular expressions that the webhook patterns of MAAS use, matched in time
//! linear in the text (a set of positions, no backtracking): the pattern is an operator's and the text a
//! remote server's.
//!
//! Known: literals, `.`, classes `[a-z]` `[^..]`, escapes `\s \S \d \D \w \W` and escaped punctuation,
//! `* + ?`, `^`, `$`, and `|` between whole alternatives. Groups and counted repeats are refused, not
//! misread.

const PATTERN_BYTES_MAX: usize = 512;

#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    alternatives: Vec<Vec<Item>>,
}

#[derive(Debug, Clone)]
struct Item {
    atom: Atom,
    /// May be passed without matching (`*`, `?`).
    optional: bool,
    /// May match again (`*`, `+`).
    repeats: bool,
}

#[derive(Debug, Clone)]
enum Atom {
    Any,
    Literal(char),
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
    Start,
    End,
}

impl Pattern {
    /// Errors: a fixed text that says what is not understood.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return Err("empty or longer than 512 octets");
        }
        let mut alternatives = vec![Vec::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let atom = match c {
                '|' => {
                    alternatives.push(Vec::new());
                    continue;
                }
                '.' => Atom::Any,
                '^' => Atom::Start,
                '$' => Atom::End,
                '\\' => escape(chars.next().ok_or("ends in a backslash")?)?,
                '[' => class(&mut chars)?,
                '(' | ')' => return Err("groups are not supported"),
                '{' if chars.peek().is_some_and(char::is_ascii_digit) => {
                    return Err("counted repeats are not supported");
                }
                '*' | '+' | '?' => return Err("nothing to repeat"),
                other => Atom::Literal(other),
            };
            let mut item = Item {
                atom,
                optional: false,
                repeats: false,
            };
            if let Some(&mark) = chars.peek()
                && let '*' | '+' | '?' = mark
            {
                if matches!(item.atom, Atom::Start | Atom::End) {
                    return Err("nothing to repeat");
                }
                chars.next();
                item.optional = mark != '+';
                item.repeats = mark != '?';
                chars.next_if_eq(&'?'); // Lazy or greedy makes no difference to whether it matches.
            }
            alternatives.last_mut().expect("starts with one").push(item);
        }
        Ok(Self { alternatives })
    }

    /// Whether the pattern occurs anywhere in `text` (Python's `re.search`).
    pub fn is_in(&self, text: &str) -> bool {
        self.alternatives.iter().any(|items| search(items, text))
    }
}

fn escape(c: char) -> Result<Atom, &'static str> {
    let class = |ranges: &[(char, char)], negated| Atom::Class {
        ranges: ranges.to_vec(),
        negated,
    };
    let space = [(' ', ' '), ('\t', '\r')];
    let word = [('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')];
    Ok(match c {
        's' => class(&space, false),
        'S' => class(&space, true),
        'd' => class(&[('0', '9')], false),
        'D' => class(&[('0', '9')], true),
        'w' => class(&word, false),
        'W' => class(&word, true),
        'n' => Atom::Literal('\n'),
        't' => Atom::Literal('\t'),
        'r' => Atom::Literal('\r'),
        c if c.is_ascii_alphanumeric() => return Err("unknown escape"),
        c => Atom::Literal(c),
    })
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Atom, &'static str> {
    const OPEN: &str = "class without an end";
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let first = match chars.next().ok_or(OPEN)? {
            ']' if !ranges.is_empty() => return Ok(Atom::Class { ranges, negated }),
            '\\' => match escape(chars.next().ok_or(OPEN)?)? {
                Atom::Literal(c) => c,
                Atom::Class {
                    ranges: inner,
                    negated: false,
                } => {
                    ranges.extend(inner);
                    continue;
                }
                _ => return Err("negated escape in a class"),
            },
            c => c,
        };
        let mut ahead = chars.clone();
        if ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']') {
            chars.next();
            let last = chars.next().ok_or(OPEN)?;
            if last == '\\' || last < first {
                return Err("bad range in a class");
            }
            ranges.push((first, last));
        } else {
            ranges.push((first, first));
        }
    }
}

fn search(items: &[Item], text: &str) -> bool {
    // live[i]: everything before item i has matched a stretch that ends here.
    let mut live = vec![false; items.len() + 1];
    let mut chars = text.chars();
    let mut at_start = true;
    loop {
        let at_end = matches!(chars.as_str(), "" | "\n");
        live[0] = true;
        for (i, item) in items.iter().enumerate() {
            let passes = match item.atom {
                Atom::Start => at_start,
                Atom::End => at_end,
                _ => item.optional,
            };
            live[i + 1] |= live[i] && passes;
        }
        if live[items.len()] {
            return true;
        }
        let Some(c) = chars.next() else { return false };
        at_start = false;
        let mut next = vec![false; items.len() + 1];
        for (i, item) in items.iter().enumerate() {
            if !(live[i] || item.repeats && live[i + 1]) {
                continue;
            }
            let matches = match &item.atom {
                Atom::Any => c != '\n',
                Atom::Literal(l) => *l == c,
                Atom::Class { ranges, negated } => {
                    ranges.iter().any(|(a, z)| (*a..=*z).contains(&c)) != *negated
                }
                Atom::Start | Atom::End => false,
            };
            next[i + 1] |= matches;
        }
        live = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_like_python() {
        let cases = [
            (r"status.*\:.*running", r#"{"status": "running"}"#, true),
            (r"status.*\:.*running", r#"{"status": "stopped"}"#, false),
            (r"status.*\:.*running", "status\n: running", false),
            ("on", "power is on", true),
            ("^on$", "power is on", false),
            ("^on$", "on\n", true),
            ("^on$", "on", true),
            (r"state=\d+", "x state=12", true),
            (r"state=\d+", "x state=", false),
            ("a|running|b", "is running", true),
            ("colou?r", "color", true),
            ("colou?r", "colouur", false),
            ("[Oo][Nn]", "ON", true),
            ("[^a-z]x", "ax", false),
            ("[^a-z]x", "9x", true),
            ("ab+c", "ac", false),
            ("ab+c", "abbbc", true),
            ("a.*?b", "a123b", true),
            (r"\{\s*", "{  ", true),
            ("a*b+c", "c", false),
            ("a*b+c", "aac", false),
        ];
        for (pattern, text, want) in cases {
            assert_eq!(
                Pattern::parse(pattern).unwrap().is_in(text),
                want,
                "{pattern} in {text:?}"
            );
        }
        for bad in ["", "(a)", "a{2}", "*a", "[a", "a\\", r"\b", "^*"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
