//! A checkpoint to resume from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;

use super::manifest::{
    Fingerprint, Manifest, OPTIMIZER, PARAMETERS, STATE, folder_name, read_manifest, reason, refuse,
};
use crate::Result;
use crate::optim::AdamW;
use crate::weights::SafetensorsFiles;

/// A valid checkpoint: all its files have the sizes and checksums of its manifest.
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
            return Err(refuse(path, format!("belongs to another run, `{}`, expected `{run}`", manifest.run)));
        }
        if path.file_name() != Some(folder_name(manifest.step).as_ref()) {
            return Err(refuse(path, format!("has step {}: the folder was renamed or copied", manifest.step)));
        }
        for name in [PARAMETERS, OPTIMIZER] {
            let found = Fingerprint::of(&path.join(name))
                .map_err(|e| refuse(path, format!("{name}: {}", reason(&e))).caused_by(e))?;
            match manifest.files.get(name) {
                Some(expected) if *expected == found => {}
                Some(expected) => return Err(refuse(path, format!("{name} {}", found.difference(expected)))),
                None => return Err(refuse(path, format!("{STATE} does not list {name}"))),
            }
        }
        let this = Self { path: path.to_path_buf(), manifest };
        this.check_optimizer()?;
        Ok(this)
    }

    /// Compares the optimizer's step counter with the manifest: the counter determines how much of the run is left.
    fn check_optimizer(&self) -> Result<()> {
        let damaged = |found: String| {
            let expected = self.step();
            refuse(
                &self.path,
                format!(
                    "{OPTIMIZER} counts {found} steps, expected {expected}: the file belongs to another checkpoint"
                ),
            )
        };
        let step = SafetensorsFiles::open(self.path.join(OPTIMIZER))?.load(AdamW::STEP, DType::I64, &Device::Cpu);
        let step = step.and_then(|step| Ok(step.to_scalar::<i64>()?)).map_err(|e| damaged("no".into()).caused_by(e))?;
        if u64::try_from(step) == Ok(self.step()) { Ok(()) } else { Err(damaged(step.to_string())) }
    }

    /// Folder of the checkpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of steps done when the checkpoint was written.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// Validation loss at the time of saving.
    pub fn score(&self) -> Option<f64> {
        self.manifest.score
    }

    /// The saved [`Contents::state`](super::Contents::state).
    ///
    /// # Errors
    /// [`crate::Error::Checkpoint`] if the state cannot be deserialised as `T`.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.manifest.state)
            .map_err(|e| refuse(&self.path, format!("{STATE}: field `state`: {e}")).caused_by(e))
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
