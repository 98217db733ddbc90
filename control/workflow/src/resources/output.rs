//! Finds the inventory in what a script printed: JSON with whatever a shell, a firmware or a driver put before, after
//! or into it. One odd value costs itself, not the inventory.

use std::borrow::Cow;

use serde_json::{Number, Value};

use super::ResourcesError;
use super::notes::Notes;

/// Octets that are looked at, for each one of the text.
const SCANS_MAX: usize = 6;
/// Objects around the inventory that are looked into.
const FRAMES_MAX: usize = 3;
/// Nested deeper than this a value is taken for nothing. The contract has nine levels, the parser's own limit is 128.
const DEPTH_MAX: usize = 64;
/// The parts of an inventory. A text with fewer than two of them is none.
const PARTS: [&str; 5] = ["cpu", "memory", "network", "storage", "system"];

/// The inventory's root in `output`.
pub(super) fn find(output: &[u8], notes: &mut Notes) -> Result<Value, ResourcesError> {
    let text = decode(output, notes);
    let mut search = Search {
        text: &text,
        octets_left: SCANS_MAX * text.len() + SCANS_MAX,
        is_json: false,
        is_cut: false,
    };
    let anywhere = text.match_indices('{').map(|(at, _)| at);
    let found = search
        .among(line_beginnings(&text))
        .or_else(|| search.among(anywhere));
    if let Some((root, at, tidied)) = found {
        say_what_was_skipped(&text, at, &tidied, notes);
        return Ok(root);
    }
    if search.is_cut {
        return Err(ResourcesError::Cut {
            octets: output.len(),
        });
    }
    match serde_json::from_str::<Value>(&text) {
        Err(error) if !search.is_json => Err(ResourcesError::NotJson {
            line: error.line(),
            column: error.column(),
        }),
        _ => Err(ResourcesError::NoResources),
    }
}

/// A look for the inventory, within an amount of work: the text is a machine's own.
struct Search<'a> {
    text: &'a str,
    octets_left: usize,
    /// Something of it is JSON; something of it begins like an inventory and does not end.
    is_json: bool,
    is_cut: bool,
}

impl Search<'_> {
    /// The first inventory that begins at one of these places. Other JSON there, a logger's or a driver's, costs one look
    /// however much of it there is.
    fn among(&mut self, places: impl Iterator<Item = usize>) -> Option<(Value, usize, Tidied)> {
        let mut passed = 0;
        for at in places {
            if at < passed {
                continue;
            }
            match self.try_at(at)? {
                Tried::Inventory(root, tidied) => return Some((root, at, tidied)),
                Tried::Other(end) => passed = end,
                Tried::Nothing => {}
            }
        }
        None
    }

    /// `None`: enough has been tried.
    fn try_at(&mut self, at: usize) -> Option<Tried> {
        let text = &self.text[at..];
        let tidied = tidy(text);
        let octets = tidied.as_ref().map_or(text.len(), |tidied| tidied.end);
        self.octets_left = self.octets_left.checked_sub(octets)?;
        let Some(tidied) = tidied else {
            self.is_cut = self.is_cut || names_a_part(text);
            return Some(Tried::Nothing);
        };
        let Ok(root) = serde_json::from_str::<Value>(&tidied.json) else {
            return Some(Tried::Nothing);
        };
        self.is_json = true;
        Some(match unwrapped(root, FRAMES_MAX) {
            Some(root) => Tried::Inventory(root, tidied),
            None => Tried::Other(at + tidied.end),
        })
    }
}

/// What begins at a place of the text.
enum Tried {
    /// The inventory, and how it was read.
    Inventory(Value, Tidied),
    /// Other JSON, that ends here.
    Other(usize),
    Nothing,
}

