#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetbox_fuzz::fat(data));
