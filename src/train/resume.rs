//! Resuming: selection of the checkpoint, and the state restored from it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Run;
use super::checkpoint::{Checkpoint, CheckpointManager};
use super::run_length::RunLength;
use crate::data::{IndexSet, LoaderState};
use crate::weights::check_tensors;
use crate::{Error, Result};

/// State of a run in its checkpoints, in addition to parameters and optimizer moments.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RunState {
    /// Position in the training data.
    pub loader: LoaderState,
    /// Bit pattern of the lowest validation loss so far, which is exact unlike a decimal number.
    pub best: Option<u64>,
    /// Evaluations since the lowest validation loss.
    pub stale: u64,
    /// Length of the run; states of the first version of checkpoints lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<RunLength>,
    /// Training samples whose answers were cut.
    #[serde(default, skip_serializing_if = "IndexSet::is_empty")]
    pub cut: IndexSet,
    /// Micro-batches of a step, unless one rank takes as many as the recipe says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dealt: Option<Dealt>,
}

/// Micro-batches of a step of a run on several ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dealt {
    /// `update.gradient_accumulation_steps` of the recipe.
    pub per_rank: usize,
    /// Those of all ranks when the run began.
    pub all: usize,
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

    /// Whether early stopping applies: the validation loss has not fallen for `patience` evaluations.
    pub fn gave_up(&self, patience: Option<u64>) -> bool {
        patience.is_some_and(|patience| self.stale >= patience)
    }
}

/// Checkpoint of a run to export, see [`Run::export_checkpoint`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointChoice {
    /// The newest valid one.
    #[default]
    Newest,
    /// The one with the lowest validation loss.
    Best,
    /// The one after this many steps.
    Step(u64),
}

/// Steps as a list, the newest ones if there are many.
fn listed(steps: &[u64]) -> String {
    const LISTED: usize = 10;
    let shown = steps.get(steps.len().saturating_sub(LISTED)..).unwrap_or_default();
    let shown = shown.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if steps.len() > LISTED { format!("steps .., {shown}") } else { format!("steps {shown}") }
}

impl Run {
    /// State that the run starts from: that of the newest valid checkpoint, whose parameters and optimizer state are
    /// loaded, or a fresh one if there is no checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] without `resume` if there are checkpoints, and with `resume` if none of them is valid.
    pub(super) fn starting_state(&mut self, checkpoints: &CheckpointManager, resume: bool) -> Result<RunState> {
        let fresh = RunState { length: Some(self.length), dealt: self.dealt(), ..RunState::default() };
        if !resume {
            return match checkpoints.steps()?.last() {
                None => Ok(fresh),
                Some(step) => Err(Error::checkpoint(
                    checkpoints.path(*step),
                    "the run has checkpoints already: resume it (`Run::train` with `resume`), or choose another `output`",
                )),
            };
        }
        let found = self.newest_checkpoint(checkpoints);
        let found = self.trainer.world().agree(found)?;
        self.check_same_step(found.as_ref().map(Checkpoint::step))?;
        let Some(checkpoint) = found else { return Ok(fresh) };
        self.load(&checkpoint)?;
        tracing::info!(step = checkpoint.step(), path = %checkpoint.path().display(), "resumed");
        self.observers.notice(&format!("resumed from {}", checkpoint.path().display()));
        let mut state: RunState = checkpoint.state()?;
        state.dealt = self.dealt();
        self.set_length(&mut state, checkpoint.step());
        Ok(state)
    }

    /// Rejects ranks that see different checkpoints, as they do without a shared folder.
    fn check_same_step(&self, own: Option<u64>) -> Result<()> {
        let steps = self.trainer.world().gather_all(own)?;
        if steps.iter().all(|step| *step == own) {
            return Ok(());
        }
        let listed = |step: &Option<u64>| step.map_or_else(|| "none".into(), |step| step.to_string());
        let steps = steps.iter().map(listed).collect::<Vec<_>>().join(", ");
        let message = format!("the ranks see checkpoints of different steps ({steps}): give all one shared `output`");
        Err(Error::checkpoint(self.recipe.output_folder(), message))
    }

