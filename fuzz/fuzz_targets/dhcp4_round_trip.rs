#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| stories::dhcp4_round_trip(octets));