fn say_what_was_skipped(text: &str, at: usize, tidied: &Tidied, notes: &mut Notes) {
    if !text[..at].trim().is_empty() {
        let lines = text[..at].trim().lines().count();
        notes.say(format!("{lines} lines before the JSON skipped"));
    }
    if !text[at + tidied.end..].trim().is_empty() {
        notes.say("text after the JSON skipped");
    }
    if tidied.mended > 0 {
        let count = tidied.mended;
        notes.say(format!("{count} values that JSON does not have skipped"));
    }
}

/// Whether an inventory may have begun here. One that does not end would be taken for a machine without the rest.
fn names_a_part(text: &str) -> bool {
    PARTS
        .iter()
        .any(|part| text.contains(&format!("\"{part}\"")))
}

/// Where the parts are. Old scripts print them without the frame around them.
pub(super) fn resources(root: &Value) -> &Value {
    root.get("resources").unwrap_or(root)
}

/// The inventory in what a tool or a service has put around it: LXD answers with it as `metadata`.
fn unwrapped(root: Value, frames: usize) -> Option<Value> {
    if is_inventory(&root) {
        return Some(root);
    }
    match root {
        Value::Object(members) if frames > 0 => members
            .into_iter()
            .find_map(|(_, member)| unwrapped(member, frames - 1)),
        _ => None,
    }
}

fn is_inventory(root: &Value) -> bool {
    let resources = resources(root);
    let parts = PARTS.iter().filter(|part| resources[**part].is_object());
    parts.count() >= 2
}

/// The text of `output`, whatever its octets are; without its byte order mark.
fn decode<'a>(output: &'a [u8], notes: &mut Notes) -> Cow<'a, str> {
    let utf16 = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = rest
            .chunks_exact(2)
            .map(|pair| unit([pair[0], pair[1]]))
            .collect::<Vec<_>>();
        Cow::Owned(String::from_utf16_lossy(&units))
    };
    match output {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => {
            let octets = output.strip_prefix(b"\xef\xbb\xbf").unwrap_or(output);
            let text = String::from_utf8_lossy(octets);
            if let Cow::Owned(_) = text {
                notes.say("octets that are not UTF-8 replaced");
            }
            text
        }
    }
}

fn line_beginnings(text: &str) -> impl Iterator<Item = usize> {
    let is_blank = |c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}';
    let mut line_begins = 0;
    text.split_inclusive('\n').filter_map(move |line| {
        let begins = line_begins;
        line_begins += line.len();
        let rest = line.trim_start_matches(is_blank);
        rest.starts_with('{')
            .then_some(begins + line.len() - rest.len())
    })
}

struct Tidied {
    json: String,
    /// Octets of the text that it is made of.
    end: usize,
    mended: usize,
}

/// The object that `text` begins with, as JSON has it: words that are no values (`NaN`, `Infinity`, `None`, `N/A`),
/// numbers too great to be any, bare control characters, lone surrogates and unknown escapes are replaced, commas too
/// many or too few are set right, values nested too deeply are dropped. `None`: it does not end.
fn tidy(text: &str) -> Option<Tidied> {
    let octets = text.as_bytes();
    let mut out = Tidy::default();
    let (mut at, mut depth) = (0, 0usize);
    while at < octets.len() {
        let begin = at;
        let shown = depth <= DEPTH_MAX;
        match octets[at] {
            b'"' => {
                let mut string = String::new();
                let (end, changes) = tidy_string(text, at, &mut string)?;
                at = end;
                if shown {
                    out.value(&string);
                    out.mended += changes;
                }
            }
            open @ (b'{' | b'[') => {
                at += 1;
                depth += 1;
                if depth <= DEPTH_MAX {
                    out.open(char::from(open));
                } else if shown {
                    out.value("null");
                    out.mended += 1;
                }
            }
            close @ (b'}' | b']') => {
                at += 1;
                if shown {
                    out.close(char::from(close));
                }
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(Tidied {
                        json: out.json,
                        end: at,
                        mended: out.mended,
                    });
                }
            }
            b',' => {
                at += 1;
                if shown {
                    out.comma();
                }
            }
            b':' => {
                at += 1;
                if shown {
                    out.colon();
                }
            }
            // Blanks and control characters.
            c if c <= b' ' || c == 0x7f => at += 1,
            _ => {
                let rest = &text[begin..];
                let end = rest.find(ends_word).unwrap_or(rest.len());
                // An odd blank, or a byte order mark in the middle.
                at += end.max(rest.chars().next()?.len_utf8());
                if shown && end > 0 {
                    out.word(&rest[..end]);
                }
            }
        }
    }
    None
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || c.is_control() || c == '\u{feff}' || "\",:{}[]".contains(c)
}

