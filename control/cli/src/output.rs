//! What a command prints: a table for people, JSON for programs.

use std::io::{ErrorKind, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

/// A column: its title, and how its text is found in a row.
pub type Column = (&'static str, fn(&Value) -> String);

impl Output {
    /// Rows of a list.
    pub fn list(self, rows: Vec<Value>, columns: &[Column]) {
        let Output::Table = self else {
            return json(&Value::Array(rows));
        };
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(columns.iter().map(|(title, _)| title.to_uppercase()));
        for row in &rows {
            table.add_row(columns.iter().map(|(_, text)| text(row)));
        }
        say(table);
    }

    /// One thing: a line per column.
    pub fn one(self, row: &Value, columns: &[Column]) {
        let Output::Table = self else {
            return json(row);
        };
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        for (title, text) in columns {
            table.add_row([title.to_string(), text(row)]);
        }
        say(table);
    }

    /// The outcome of an action: a sentence for people, the region's answer for programs.
    pub fn done(self, answer: &Value, sentence: &str) {
        match self {
            Output::Table => say(sentence),
            Output::Json => json(answer),
        }
    }
}

/// A line on standard output. Whoever reads it may have enough (`muster machine list | head -1`): that ends the command,
/// quietly and well. Any other failure, a full disk for one, is told.
pub fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            complain(format_args!("writing to standard output: {error}"));
            std::process::exit(1);
        }
    }
}

/// A line on standard error; nobody may be there to read it.
pub fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "muster: {line}");
}

fn json(value: &Value) {
    say(serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string()));
}

/// A text without what a terminal would obey: names and events come from machines, and from strangers.
pub fn clean(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => c,
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// The text at a JSON pointer (`/zone/name`); nothing for null.
pub fn text(row: &Value, pointer: &str) -> String {
    match row.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => clean(text),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| text(item, ""))
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    }
}
