#![no_main]

#[path = "../inputs.rs"]
#[allow(dead_code, reason = "each target uses a part")]
mod inputs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| inputs::expand(data));
