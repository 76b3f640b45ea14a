//! The folder of all checkpoints of a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Checkpoint;
use super::manifest::{
    FORMAT, Fingerprint, Manifest, PARAMETERS, STATE, VERSION, folder_name, optimizer_file, read_manifest, refuse,
    step_of,
};
use crate::distributed::World;
use crate::weights::{SaveOptions, save_safetensors_file, sync_folder, write_bytes_atomically};
use crate::{Error, Result, files};

/// Prefix of a checkpoint folder that is being written or removed; leftovers are deleted.
const TEMPORARY: &str = ".tmp-";
/// Prefix of a checkpoint folder while another of the same step takes its place.
const REPLACED: &str = ".old-";

/// Contents of a checkpoint to save with [`CheckpointManager::save`].
#[derive(Debug)]
pub struct Contents<'a, T> {
    /// Number of steps done.
    pub step: u64,
    /// The model.
    pub parameters: &'a BTreeMap<String, Tensor>,
    /// State of the optimizer, from [`crate::optim::AdamW::state`]; its `step` must equal [`Self::step`]. On several ranks
    /// it is the rank's own share.
    pub optimizer: &'a BTreeMap<String, Tensor>,
    /// Further state that a resumed run needs: loader position, seeds, configuration. JSON may change the last bit of
    /// floats: store the bit patterns of floats that must be exact.
    pub state: &'a T,
    /// Validation loss that selects the best checkpoint; lower is better.
    pub score: Option<f64>,
}

/// Manager of the folder of a run's checkpoints, which keeps the newest ones and the best one.
#[derive(Debug)]
pub struct CheckpointManager {
    folder: PathBuf,
    run: String,
    keep_last: usize,
}

/// The newest valid checkpoint, and the errors of newer ones.
#[derive(Debug)]
#[non_exhaustive]
pub struct Latest {
    /// The newest valid checkpoint of this run, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// One error for each newer checkpoint that was rejected, newest first.
    pub refused: Vec<Error>,
}