/// JSON as it is written down.
#[derive(Default)]
struct Tidy {
    json: String,
    mended: usize,
    last: Last,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Last {
    #[default]
    Open,
    Comma,
    Colon,
    Value,
    /// A value without quotes, and where it begins: what follows may belong to it.
    Word(usize),
}

impl Tidy {
    /// A comma before what follows a value.
    fn separate(&mut self) {
        if matches!(self.last, Last::Value | Last::Word(_)) {
            self.json.push(',');
            self.mended += 1;
        }
    }

    fn value(&mut self, json: &str) {
        self.separate();
        self.json += json;
        self.last = Last::Value;
    }

    fn word(&mut self, word: &str) {
        // "8 GiB", "12:30": one value, which is none.
        if let Last::Word(begin) = self.last {
            return self.spoil(begin);
        }
        self.separate();
        let begin = self.json.len();
        if matches!(word, "true" | "false" | "null") || word.parse::<Number>().is_ok() {
            self.json += word;
            self.last = Last::Word(begin);
        } else {
            self.spoil(begin);
        }
    }

    fn spoil(&mut self, begin: usize) {
        if self.json.get(begin..) != Some("null") {
            self.json.truncate(begin);
            self.json += "null";
            self.mended += 1;
        }
        self.last = Last::Word(begin);
    }

    fn open(&mut self, bracket: char) {
        self.separate();
        self.json.push(bracket);
        self.last = Last::Open;
    }

    fn close(&mut self, bracket: char) {
        match self.last {
            Last::Comma => {
                self.json.pop();
                self.mended += 1;
            }
            Last::Colon => {
                self.json += "null";
                self.mended += 1;
            }
            _ => {}
        }
        self.json.push(bracket);
        self.last = Last::Value;
    }

    fn comma(&mut self) {
        match self.last {
            Last::Value | Last::Word(_) => self.json.push(','),
            Last::Colon => {
                self.json += "null,";
                self.mended += 1;
            }
            Last::Open | Last::Comma => {
                self.mended += 1;
                return;
            }
        }
        self.last = Last::Comma;
    }

