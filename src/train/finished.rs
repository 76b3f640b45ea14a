//! Finished runs, found without building them.

use std::path::PathBuf;

use super::checkpoint::CheckpointManager;
use super::recipe::Recipe;
use super::resume::RunState;
use super::run_length::RunLength;
use crate::model::Adapter;
use crate::weights::SafetensorsFiles;
use crate::{Error, Result};

/// Run whose steps are all done and whose model is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FinishedRun {
    /// Folder of the exported model.
    pub export: PathBuf,
    /// Steps done, if a checkpoint or the run's `recipe.toml` tells.
    pub step: Option<u64>,
    /// Whether more steps are done than the recipe asks for now.
    pub is_longer: bool,
}

impl Recipe {
    /// The run of this recipe, if it is finished: there is nothing left to train, or early stopping ended it. A recipe
    /// with more steps or more epochs than were trained is not finished, and [`Run::train`](super::Run::train) with
    /// `resume` goes on.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is an export but no checkpoint to go on from, and [`Error::Io`] if the folder of
    /// checkpoints cannot be read.
    pub fn finished_run(&self) -> Result<Option<FinishedRun>> {
        let output = self.output_folder();
        let export = output.join("export");
        // An export writes the weights last.
        let weights = if self.adapter.is_some() { export.join(Adapter::WEIGHTS) } else { export.clone() };
        if SafetensorsFiles::open(&weights).is_err() {
            return Ok(None);
        }
        // On another number of ranks, the identity of the checkpoints holds.
        let identity = self.clone().on_ranks(1)?.0.identity()?;
        let checkpoints = CheckpointManager::view(output.join("checkpoints"), identity);
        if !checkpoints.folder().is_dir() || checkpoints.steps()?.is_empty() {
            return self.finished_without_checkpoints(export);
        }
        // Checkpoints of another recipe are for `Run::train` to refuse.
        let Some((step, state)) = checkpoints.newest_state::<RunState>()? else { return Ok(None) };
        let Some(length) = RunLength::known(&self.update, state.length) else { return Ok(None) };
        let is_extended = state.length.is_some_and(|before| length.steps > before.steps);
        let gave_up = state.gave_up(self.run.early_stopping_patience) && !is_extended;
        let finished = FinishedRun { export, step: Some(step), is_longer: step > length.steps };
        Ok((step >= length.steps || gave_up).then_some(finished))
    }

    /// A run whose checkpoints were removed is finished, unless its own `recipe.toml` has fewer steps.
    fn finished_without_checkpoints(&self, export: PathBuf) -> Result<Option<FinishedRun>> {
        let trained = Self::read(self.output_folder().join("recipe.toml"), &[]).ok();
        let step = trained.and_then(|recipe| recipe.update.steps);
        match (step, self.update.steps) {
            (Some(done), Some(wanted)) if wanted > done => {
                let message = format!(
                    "there is an export after {done} steps but no checkpoint, so that the run cannot go on to {wanted}: set \
                     another `output`, and the export as `stage.init_from.stage`"
                );
                Err(Error::checkpoint(self.output_folder().join("checkpoints"), message))
            }
            (done, wanted) => {
                let is_longer = done.zip(wanted).is_some_and(|(done, wanted)| done > wanted);
                Ok(Some(FinishedRun { export, step, is_longer }))
            }
        }
    }
}
