//! The ledgers in docs/spec: every row names tests that exist, or says why it has none.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const LEDGERS: [&str; 11] = [
    "rfc2131.md",
    "rfc2132.md",
    "rfc3046.md",
    "rfc3396.md",
    "rfc3527.md",
    "rfc4039.md",
    "rfc4578.md",
    "rfc5107.md",
    "rfc6842.md",
    "rfc1542-951-1534.md",
    "pxe.md",
];
const CRATES: [&str; 6] = ["wire", "dhcp", "boot", "shard", "uring", "rackd"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|of| of == "rs") {
            found.push(path);
        }
    }
}

/// Functions behind `#[test]`, those of `proptest!` included.
fn tests() -> HashSet<String> {
    let mut files = vec![];
    for name in CRATES {
        for part in ["src", "tests"] {
            rust_files(&root().join("dataplane").join(name).join(part), &mut files);
        }
    }
    let mut names = HashSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        for part in text.split("#[test]").skip(1) {
            let Some((_, after)) = part.split_once("fn ") else {
                continue;
            };
            let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            names.insert(after[..end.unwrap_or(0)].to_string());
        }
    }
    names
}

#[test]
fn every_row_names_a_test_that_exists_or_says_why_not() {
    let tests = tests();
    assert!(tests.len() > 100, "{}", tests.len());
    let mut rows = 0;
    for ledger in LEDGERS {
        let text = fs::read_to_string(root().join("docs/spec").join(ledger)).expect(ledger);
        for line in text.lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if cells[0] == "§" {
                continue;
            }
            assert_eq!(cells.len(), 4, "{ledger}: {line}");
            let named: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
            for name in &named {
                assert!(tests.contains(*name), "{ledger}: no test {name}");
            }
            let excused = ["Deviation:", "Not applicable:"]
                .iter()
                .any(|word| cells[2].contains(word));
            assert!(!named.is_empty() || excused, "{ledger}: {line}");
            rows += 1;
        }
    }
    assert!(rows > 130, "{rows} rows");
}
