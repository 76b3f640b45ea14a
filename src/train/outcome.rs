//! How a training run ended.

use std::path::{Path, PathBuf};

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
