//! How a training run ended.

use std::path::{Path, PathBuf};

use super::resume::RunState;

/// How a training run ended without an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// All steps are done and the model is exported.
    Finished {
        /// Folder of the exported model.
        export: PathBuf,
    },
    /// The run was asked to stop and can be resumed.
    Stopped {
        /// Steps done.
        step: u64,
        /// Checkpoint of that step; `None` if no step is done yet.
        checkpoint: Option<PathBuf>,
    },
    /// The validation loss no longer fell (see
    /// [`early_stopping_patience`](super::RunConfig::early_stopping_patience)), and the best model is exported.
    GaveUp {
        /// Steps done.
        step: u64,
        /// Step of the exported parameters.
        best_step: u64,
        /// Folder of the exported model.
        export: PathBuf,
    },
}

impl Outcome {
    /// Folder of the exported model, if the run exported one.
    pub fn export(&self) -> Option<&Path> {
        match self {
            Self::Finished { export } | Self::GaveUp { export, .. } => Some(export),
            Self::Stopped { .. } => None,
        }
    }
}

/// Training samples that a run skipped or changed, each counted once over the whole run, resumed parts included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataReport {
    /// Different samples seen, good and bad.
    pub seen: u64,
    /// Bad samples, which were skipped.
    pub bad: u64,
    /// Samples whose last answer was cut to fit `data.max_length`.
    pub cut: u64,
}

impl DataReport {
    pub(super) fn new(state: &RunState) -> Self {
        let loader = &state.loader;
        Self { seen: loader.different(), bad: loader.bad, cut: state.cut.len() }
    }

    /// A line about the samples, if there is something to say.
    pub(super) fn notice(&self) -> Option<String> {
        let Self { seen, bad, cut } = self;
        let said = *bad > 0 || *cut > 0;
        said.then(|| format!("{seen} samples seen; bad and skipped: {bad}; answers cut at the end: {cut}"))
    }
}
