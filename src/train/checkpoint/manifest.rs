//! `state.json`: what a checkpoint says of itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

pub(super) const FORMAT: &str = "haplovl-training-checkpoint";
pub(super) const VERSION: u32 = 1;
pub(super) const PARAMETERS: &str = "parameters.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "state.json";
/// A state is settings and counters; a file larger than this is none.
const MAX_STATE_BYTES: u64 = 64 << 20;

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: String,
    pub version: u32,
    pub run: String,
    pub step: u64,
    pub score: Option<f64>,
    pub files: BTreeMap<String, Fingerprint>,
    pub state: Value,
}

/// By which a damaged file is told.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fingerprint {
    bytes: u64,
    crc32: u32,
}

/// Reads the manifest in the folder `path`, whatever run it is of.
pub(super) fn read_manifest(path: &Path) -> Result<Manifest> {
    let file = File::open(path.join(STATE)).map_err(|e| refuse(path, format!("{STATE}: {e}")))?;
    let mut content = Vec::new();
    file.take(MAX_STATE_BYTES).read_to_end(&mut content).map_err(|e| Error::io(path.join(STATE), e))?;
    let value: Value = serde_json::from_slice(&content)
        .map_err(|e| refuse(path, format!("{STATE} is no complete JSON ({e}): it was cut short or overwritten")))?;
    let of = |field: &str| value.get(field).cloned().unwrap_or_default();
    if of("format") != FORMAT || of("version") != VERSION {
        let found = format!("format {} version {}", of("format"), of("version"));
        return Err(refuse(path, format!("{STATE} has {found}, expected \"{FORMAT}\" version {VERSION}")));
    }
    Manifest::deserialize(value).map_err(|e| refuse(path, format!("{STATE}: {e}")))
}

impl Fingerprint {
    /// Reads the whole file.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let (mut hasher, mut buffer, mut bytes) = (crc32fast::Hasher::new(), vec![0; 1 << 20], 0);
        loop {
            let n = file.read(&mut buffer)?;
            let Some(read) = buffer.get(..n).filter(|read| !read.is_empty()) else { break };
            hasher.update(read);
            bytes += n as u64;
        }
        Ok(Self { bytes, crc32: hasher.finalize() })
    }

    /// How this differs from what was expected, as the end of a sentence.
    pub fn difference(&self, expected: &Self) -> String {
        if self.bytes == expected.bytes {
            return format!("is damaged: its CRC-32 is {:08x}, expected {:08x}", self.crc32, expected.crc32);
        }
        format!("is {} bytes long, expected {}: it was cut short or overwritten", self.bytes, expected.bytes)
    }
}

/// The error for a checkpoint that cannot be used.
pub(super) fn refuse(path: &Path, message: String) -> Error {
    Error::checkpoint(path, message)
}

/// Name of the folder of a step; zeros keep them in order.
pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}
