//! Weights of `torch.save`: a raw file, or a pickle program in an archive with one storage of zeros.
//!
//! The first byte chooses which. A tensor that is announced has its shape once it is loaded.

#![no_main]

use haplovl_fuzz::{file, load_weights};
use libfuzzer_sys::fuzz_target;

const WEIGHTS: &str = "pytorch_model.bin";
/// Number of zeros in the storage of an archive.
const DATA_BYTES: usize = 256;

fuzz_target!(|data: &[u8]| {
    let Some((kind, content)) = data.split_first() else { return };
    match kind % 2 {
        0 => file(WEIGHTS, content),
        _ => file(WEIGHTS, &archive(&[("a/data.pkl", content), ("a/data/0", &[0; DATA_BYTES])])),
    };
    load_weights();
});

/// A zip archive of entries that are stored as they are, without checksums.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let at = bytes.len() as u32;
        let sizes = [content.len() as u32; 2].map(u32::to_le_bytes).concat();
        let name_size = (name.len() as u32).to_le_bytes();
        // Version, flags, method, time and date; the checksum; the sizes of content, name and extra field.
        let header = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0; 4], &sizes, &name_size].concat();
        bytes.extend([&b"PK\x03\x04"[..], &header[..], name.as_bytes(), content].concat());
        directory.extend([&b"PK\x01\x02\x14\0"[..], &header[..], &[0; 10], &at.to_le_bytes(), name.as_bytes()].concat());
    }
    let (count, start) = ([entries.len() as u16; 2].map(u16::to_le_bytes).concat(), bytes.len() as u32);
    let end = [&count[..], &(directory.len() as u32).to_le_bytes(), &start.to_le_bytes(), &[0; 2]].concat();
    [bytes, directory, b"PK\x05\x06\0\0\0\0".to_vec(), end].concat()
}
