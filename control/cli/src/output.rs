//! What a command prints: a table for people, JSON for programs.

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
    pub fn list(self, rows: &Value, columns: &[Column]) {
        let Output::Table = self else {
            return json(rows);
        };
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(columns.iter().map(|(title, _)| title.to_uppercase()));
        for row in rows.as_array().into_iter().flatten() {
            table.add_row(columns.iter().map(|(_, text)| text(row)));
        }
        println!("{table}");
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
        println!("{table}");
    }

    /// The outcome of an action: a sentence for people, the region's answer for programs.
    pub fn done(self, answer: &Value, sentence: &str) {
        match self {
            Output::Table => println!("{sentence}"),
            Output::Json => json(answer),
        }
    }
}

fn json(value: &Value) {
    println!(
        "{}",
        serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
    );
}

/// The text at a JSON pointer (`/zone/name`); nothing for null.
pub fn text(row: &Value, pointer: &str) -> String {
    match row.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| text(item, ""))
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    }
}