    fn colon(&mut self) {
        if let Last::Word(begin) = self.last {
            return self.spoil(begin);
        }
        self.json.push(':');
        self.last = Last::Colon;
    }
}

/// Copies the string that begins at `at`; its end and how often it was mended.
fn tidy_string(text: &str, at: usize, out: &mut String) -> Option<(usize, usize)> {
    let mut chars = text[at + 1..].char_indices();
    let mut mended = 0;
    out.push('"');
    while let Some((offset, c)) = chars.next() {
        match c {
            '"' => {
                out.push('"');
                return Some((at + 1 + offset + 1, mended));
            }
            '\\' => {
                let rest = &text[at + 1 + offset..];
                let (escape, taken, good) = tidy_escape(rest);
                *out += escape;
                mended += usize::from(!good);
                // What the escape is made of is ASCII.
                for _ in 1..taken {
                    chars.next();
                }
            }
            c if c < ' ' => {
                out.push(' ');
                mended += 1;
            }
            c => out.push(c),
        }
    }
    None
}

/// The escape that `rest` begins with: what is written for it, how many characters it takes, whether it was one.
fn tidy_escape(rest: &str) -> (&str, usize, bool) {
    let unit = |at: usize| {
        let digits = rest.get(at..at + 6)?.strip_prefix("\\u")?;
        let hex = digits.bytes().all(|c| c.is_ascii_hexdigit());
        hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
    };
    match rest.as_bytes().get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => (&rest[..2], 2, true),
        Some(b'u') => match (unit(0), unit(6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (&rest[..12], 12, true),
            // Half of a pair: Python writes an octet that it could not read so.
            (Some(0xd800..=0xdfff), _) => ("\\ufffd", 6, false),
            (Some(_), _) => (&rest[..6], 6, true),
            (None, _) => ("\\\\", 1, false),
        },
        _ => ("\\\\", 1, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"resources": {"cpu": {"n": 1}, "memory": {"name": "a"}}}"#;

    fn read(output: &[u8]) -> (Value, Option<String>) {
        let mut notes = Notes::default();
        let root = find(output, &mut notes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(output)));
        (root, notes.text())
    }

    #[test]
    fn a_warning_line_a_bom_and_odd_octets_do_not_hide_the_inventory() {
        let utf16: Vec<u8> = [0xff, 0xfe]
            .into_iter()
            .chain(GOOD.encode_utf16().flat_map(u16::to_le_bytes))
            .collect();
        let cases: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
            ("as it should be", GOOD.into(), None),
            ("a BOM", format!("\u{feff}{GOOD}").into(), None),
            ("UTF-16", utf16, None),
            (
                "blanks",
                format!("\r\n\n  {GOOD}\n\0\n").into(),
                Some("text after the JSON skipped"),
            ),
            (
                "a warning",
                format!("WARNING: can't read \"x\n{GOOD}").into(),
                Some("1 lines before the JSON skipped"),
            ),
            (
                "a warning with braces",
                format!("{{odd}} {{\"a\": 1}}\n{GOOD}").into(),
                Some("1 lines before the JSON skipped"),
            ),
            (
                "a line of JSON",
                format!("{{\"level\": \"warn\"}}\n{GOOD}").into(),
                Some("1 lines before the JSON skipped"),
            ),
            (
                "an open brace",
                format!("function() {{\n{GOOD}").into(),
                Some("1 lines before the JSON skipped"),
            ),
            (
                "the same line",
                format!("warning: {GOOD}").into(),
                Some("1 lines before the JSON skipped"),
            ),
            (
                "a line after it",
                format!("{GOOD}\n[  1.0] usb 1-1").into(),
                Some("text after the JSON skipped"),
            ),
            (
                "odd octets",
                GOOD.replace("\"a\"", "\"a?\"")
                    .into_bytes()
                    .into_iter()
                    .map(|c| if c == b'?' { 0xfe } else { c })
                    .collect(),
                Some("octets that are not UTF-8 replaced"),
            ),
        ];
        for (case, output, note) in cases {
            let (root, notes) = read(&output);
            assert_eq!(root["resources"]["cpu"]["n"], 1, "{case}");
            assert_eq!(notes.as_deref(), note, "{case}");
        }
    }

