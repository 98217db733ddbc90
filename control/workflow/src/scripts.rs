//! The scripts that a commissioning runs: built in, from `deploy/machine/scripts`, with their metadata header.
//!
//! Only the plain lines of the header are read (`# key: value`); scripts that users upload, with the whole YAML, are
//! not there yet.

use std::sync::LazyLock;
use std::time::Duration;

/// The script whose output is the machine's inventory.
pub const RESOURCES: &str = "50-maas-01-commissioning";
/// For a script that names none.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A script as machines get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub name: &'static str,
    pub title: String,
    pub description: String,
    pub tags: Vec<String>,
    pub script_type: String,
    pub hardware_type: String,
    pub timeout: Duration,
    pub content: &'static [u8],
}

/// The built-in commissioning scripts, by name.
pub fn builtin() -> &'static [Script] {
    static SCRIPTS: LazyLock<Vec<Script>> = LazyLock::new(|| {
        [
            (
                RESOURCES,
                &include_bytes!("../../../deploy/machine/scripts/50-maas-01-commissioning")[..],
            ),
            (
                "maas-kernel-cmdline",
                &include_bytes!("../../../deploy/machine/scripts/maas-kernel-cmdline")[..],
            ),
            (
                "maas-lshw",
                &include_bytes!("../../../deploy/machine/scripts/maas-lshw")[..],
            ),
        ]
        .into_iter()
        .map(|(name, content)| script(name, content))
        .collect()
    });
    &SCRIPTS
}

/// The built-in script of this name.
pub fn find(name: &str) -> Option<&'static Script> {
    builtin().iter().find(|script| script.name == name)
}

/// What the machine runs first: the runner, as cloud-init user-data.
pub fn runner() -> &'static [u8] {
    include_bytes!("../../../deploy/machine/maas-run-scripts")
}

/// What an unknown machine runs: it tells the region about itself.
pub fn enlister() -> &'static [u8] {
    include_bytes!("../../../deploy/machine/maas-enlist")
}

fn script(name: &'static str, content: &'static [u8]) -> Script {
    let header = header(content);
    let value = |key: &str| {
        header
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| *value)
    };
    Script {
        name,
        title: value("title").unwrap_or(name).to_owned(),
        description: value("description").unwrap_or_default().to_owned(),
        tags: value("tags")
            .unwrap_or_default()
            .split(',')
            .map(|tag| tag.trim().to_owned())
            .filter(|tag| !tag.is_empty())
            .collect(),
        script_type: value("script_type").unwrap_or("commissioning").to_owned(),
        hardware_type: value("hardware_type").unwrap_or("node").to_owned(),
        timeout: value("timeout").and_then(timeout).unwrap_or(TIMEOUT),
        content,
    }
}

/// The `# key: value` lines between the marks of MAAS 1.0 script metadata.
fn header(content: &[u8]) -> Vec<(&str, &str)> {
    // A script may hold octets that are no text; its header may not.
    let end = content
        .iter()
        .take(16_384)
        .position(|byte| *byte == 0)
        .unwrap_or(content.len().min(16_384));
    let text = match std::str::from_utf8(&content[..end]) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&content[..error.valid_up_to()]).unwrap_or_default(),
    };
    text.lines()
        .skip_while(|line| !line.contains("--- Start MAAS 1.0 script metadata ---"))
        .skip(1)
        .take_while(|line| !line.contains("--- End MAAS 1.0 script metadata ---"))
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect()
}

/// `HH:MM:SS`, `MM:SS` or seconds.
fn timeout(text: &str) -> Option<Duration> {
    let mut secs: u64 = 0;
    for part in text.trim_matches(['"', '\'']).split(':') {
        secs = secs
            .checked_mul(60)?
            .checked_add(part.trim().parse().ok()?)?;
    }
    (secs <= 7 * 86_400).then(|| Duration::from_secs(secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_scripts_have_their_header() {
        let names: Vec<_> = builtin().iter().map(|script| script.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        for script in builtin() {
            let header = header(script.content);
            assert!(
                header.contains(&("name", script.name)),
                "{}: {header:?}",
                script.name
            );
            assert!(
                !script.title.is_empty() && !script.description.is_empty(),
                "{}",
                script.name
            );
            assert_eq!(script.script_type, "commissioning");
            assert!(script.content.starts_with(b"#!"), "{}", script.name);
        }
        assert_eq!(find(RESOURCES).unwrap().timeout, Duration::from_secs(300));
        assert!(find("nope").is_none());
    }

    #[test]
    fn timeouts_are_read() {
        for (text, want) in [
            ("00:05:00", Some(300)),
            ("1:30", Some(90)),
            ("45", Some(45)),
            ("\"00:00:10\"", Some(10)),
            ("", None),
            ("soon", None),
            ("99999999999:0:0", None),
        ] {
            assert_eq!(timeout(text), want.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn odd_headers_are_no_headers() {
        for content in [
            &b""[..],
            b"\0\0",
            b"\xff# --- Start MAAS 1.0 script metadata ---\n# name: x\n",
            b"#!/bin/sh\n# name: x\n",
        ] {
            assert_eq!(header(content), [], "{content:?}");
        }
    }
}
