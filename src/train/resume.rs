//! Resuming: selection of the checkpoint, and the state restored from it.

use serde::{Deserialize, Serialize};

use super::Run;
use super::checkpoint::{Checkpoint, CheckpointManager};
use crate::data::LoaderState;
use crate::weights::check_tensors;
use crate::{Error, Result};

/// State of a run in its checkpoints, in addition to parameters and optimizer moments.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct RunState {
    /// Position in the training data.
    pub loader: LoaderState,
    /// Bit pattern of the lowest validation loss so far, which is exact unlike a decimal number.
    pub best: Option<u64>,
    /// Evaluations since the lowest validation loss.
    pub stale: u64,
}

impl RunState {
    /// Takes an evaluation into account, and returns whether its loss is the lowest so far.
    pub fn update(&mut self, loss: f64) -> bool {
        let improved = loss.is_finite() && self.best.is_none_or(|best| loss < f64::from_bits(best));
        if improved {
            (self.best, self.stale) = (Some(loss.to_bits()), 0);
        } else {
            self.stale += 1;
        }
        improved
    }
}

impl Run {
    /// State that the run starts from: that of the newest valid checkpoint, whose parameters and optimizer state are
    /// loaded, or a fresh one if there is no checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] without `resume` if there are checkpoints, and with `resume` if none of them is valid.
    pub(super) fn starting_state(&mut self, checkpoints: &CheckpointManager, resume: bool) -> Result<RunState> {
        if !resume {
            return match checkpoints.steps()?.last() {
                None => Ok(RunState::default()),
                Some(step) => Err(Error::checkpoint(
                    checkpoints.path(*step),
                    "the run has checkpoints already: resume it (`Run::train` with `resume`), or choose another `output`",
                )),
            };
        }
        let Some(checkpoint) = self.newest_checkpoint(checkpoints)? else { return Ok(RunState::default()) };
        self.load(&checkpoint)?;
        tracing::info!(step = checkpoint.step(), path = %checkpoint.path().display(), "resumed");
        self.observers.notice(&format!("resumed from {}", checkpoint.path().display()));
        checkpoint.state()
    }

    /// The newest valid checkpoint of this run, if there is one; newer checkpoints that were rejected are named in
    /// notices.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there are checkpoints but none that can be resumed from.
    pub(super) fn newest_checkpoint(&mut self, checkpoints: &CheckpointManager) -> Result<Option<Checkpoint>> {
        let latest = checkpoints.latest_valid_where(|checkpoint| checkpoint.state::<RunState>().map(drop))?;
        for refused in &latest.refused {
            tracing::warn!(%refused, "checkpoint skipped");
            self.observers.notice(&format!("skipped checkpoint: {refused}"));
        }
        match (latest.checkpoint, latest.refused.into_iter().next()) {
            (None, Some(Error::Checkpoint { path, message, source })) => Err(Error::Checkpoint {
                path,
                message: format!(
                    "{message}; no other checkpoint can be resumed from: start again with another `output`"
                ),
                source,
            }),
            (None, Some(other)) => Err(other),
            (checkpoint, _) => Ok(checkpoint),
        }
    }

    /// Loads the parameters and the optimizer state of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Weights`] if the checkpoint holds other parameters than the model.
    pub(super) fn load(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let saved = checkpoint.parameters(&self.device)?;
        let found = saved.iter().map(|(name, values)| (name.clone(), values.dims().to_vec())).collect();
        check_tensors(&checkpoint.path().display().to_string(), &self.parameters.shapes(), &found)?;
        saved.iter().try_for_each(|(name, values)| self.parameters.set(name, values))?;
        self.trainer.optimizer_mut().load_state(&checkpoint.optimizer(&self.device)?)
    }
}