    /// Micro-batches of a step, unless one rank takes as many as the recipe says.
    fn dealt(&self) -> Option<Dealt> {
        let dealt = Dealt { per_rank: self.per_rank, all: self.recipe.update.gradient_accumulation_steps };
        (dealt.per_rank != dealt.all || self.trainer.world().size() > 1).then_some(dealt)
    }

    /// Sets the length of a resumed run, which may differ from that of the checkpoint, and says so if it does.
    fn set_length(&mut self, state: &mut RunState, done: u64) {
        self.length = RunLength::known(&self.recipe.update, state.length).unwrap_or(self.length);
        let (steps, before) = (self.length.steps, state.length.map(|length| length.steps));
        self.trainer.set_total_steps(steps);
        self.facts.data.steps = steps;
        state.length = Some(self.length);
        if steps < done {
            let message = "steps are done already, more than the recipe's";
            self.observers.notice(&format!("{done} {message} {steps}: the run ends with the model after step {done}"));
        } else if let Some(before) = before.filter(|before| *before != steps) {
            self.observers.notice(&format!(
                "the run has {steps} steps now instead of {before}: the learning rate schedule spans all {steps}"
            ));
        }
        if before.is_some_and(|before| steps > before) && state.gave_up(self.recipe.run.early_stopping_patience) {
            state.stale = 0;
            self.observers
                .notice("the run ended early and is extended: early stopping counts evaluations from here on");
        }
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

    /// The checkpoint to export.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is none, naming the steps that there are.
    pub(super) fn chosen_checkpoint(
        &mut self,
        checkpoints: &CheckpointManager,
        choice: CheckpointChoice,
    ) -> Result<Checkpoint> {
        let steps = if checkpoints.folder().is_dir() { checkpoints.steps()? } else { Vec::new() };
        let refuse = |message: String| Err(Error::checkpoint(checkpoints.folder(), message));
        if steps.is_empty() {
            return refuse("there is no checkpoint of this recipe yet: wait for the first one, or train".into());
        }
        let step = match choice {
            CheckpointChoice::Newest => None,
            CheckpointChoice::Step(step) => Some(step),
            CheckpointChoice::Best => match checkpoints.best()? {
                Some(step) => Some(step),
                None => return refuse("no checkpoint has a validation loss: set `data.validation`".into()),
            },
        };
        match step {
            Some(step) if steps.contains(&step) => checkpoints.load(step),
            Some(step) => {
                refuse(format!("there is no checkpoint of step {step}; there are those of {}", listed(&steps)))
            }
            None => match self.newest_checkpoint(checkpoints)? {
                Some(checkpoint) => Ok(checkpoint),
                None => refuse("there is no checkpoint of this recipe any more".into()),
            },
        }
    }

    /// Loads the parameters of a checkpoint, and the state of the optimizer as far as this rank holds it. All ranks call it.
    ///
    /// # Errors
    /// [`Error::Weights`] if the checkpoint holds other parameters than the model.
    pub(super) fn load(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let saved = checkpoint.parameters(&self.device)?;
        let found = saved.iter().map(|(name, values)| (name.clone(), values.dims().to_vec())).collect();
        check_tensors(&checkpoint.path().display().to_string(), &self.parameters.shapes(), &found)?;
        saved.iter().try_for_each(|(name, values)| self.parameters.set(name, values))?;
        let own: BTreeSet<String> = self.trainer.optimizer().state_names().collect();
        let all = self.trainer.world().gather_all(own.clone())?;
        // What no rank expects is loaded too, and refused.
        let is_of_another = |name: &str| !own.contains(name) && all.iter().any(|names| names.contains(name));
        let state = checkpoint.optimizer_where(&self.device, |name| !is_of_another(name))?;
        self.trainer.optimizer_mut().load_state(&state)
    }
}
