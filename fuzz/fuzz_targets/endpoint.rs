#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entrepot::oci::endpoint::fuzz(data));
