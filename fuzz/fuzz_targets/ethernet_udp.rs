#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| stories::ethernet_udp(octets));
