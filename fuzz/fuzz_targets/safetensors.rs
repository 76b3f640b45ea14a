//! Weights in safetensors: a raw file, a header in front of zeros, or the index of a sharded model.
//!
//! The first byte chooses which. A tensor that is announced has its shape once it is loaded.

#![no_main]

use haplovl_fuzz::{file, folder, load_weights};
use libfuzzer_sys::fuzz_target;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Number of zeros behind a header.
const DATA_BYTES: usize = 256;

fuzz_target!(|data: &[u8]| {
    let Some((kind, content)) = data.split_first() else { return };
    for name in [SINGLE, INDEX] {
        std::fs::remove_file(folder().join(name)).ok();
    }
    match kind % 3 {
        0 => file(SINGLE, content),
        1 => file(SINGLE, &with_data(content)),
        _ => {
            file("a.safetensors", &with_data(br#"{"x":{"dtype":"F32","shape":[2,32],"data_offsets":[0,256]}}"#));
            file(INDEX, content)
        }
    };
    load_weights();
});

/// A safetensors file: length of the header, header, zeros.
fn with_data(header: &[u8]) -> Vec<u8> {
    let length = header.len() as u64;
    [&length.to_le_bytes(), header, &[0; DATA_BYTES]].concat()
}
