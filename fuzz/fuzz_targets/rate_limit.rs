#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entrepot::http::rate_limit::fuzz(data));
