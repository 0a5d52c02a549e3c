#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entrepot::http::head::fuzz(data));
