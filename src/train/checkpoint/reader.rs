//! A checkpoint to resume from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;

use super::manifest::{
    Fingerprint, Manifest, OPTIMIZER, PARAMETERS, STATE, folder_name, optimizer_files, read_manifest, reason, refuse,
};
use crate::Result;
use crate::optim::AdamW;
use crate::weights::SafetensorsFiles;

/// A valid checkpoint: all its files have the sizes and checksums of its manifest.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
    /// Names of the files with optimizer state, one for each rank that has written it.
    optimizer: Vec<String>,
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
        let Some(optimizer) = optimizer_files(&manifest.files) else {
            let message = format!("{STATE} does not list {PARAMETERS} and {OPTIMIZER}, or those of all ranks");
            return Err(refuse(path, message));
        };
        for (name, expected) in &manifest.files {
            let found = Fingerprint::of(&path.join(name))
                .map_err(|e| refuse(path, format!("{name}: {}", reason(&e))).caused_by(e))?;
            if *expected != found {
                return Err(refuse(path, format!("{name} {}", found.difference(expected))));
            }
        }
        let this = Self { path: path.to_path_buf(), manifest, optimizer };
        this.optimizer.iter().try_for_each(|name| this.check_optimizer(name))?;
        Ok(this)
    }

    /// Compares the optimizer's step counter with the manifest: the counter determines how much of the run is left.
    fn check_optimizer(&self, name: &str) -> Result<()> {
        let damaged = |found: String| {
            let expected = self.step();
            refuse(
                &self.path,
                format!("{name} counts {found} steps, expected {expected}: the file belongs to another checkpoint"),
            )
        };
        let step = SafetensorsFiles::open(self.path.join(name))?.load(AdamW::STEP, DType::I64, &Device::Cpu);
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

    /// The optimizer's tensors, of all ranks that have written the checkpoint, on `device`.
    ///
    /// # Errors
    /// As [`Self::parameters`].
    pub fn optimizer(&self, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        self.optimizer_where(device, |_| true)
    }

    /// The optimizer's tensors whose names are `wanted`, from the files of all ranks that have written the checkpoint, on
    /// `device`.
    ///
    /// # Errors
    /// As [`Self::parameters`].
    pub fn optimizer_where(&self, device: &Device, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for file in &self.optimizer {
            tensors.extend(SafetensorsFiles::open(self.path.join(file))?.load_where(device, &wanted)?);
        }
        Ok(tensors)
    }
}
