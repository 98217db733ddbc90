//! The kept corpora through every target, and as many random inputs again: what libFuzzer has found once never comes
//! back, with stable Rust and in a few seconds. A failing input is named by its file, or by its seed.

use std::path::{Path, PathBuf};

use stories::TARGETS;

/// Per target. Half are mutations of corpus files, which get deeper than noise does.
const RANDOM_INPUTS: u64 = 2_000;
const RANDOM_BYTES_MAX: u64 = 700;
/// Corpora stay small: `cargo xtask fuzz --keep` sees to it.
const CORPUS_FILES_MAX: usize = 400;
const CORPUS_BYTES_MAX: usize = 1 << 20;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(target);
    let listing =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = listing
        .map(|file| {
            let path = file.unwrap().path();
            let octets = std::fs::read(&path).unwrap();
            (path, octets)
        })
        .collect();
    files.sort();
    files
}

/// xorshift64*: the same numbers for a seed everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % below
    }

    fn octets(&mut self, below: u64) -> Vec<u8> {
        (0..self.below(below))
            .map(|_| self.below(256) as u8)
            .collect()
    }

    /// A few octets changed, taken out, or put in between.
    fn mutate(&mut self, octets: &[u8]) -> Vec<u8> {
        let mut octets = octets.to_vec();
        for _ in 0..1 + self.below(6) {
            let at = self.below(octets.len() as u64 + 1) as usize;
            match self.below(4) {
                0 => drop(octets.splice(at..at, self.octets(9))),
                1 => drop(octets.drain(at..(at + self.below(9) as usize).min(octets.len()))),
                _ => {
                    if let Some(octet) = octets.get_mut(at) {
                        *octet = self.below(256) as u8;
                    }
                }
            }
        }
        octets
    }
}

/// Runs one input; says which one it was if the target panics.
fn run(target: fn(&[u8]), name: &str, octets: &[u8]) {
    struct Tell<'a>(&'a str);
    impl Drop for Tell<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the input is {}", self.0);
            }
        }
    }
    let tell = Tell(name);
    target(octets);
    std::mem::forget(tell);
}

fn replay(wanted: &str) {
    let (_, target) = TARGETS
        .into_iter()
        .find(|(name, _)| *name == wanted)
        .unwrap();
    let corpus = corpus(wanted);
    assert!(!corpus.is_empty(), "{wanted} has no corpus");
    for (path, octets) in &corpus {
        run(target, &path.display().to_string(), octets);
    }
    for seed in 0..RANDOM_INPUTS {
        let mut random = Random::new(seed);
        let octets = if seed % 2 == 0 {
            random.octets(RANDOM_BYTES_MAX)
        } else {
            let chosen = random.below(corpus.len() as u64) as usize;
            random.mutate(&corpus[chosen].1)
        };
        run(target, &format!("of seed {seed}"), &octets);
    }
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*

        const REPLAYED: &[&str] = &[$(stringify!($target)),*];
    };
}

replays! {
    dhcp4_parse dhcp4_round_trip dhcp_engine ethernet_udp http1_head http_connection lease_rack lease_spool tftp_packet
    tftp_server
}

#[test]
fn every_target_is_replayed_and_has_a_libfuzzer_binary() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, REPLAYED);
    for name in names {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let binary = fuzz.join(format!("fuzz_targets/{name}.rs"));
        assert!(binary.exists(), "{}", binary.display());
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

#[test]
fn the_corpora_are_small() {
    let files: Vec<_> = TARGETS.iter().flat_map(|(name, _)| corpus(name)).collect();
    let bytes: usize = files.iter().map(|(_, octets)| octets.len()).sum();
    assert!(files.len() < CORPUS_FILES_MAX, "{} files", files.len());
    assert!(bytes < CORPUS_BYTES_MAX, "{bytes} octets");
}
