#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| stories::dhcp_engine(octets));
