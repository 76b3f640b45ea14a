//! A checksum of the files of a model.

use std::fs::File;
use std::io::{Read, Result};
use std::path::{Path, PathBuf};

/// Ends of the names of files that answers depend on: weights, configurations, tokenizers and templates.
const ENDS: [&str; 8] = ["safetensors", "bin", "gguf", "pt", "pth", "json", "jinja", "model"];

/// The checksum (CRC-32) of the files of a model or an adapter in a folder, or of one file: it tells a model that was trained
/// again. `None` if there is none, or one cannot be read.
pub fn checksum(path: &Path) -> Option<String> {
    let is_part = |path: &PathBuf| {
        path.is_file() && path.extension().is_some_and(|extension| ENDS.iter().any(|end| extension == *end))
    };
    let mut files = match path.is_dir() {
        true => path.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_part).collect(),
        false => Vec::from_iter(path.is_file().then(|| path.to_path_buf())),
    };
    files.sort();
    let mut sum = crc32fast::Hasher::new();
    for file in &files {
        sum.update(file.file_name()?.as_encoded_bytes());
        add(&mut sum, file).ok()?;
    }
    (!files.is_empty()).then(|| format!("{:08x}", sum.finalize()))
}

fn add(sum: &mut crc32fast::Hasher, file: &Path) -> Result<()> {
    let (mut file, mut buffer) = (File::open(file)?, vec![0; 1 << 20]);
    sum.update(&file.metadata()?.len().to_le_bytes());
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => sum.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}
