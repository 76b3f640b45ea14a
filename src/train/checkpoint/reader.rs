//! A checkpoint to resume from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;

use super::manifest::{Fingerprint, Manifest, OPTIMIZER, PARAMETERS, STATE, folder_name, read_manifest, refuse};
use crate::Result;
use crate::weights::SafetensorsFiles;

/// A checkpoint whose files were found whole.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Checks every byte of the checkpoint in the folder `path` against its manifest.
    pub(super) fn open(path: &Path, run: &str) -> Result<Self> {
        let manifest = read_manifest(path)?;
        if manifest.run != run {
            return Err(refuse(path, format!("is of another run, `{}`, expected `{run}`", manifest.run)));
        }
        if path.file_name() != Some(folder_name(manifest.step).as_ref()) {
            return Err(refuse(path, format!("holds step {}: it was renamed or copied", manifest.step)));
        }
        for name in [PARAMETERS, OPTIMIZER] {
            let found = Fingerprint::of(&path.join(name)).map_err(|e| refuse(path, format!("{name}: {e}")))?;
            match manifest.files.get(name) {
                Some(expected) if *expected == found => {}
                Some(expected) => return Err(refuse(path, format!("{name} {}", found.difference(expected)))),
                None => return Err(refuse(path, format!("{STATE} says nothing of {name}"))),
            }
        }
        Ok(Self { path: path.to_path_buf(), manifest })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of steps done when it was written.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// The validation loss it was saved with.
    pub fn score(&self) -> Option<f64> {
        self.manifest.score
    }

    /// What was given as [`Contents::state`](super::Contents::state).
    ///
    /// # Errors
    /// [`crate::Error::Checkpoint`] if it is of another shape.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.manifest.state).map_err(|e| refuse(&self.path, format!("{STATE}: field `state`: {e}")))
    }

    /// The model's tensors, on `device`.
    ///
    /// # Errors
    /// [`crate::Error::Io`] or [`crate::Error::Format`] if the file changed since the checkpoint was opened.
    pub fn parameters(&self, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        SafetensorsFiles::open(self.path.join(PARAMETERS))?.load_all(device)
    }

    /// The optimizer's tensors, on `device`.
    ///
    /// # Errors
    /// As [`Self::parameters`].
    pub fn optimizer(&self, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        SafetensorsFiles::open(self.path.join(OPTIMIZER))?.load_all(device)
    }
}
