//! File that several threads read parts of.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::super::{BadSample, SampleResult};
use crate::Error;

/// Longest record in bytes.
pub(super) const MAX_RECORD_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct SharedFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl SharedFile {
    /// An open file, called `path` in messages.
    pub fn new(path: &Path, file: File) -> Self {
        Self { path: path.to_path_buf(), file: Mutex::new(file) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of a record of text.
    pub fn record(&self, range: Range<u64>) -> SampleResult<Vec<u8>> {
        self.read(range, MAX_RECORD_BYTES)
    }

    /// These bytes, of which there may be `limit`.
    pub fn read(&self, range: Range<u64>, limit: u64) -> SampleResult<Vec<u8>> {
        let length = range.end.saturating_sub(range.start);
        if length > limit {
            return Err(BadSample::HugeRecord { bytes: length, limit });
        }
        let mut bytes = vec![0; length as usize];
        let read =
            self.with(|mut file| file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut bytes)));
        read.map_err(|e| Error::io(&self.path, e))?;
        Ok(bytes)
    }

    /// Calls `act` with the file, while no other thread uses it.
    pub fn with<T>(&self, act: impl FnOnce(&File) -> T) -> T {
        act(&self.file.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
