//! Checkpoints, evaluation and export of a run.

use serde::{Deserialize, Serialize};

use super::FloatType;
use crate::config::validate::at_least_one;
use crate::{Error, Result};

/// Checkpoints, evaluation and export of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RunConfig {
    /// Steps between checkpoints.
    #[serde(alias = "checkpoint_every")]
    pub save_steps: u64,
    /// Number of newest checkpoints that are kept, in addition to the best one; 0 counts as 1.
    #[serde(alias = "keep_last")]
    pub save_total_limit: usize,
    /// Steps between evaluations on the validation samples.
    #[serde(alias = "evaluate_every")]
    pub eval_steps: u64,
    /// Evaluations in a row without a lower validation loss after which the run ends early; never if absent.
    #[serde(alias = "patience")]
    pub early_stopping_patience: Option<u64>,
    /// Number of validation samples that the model answers at each evaluation, for people to read.
    #[serde(alias = "show")]
    pub num_eval_samples: usize,
    /// Steps between lines of progress where stderr is not a terminal; 0 counts as 1.
    #[serde(alias = "log_every")]
    pub logging_steps: u64,
    /// Dtype of the exported weights.
    #[serde(alias = "export")]
    pub export_dtype: FloatType,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            save_steps: 500,
            save_total_limit: 2,
            eval_steps: 500,
            early_stopping_patience: None,
            num_eval_samples: 4,
            logging_steps: 20,
            export_dtype: FloatType::F32,
        }
    }
}

impl RunConfig {
    /// `is_evaluated` says whether there are validation samples.
    pub(super) fn validate(&self, is_evaluated: bool) -> Result<()> {
        for (field, steps) in [("run.save_steps", self.save_steps), ("run.eval_steps", self.eval_steps)] {
            at_least_one(field, usize::try_from(steps).unwrap_or(usize::MAX))?;
        }
        match self.early_stopping_patience {
            Some(patience) if patience == 0 || !is_evaluated => {
                let message = format!("is {patience}, expected at least 1, and `data.validation` with samples");
                Err(Error::config("run.early_stopping_patience", message))
            }
            _ => Ok(()),
        }
    }
}
