#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entrepot::http::upstream_head::fuzz(data));