impl CheckpointManager {
    /// Opens `folder`, creating it, and removes the leftovers of a killed process.
    ///
    /// `run` identifies the run, for example by stage and model configuration: checkpoints of another run are rejected.
    /// `keep_last` is the number of newest checkpoints to keep, at least one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: impl AsRef<Path>, run: impl Into<String>, keep_last: usize) -> Result<Self> {
        let this = Self { keep_last: keep_last.max(1), ..Self::view(folder, run) };
        fs::create_dir_all(&this.folder).map_err(|e| Error::io(&this.folder, e))?;
        // Files and folders with other names are left alone.
        for name in this.entries()? {
            if let Some(original) = name.strip_prefix(REPLACED).filter(|name| step_of(name).is_some()) {
                this.finish_replacing(original)?;
            } else if name.strip_prefix(TEMPORARY).and_then(step_of).is_some() {
                remove(&this.folder.join(&name))?;
            }
        }
        Ok(this)
    }

    /// A read-only view of the checkpoints in `folder`, safe while a run writes there: nothing is created or removed.
    pub fn view(folder: impl AsRef<Path>, run: impl Into<String>) -> Self {
        Self { folder: folder.as_ref().to_path_buf(), run: run.into(), keep_last: 1 }
    }

    /// Writes a checkpoint and returns its folder. Then removes checkpoints that are neither among the newest nor the
    /// best, and checkpoints of later steps, which the run has left behind by resuming from an earlier step.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Checkpoint`] if `state` cannot be written as JSON.
    pub fn save<T: Serialize>(&self, contents: &Contents<'_, T>) -> Result<PathBuf> {
        self.save_in(&World::default(), contents)
    }

    /// As [`Self::save`], by all ranks of a run, which share the folder: each writes its share of the optimizer's state into
    /// the new folder, rank 0 everything else; then rank 0 gives the folder its name. All ranks call it.
    ///
    /// # Errors
    /// As [`Self::save`], the same on all ranks.
    pub fn save_in<T: Serialize>(&self, world: &World, contents: &Contents<'_, T>) -> Result<PathBuf> {
        let temporary = self.folder.join(format!("{TEMPORARY}{}", folder_name(contents.step)));
        world.from_first(|| {
            remove(&temporary)?;
            fs::create_dir(&temporary).map_err(|e| Error::io(&temporary, e))
        })?;
        let written = self.write(world, &temporary, contents);
        if written.is_err() && world.is_first() {
            // A full disk is the likely cause, so the partial folder is removed.
            fs::remove_dir_all(&temporary).ok();
        }
        written?;
        world.from_first(|| self.prune(contents.step))?;
        Ok(self.path(contents.step))
    }

    /// The folder of all checkpoints.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the checkpoint after `step` steps, whether it exists or not.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(folder_name(step))
    }

    /// Steps of all checkpoint folders, ascending, valid or not. Regular files with the name of a checkpoint are
    /// ignored.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn steps(&self) -> Result<Vec<u64>> {
        let step = |name: String| step_of(&name).filter(|_| self.folder.join(&name).is_dir());
        let mut steps: Vec<u64> = self.entries()?.into_iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Opens the checkpoint of a step.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the checkpoint is missing, damaged or of another run; the message names the newest
    /// valid one.
    pub fn load(&self, step: u64) -> Result<Checkpoint> {
        Checkpoint::open(&self.path(step), &self.run).map_err(|error| match (error, self.latest_valid()) {
            (Error::Checkpoint { path, message, source }, Ok(Latest { checkpoint: Some(other), .. })) => {
                let message = format!("{message}; the newest valid checkpoint is {}", other.path().display());
                Error::Checkpoint { path, message, source }
            }
            (error, _) => error,
        })
    }

    /// The newest valid checkpoint of this run.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn latest_valid(&self) -> Result<Latest> {
        self.latest_valid_where(|_| Ok(()))
    }

    /// The newest valid checkpoint of this run that `check` accepts, for example because its state can be deserialised.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn latest_valid_where(&self, check: impl Fn(&Checkpoint) -> Result<()>) -> Result<Latest> {
        let mut refused = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let checkpoint = Checkpoint::open(&self.path(step), &self.run);
            match checkpoint.and_then(|checkpoint| check(&checkpoint).map(|()| checkpoint)) {
                Ok(checkpoint) => return Ok(Latest { checkpoint: Some(checkpoint), refused }),
                Err(error) => refused.push(error),
            }
        }
        Ok(Latest { checkpoint: None, refused })
    }

    /// Step and state of the newest checkpoint of this run whose manifest can be read; the tensors are not checked.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn newest_state<T: DeserializeOwned>(&self) -> Result<Option<(u64, T)>> {
        let state = |step: u64| {
            let manifest = read_manifest(&self.path(step)).ok().filter(|manifest| manifest.run == self.run)?;
            Some((step, T::deserialize(manifest.state).ok()?))
        };
        Ok(self.steps()?.into_iter().rev().find_map(state))
    }

    /// Step of the checkpoint with the lowest score; the later step if scores are equal.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn best(&self) -> Result<Option<u64>> {
        let score =
            |step: u64| Some((read_manifest(&self.path(step)).ok()?.score.filter(|score| !score.is_nan())?, step));
        let scores = self.steps()?.into_iter().rev().filter_map(score);
        Ok(scores.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, step)| step))
    }

    /// State of the newest checkpoint of any run whose manifest can be read, with the identity of its run; the tensors are
    /// not checked.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub(in crate::train) fn newest_of_any_run<T: DeserializeOwned>(&self) -> Result<Option<(String, T)>> {
        if !self.folder.is_dir() {
            return Ok(None);
        }
        let state = |step: u64| {
            let manifest = read_manifest(&self.path(step)).ok()?;
            Some((manifest.run, T::deserialize(manifest.state).ok()?))
        };
        Ok(self.steps()?.into_iter().rev().find_map(state))
    }

    /// Writes the files of all ranks and gives the folder its name.
    fn write<T: Serialize>(&self, world: &World, folder: &Path, contents: &Contents<'_, T>) -> Result<()> {
        let own = world.agree(write_tensors(world, folder, contents))?;
        let files = world.gather_all(own)?.into_iter().flatten().collect();
        world.from_first(|| {
            self.write_manifest(folder, contents, files)?;
            self.publish(folder, contents.step)
        })
    }

    fn write_manifest<T: Serialize>(
        &self,
        folder: &Path,
        contents: &Contents<'_, T>,
        files: BTreeMap<String, Fingerprint>,
    ) -> Result<()> {
        let json =
            |e: serde_json::Error| refuse(folder, format!("its state cannot be serialised as JSON: {e}")).caused_by(e);
        let manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            checksum: None,
            run: self.run.clone(),
            step: contents.step,
            score: contents.score.filter(|score| score.is_finite()),
            files,
            state: serde_json::to_value(contents.state).map_err(json)?,
        };
        write_bytes_atomically(folder.join(STATE), &manifest.into_bytes().map_err(json)?)
    }

    /// Renames a complete temporary folder to its final name. An existing checkpoint of the step is first renamed to a
    /// [`REPLACED`] folder, see [`Self::finish_replacing`].
    fn publish(&self, temporary: &Path, step: u64) -> Result<()> {
        let path = self.path(step);
        let replaced = self.folder.join(format!("{REPLACED}{}", folder_name(step)));
        if files::exists(&path)? {
            rename(&path, &replaced)?;
        }
        rename(temporary, &path)?;
        sync_folder(&self.folder)?;
        remove(&replaced)
    }

    /// Finishes an interrupted replacement: restores the previous checkpoint if its successor was not renamed yet, and
    /// removes it otherwise.
    fn finish_replacing(&self, name: &str) -> Result<()> {
        let (replaced, path) = (self.folder.join(format!("{REPLACED}{name}")), self.folder.join(name));
        if files::exists(&path)? { remove(&replaced) } else { rename(&replaced, &path) }
    }

    fn prune(&self, newest: u64) -> Result<()> {
        let (mut current, later): (Vec<u64>, Vec<u64>) = self.steps()?.into_iter().partition(|step| *step <= newest);
        later.into_iter().try_for_each(|step| self.discard(step))?;
        current.truncate(current.len().saturating_sub(self.keep_last));
        let best = self.best()?;
        current.into_iter().filter(|step| Some(*step) != best).try_for_each(|step| self.discard(step))
    }

    /// Removes a checkpoint after renaming it, so that a partly removed checkpoint is not reported as damaged.
    fn discard(&self, step: u64) -> Result<()> {
        let temporary = self.folder.join(format!("{TEMPORARY}{}", folder_name(step)));
        rename(&self.path(step), &temporary)?;
        remove(&temporary)
    }

    fn entries(&self) -> Result<Vec<String>> {
        let io = |e| Error::io(&self.folder, e);
        let names = fs::read_dir(&self.folder).map_err(io)?.map(|entry| Ok(entry.map_err(io)?.file_name()));
        Ok(names.collect::<Result<Vec<_>>>()?.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }
}

/// Writes the tensors of a rank, and returns its files.
fn write_tensors<T>(world: &World, folder: &Path, contents: &Contents<'_, T>) -> Result<Vec<(String, Fingerprint)>> {
    if !folder.is_dir() {
        let message =
            format!("rank {} cannot see the folder: all ranks need one `output` that they share", world.rank());
        return Err(Error::checkpoint(folder, message));
    }
    let parameters = world.is_first().then(|| (PARAMETERS.to_string(), contents.parameters));
    let optimizer = (optimizer_file(world.rank(), world.size()), contents.optimizer);
    let write = |(name, tensors): (String, &BTreeMap<String, Tensor>)| {
        let path = folder.join(&name);
        save_safetensors_file(&path, tensors, &SaveOptions::default())?;
        Ok((name, Fingerprint::of(&path)?))
    };
    parameters.into_iter().chain([optimizer]).map(write).collect()
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io(from, e))
}

/// Removes a folder or file, if there is one.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map_err(|e| Error::io(path, e))
}
