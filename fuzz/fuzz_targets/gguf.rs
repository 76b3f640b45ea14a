//! Weights in GGUF: as a quantised model of this crate, and as a language model to start from.
//!
//! A tensor that is announced has its shape once it is loaded.

#![no_main]

use haplovl::weights::LlmSource;
use haplovl_fuzz::{accepted, file, load_weights};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("model.gguf", data);
    load_weights();
    accepted(LlmSource::open(path));
});
