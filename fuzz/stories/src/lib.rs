//! What the fuzzers run: one function per target, from octets to a panic where a promise is broken.
//!
//! `fuzz/fuzz_targets` hands them what libFuzzer invents; `tests/replay.rs` hands them the kept corpora and random
//! inputs, on stable Rust and with every test run. A target is pure: the same octets tell the same story. Parsers
//! take the octets as they are; engines take them as decisions (`arbitrary::Unstructured`), so that every input is a
//! valid story and a short one stays short.
//!
//! Deliberate differences to dhcproto are listed in `fuzz/DIFFERENCES.md`.

mod dhcp4;
mod dhcp_engine;
mod ethernet;
mod http;
mod lease_rack;
mod lease_spool;
mod tftp;

pub use dhcp_engine::dhcp_engine;
pub use dhcp4::{dhcp4_parse, dhcp4_round_trip};
pub use ethernet::ethernet_udp;
pub use http::{http_connection, http1_head};
pub use lease_rack::lease_rack;
pub use lease_spool::lease_spool;
pub use tftp::{tftp_packet, tftp_server};

/// A target's name, which is its corpus's folder, and what it runs. Panics where a promise is broken.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 10] = [
    ("dhcp4_parse", dhcp4_parse),
    ("dhcp4_round_trip", dhcp4_round_trip),
    ("dhcp_engine", dhcp_engine),
    ("ethernet_udp", ethernet_udp),
    ("http1_head", http1_head),
    ("http_connection", http_connection),
    ("lease_rack", lease_rack),
    ("lease_spool", lease_spool),
    ("tftp_packet", tftp_packet),
    ("tftp_server", tftp_server),
];

/// The next decision, below `below`; 0 once the input is used up.
pub(crate) fn pick(input: &mut arbitrary::Unstructured<'_>, below: u32) -> u32 {
    debug_assert!(below > 0, "one of nothing");
    input.int_in_range(0..=below - 1).unwrap_or(0)
}

/// One of several.
pub(crate) fn one_of<T: Copy>(input: &mut arbitrary::Unstructured<'_>, choices: &[T]) -> T {
    choices[pick(input, choices.len() as u32) as usize]
}

/// So many octets, fewer where the input ends.
pub(crate) fn octets<'a>(input: &mut arbitrary::Unstructured<'a>, count: usize) -> &'a [u8] {
    let count = count.min(input.len());
    input.bytes(count).unwrap_or_default()
}