    #[test]
    fn a_value_that_json_does_not_have_costs_only_itself() {
        let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
        let cases = [
            ("NaN", "null"),
            ("-Infinity", "null"),
            ("Infinity", "null"),
            ("None", "null"),
            ("1e999", "null"),
            ("007", "null"),
            ("+5", "null"),
            ("N/A", "null"),
            ("8 GiB", "null"),
            ("12:30:00", "null"),
            ("52:54:00:ab:cd:ef", "null"),
            ("'single quotes'", "null"),
            ("100%", "null"),
            ("<nil>", "null"),
            ("µ", "null"),
            ("1,", "1"),
            ("", "null"),
            (",", "null"),
            ("[1, 2,]", "[1, 2]"),
            ("[1,, 2]", "[1, 2]"),
            ("[,1]", "[1]"),
            (r#"[{"a": 1} {"a": 2}]"#, r#"[{"a": 1}, {"a": 2}]"#),
            (r#"{"a": 1 "b": 2,}"#, r#"{"a": 1, "b": 2}"#),
            (r#"{"a": , "b":}"#, r#"{"a": null, "b": null}"#),
            (r#""a\x41""#, r#""a\\x41""#),
            (r#""\udcff\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\u12""#, r#""\\u12""#),
            ("\"a\tb\u{1}\nc\0\"", "\"a b  c \""),
        ];
        for (odd, want) in cases {
            let output = GOOD.replace("\"a\"", odd);
            let (root, notes) = read(output.as_bytes());
            let want: Value = serde_json::from_str(want).unwrap();
            assert_eq!(root["resources"]["memory"]["name"], want, "{odd}");
            assert_eq!(root["resources"]["cpu"]["n"], 1, "{odd}");
            assert!(
                notes.unwrap().contains("values that JSON does not have"),
                "{odd}"
            );
        }
        let (root, _) = read(GOOD.replace("\"a\"", &deep).as_bytes());
        assert_eq!(root["resources"]["cpu"]["n"], 1, "nested too deeply");
    }

    /// Drivers and loggers that write JSON, too; LXD's own frame around it.
    #[test]
    fn other_json_around_the_inventory_does_not_hide_it() {
        let line = "{\"level\": \"warn\", \"cpu\": {}, \"message\": \"{\"}\n";
        let (root, notes) = read(format!("{}{GOOD}", line.repeat(500)).as_bytes());
        assert_eq!(root["resources"]["cpu"]["n"], 1);
        assert_eq!(notes.as_deref(), Some("500 lines before the JSON skipped"));
        // Places where nothing begins, that do not end or are no JSON.
        let odd = format!("{{odd}} {{ {{x\n{{\n{}{GOOD}", "{y}\n".repeat(1000));
        assert_eq!(read(odd.as_bytes()).0["resources"]["cpu"]["n"], 1);
        let lxd = r#"{"type": "sync", "metadata": {"cpu": {"n": 1}, "memory": {}}}"#;
        assert_eq!(read(lxd.as_bytes()).0["cpu"]["n"], 1);
        let coloured = format!("\x1b[0m\x1b[32m{GOOD}\x1b[0m");
        assert_eq!(read(coloured.as_bytes()).0["resources"]["cpu"]["n"], 1);
    }

    /// `serde_json` keeps the last of two keys with one name, as Python does.
    #[test]
    fn good_json_is_read_as_it_is() {
        for json in [
            r#"{"cpu": {"a": [1, -2.5e3, true, false, null, "x\"\\\/\b\f\n\r\té"]}, "memory": {}}"#,
            r#"{"cpu": {"a": 1, "a": 2}, "memory": {"": ""}, "x": 18446744073709551615}"#,
        ] {
            let (root, notes) = read(json.as_bytes());
            assert_eq!(root, serde_json::from_str::<Value>(json).unwrap());
            assert_eq!(notes, None);
        }
    }

    /// A full disk, or a limit on the way: half an inventory would take the other half of the machine away.
    #[test]
    fn an_inventory_that_was_cut_is_refused_with_that_reason() {
        for cut in 30..GOOD.len() - 1 {
            let error = find(&GOOD.as_bytes()[..cut], &mut Notes::default()).unwrap_err();
            let said = format!("cut off after {cut} octets");
            assert!(error.to_string().contains(&said), "{error}");
        }
    }

    #[test]
    fn what_does_not_end_is_no_inventory() {
        for output in [
            "",
            "{",
            "{\"cpu\": {}, \"memory\": {}",
            "}{",
            "\"{\\",
            "{\"a\\",
        ] {
            assert!(
                find(output.as_bytes(), &mut Notes::default()).is_err(),
                "{output}"
            );
        }
        let braces = "{".repeat(1 << 20);
        assert!(find(braces.as_bytes(), &mut Notes::default()).is_err());
    }
}
