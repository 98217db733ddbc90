//! What a bench leaves behind: where and when it ran, and the JSON files.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::workspace;

/// Where and when. Part of every report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setting {
    /// UTC.
    pub date: String,
    pub commit: String,
    /// The tree had changes that are in no commit.
    pub dirty: bool,
    pub kernel: String,
    pub cpu: String,
    pub cores: usize,
    /// How this command was called.
    pub command: String,
    /// (package, version) of the peers, where they are packages.
    pub versions: Vec<(String, String)>,
}

/// What was to be reached, and what was.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Goal {
    pub name: String,
    pub goal: String,
    /// None: could not be measured in this run.
    pub measured: Option<f64>,
    pub met: bool,
}

impl Goal {
    pub fn at_most(name: impl Into<String>, limit: f64, measured: Option<f64>) -> Self {
        Self {
            name: name.into(),
            goal: format!("<= {limit}"),
            measured: measured.map(|value| (value * 1000.0).round() / 1000.0),
            met: measured.is_some_and(|value| value <= limit),
        }
    }
}

impl Setting {
    pub fn now(versions: Vec<(String, String)>) -> Result<Self> {
        let git = |arguments: &[&str]| -> Result<String> {
            let root = workspace::root()?;
            let output = Command::new("git")
                .args(["-c", "safe.directory=*"])
                .args(arguments)
                .current_dir(root)
                .stdin(Stdio::null())
                .output()
                .context("asking git")?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, name)| name.to_owned());
        let words: Vec<String> = std::env::args()
            .skip(1)
            .filter(|word| word != "--prepared")
            .collect();
        Ok(Self {
            date: date()?,
            commit: git(&["rev-parse", "--short=12", "HEAD"])?,
            dirty: !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu.unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            command: format!("cargo xtask {}", words.join(" ")),
            versions,
        })
    }
}

fn date() -> Result<String> {
    let format = format_description!("[year]-[month]-[day]");
    OffsetDateTime::now_utc()
        .format(&format)
        .context("today's date")
}

/// Writes `latest/NAME.json`, and, of a run that counts, `DATE-NAME.json`.
pub fn write(name: &str, report: &impl Serialize, counts: bool) -> Result<()> {
    let results = workspace::root()?.join("benches/results");
    let mut text = serde_json::to_string_pretty(report).context("writing the report")?;
    text.push('\n');
    let mut files = vec![results.join("latest").join(format!("{name}.json"))];
    if counts {
        files.push(results.join(format!("{}-{name}.json", date()?)));
    }
    for file in files {
        put(file, &text)?;
    }
    Ok(())
}

/// Writes a file of the workspace.
pub fn put(file: PathBuf, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}

/// Puts `text` between the lines `<!-- NAME -->` and `<!-- /NAME -->` of docs/performance.md.
pub fn document(name: &str, text: &str) -> Result<()> {
    let file = workspace::root()?.join("docs/performance.md");
    let page =
        std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let page = between(&page, name, text)
        .with_context(|| format!("{} has no place for {name}", file.display()))?;
    put(file, &page)
}

fn between(page: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (head, rest) = page.split_once(&begin)?;
    let (_, tail) = rest.split_once(&end)?;
    Some(format!("{head}{begin}{}\n{end}{tail}", text.trim_end()))
}

/// The goals as lines for people.
pub fn goals_text(goals: &[Goal]) -> String {
    let mut text = String::new();
    for goal in goals {
        let measured = goal
            .measured
            .map_or("not measured".to_owned(), |value| value.to_string());
        let verdict = if goal.met { "met" } else { "MISSED" };
        writeln!(
            text,
            "{verdict:6}  {}: {measured}, goal {}",
            goal.name, goal.goal
        )
        .ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_filled_in_place() {
        let page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n";
        let want = "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n";
        assert_eq!(between(page, "x", "new\n\n").as_deref(), Some(want));
        assert_eq!(between(want, "x", "new").as_deref(), Some(want));
        assert_eq!(between(page, "y", "new"), None);
    }

    #[test]
    fn a_goal_that_was_not_measured_is_not_met() {
        assert!(Goal::at_most("x", 0.2, Some(0.2)).met);
        assert!(!Goal::at_most("x", 0.2, Some(0.21)).met);
        assert!(!Goal::at_most("x", 0.2, None).met);
        assert!(!Goal::at_most("x", 0.2, Some(f64::NAN)).met);
    }
}
