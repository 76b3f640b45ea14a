//! `state.json`: the manifest of a checkpoint, with checksums of everything in it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result, files};

pub(super) const FORMAT: &str = "haplovl-training-checkpoint";
/// Version that is written. Version 1, which is still read, has no checksum of `state.json` itself.
pub(super) const VERSION: u32 = 2;
pub(super) const PARAMETERS: &str = "parameters.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "state.json";
/// Most bytes of a `state.json`, which holds settings and counters.
const MAX_STATE_BYTES: u64 = 64 << 20;
/// Text before the digits of the checksum.
const CHECKSUM: &str = "\"checksum\": \"";
/// Digits that stand in for the checksum while it is computed.
const NO_CHECKSUM: &str = "00000000";

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: String,
    pub version: u32,
    /// CRC-32 of all bytes of the file, with zeros in place of these digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    pub run: String,
    pub step: u64,
    pub score: Option<f64>,
    pub files: BTreeMap<String, Fingerprint>,
    pub state: Value,
}

/// Size and CRC-32 of a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fingerprint {
    bytes: u64,
    crc32: u32,
}

impl Manifest {
    /// The bytes of `state.json`, with their checksum.
    pub fn into_bytes(mut self) -> serde_json::Result<Vec<u8>> {
        self.checksum = Some(NO_CHECKSUM.into());
        let text = serde_json::to_string_pretty(&self)?;
        let checksum = format!("{CHECKSUM}{:08x}", crc32fast::hash(text.as_bytes()));
        Ok(text.replacen(&format!("{CHECKSUM}{NO_CHECKSUM}"), &checksum, 1).into_bytes())
    }
}

/// Reads the manifest in the folder `path`, of any run.
pub(super) fn read_manifest(path: &Path) -> Result<Manifest> {
    let content = files::read(path.join(STATE), MAX_STATE_BYTES)
        .map_err(|e| refuse(path, format!("{STATE}: {}", reason(&e))).caused_by(e))?;
    let value: Value = serde_json::from_slice(&content).map_err(|e| {
        refuse(path, format!("{STATE} is not complete JSON ({e}): the file was truncated or overwritten")).caused_by(e)
    })?;
    let of = |field: &str| value.get(field).cloned().unwrap_or_default();
    if of("format") != FORMAT || !(of("version") == VERSION || of("version") == 1) {
        let found = format!("format {} version {}", of("format"), of("version"));
        return Err(refuse(path, format!("{STATE} has {found}, expected \"{FORMAT}\" version 1 or {VERSION}")));
    }
    let manifest = Manifest::deserialize(value).map_err(|e| refuse(path, format!("{STATE}: {e}")).caused_by(e))?;
    check(path, &manifest, &content)?;
    Ok(manifest)
}

/// Compares the checksum of `state.json` with its bytes; only version 1 may lack it.
fn check(path: &Path, manifest: &Manifest, content: &[u8]) -> Result<()> {
    let Some(expected) = &manifest.checksum else {
        let is_old = manifest.version == 1;
        return if is_old { Ok(()) } else { Err(refuse(path, format!("{STATE} is damaged: it has no checksum"))) };
    };
    let text = String::from_utf8_lossy(content);
    let zeroed = text.replacen(&format!("{CHECKSUM}{expected}"), &format!("{CHECKSUM}{NO_CHECKSUM}"), 1);
    let found = format!("{:08x}", crc32fast::hash(zeroed.as_bytes()));
    if found == *expected {
        return Ok(());
    }
    Err(refuse(path, format!("{STATE} is damaged: its CRC-32 is {found}, expected {expected}")))
}

/// The message of an error about a file in a checkpoint without the file's path, which the checkpoint's own error
/// gives.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::Io { source, .. } => source.to_string(),
        Error::Format { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

impl Fingerprint {
    /// Reads the whole file.
    ///
    /// # Errors
    /// [`Error::Io`], also if it is not a regular file.
    pub fn of(path: &Path) -> Result<Self> {
        let mut file = files::open(path)?;
        let (mut hasher, mut buffer, mut bytes) = (crc32fast::Hasher::new(), vec![0; 1 << 20], 0);
        loop {
            let n = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
            let Some(read) = buffer.get(..n).filter(|read| !read.is_empty()) else { break };
            hasher.update(read);
            bytes += n as u64;
        }
        Ok(Self { bytes, crc32: hasher.finalize() })
    }

    /// Difference from the expected fingerprint, as the end of a sentence.
    pub fn difference(&self, expected: &Self) -> String {
        if self.bytes == expected.bytes {
            return format!("is damaged: its CRC-32 is {:08x}, expected {:08x}", self.crc32, expected.crc32);
        }
        format!("is {} bytes long, expected {}: the file was truncated or overwritten", self.bytes, expected.bytes)
    }
}

/// The error for a checkpoint that cannot be used.
pub(super) fn refuse(path: &Path, message: String) -> Error {
    Error::checkpoint(path, message)
}

/// Name of the file with a rank's share of the optimizer's state.
pub(super) fn optimizer_file(rank: usize, ranks: usize) -> String {
    if ranks == 1 { OPTIMIZER.into() } else { format!("optimizer-{:05}-of-{ranks:05}.safetensors", rank + 1) }
}

/// Names of all files with optimizer state among the files of a manifest, in the order of ranks; `None` if they are not
/// exactly the parameters and the files of all ranks of a run.
pub(super) fn optimizer_files(files: &BTreeMap<String, Fingerprint>) -> Option<Vec<String>> {
    let ranks = files.len().checked_sub(1).filter(|ranks| *ranks > 0)?;
    let names: Vec<String> = (0..ranks).map(|rank| optimizer_file(rank, ranks)).collect();
    let are_all = files.contains_key(PARAMETERS) && names.iter().all(|name| files.contains_key(name));
    are_all.then_some(names)
}

/// Name of the folder of a step; leading zeros sort the names by step.
pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Step of a folder name, the inverse of [`folder_name`].
pub(super) fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok().filter(|step| folder_name(*step) == name)
}
