//! Objectives: the losses that training steps minimise, one file each.
//!
//! `distillation` is stage 1, `next_token` is stage 2 and the connector training before it, `contrastive` and
//! `language` train small teachers. The trainer knows no model, and a model knows no trainer.

mod contrastive;
mod distillation;
mod language;
mod next_token;

pub use contrastive::Contrastive;
pub(super) use distillation::select;
pub use distillation::{Distillation, DistillationWeights};
pub use language::Language;
pub use next_token::{NextToken, labelled_tail, next_token_counts, next_token_loss};

use std::ops::Add;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::batch::MultimodalBatch;

/// Counts of a batch or of all micro-batches of a step. Losses are divided by the counts of a whole step, so that a
/// step does not depend on how its samples are spread over micro-batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Sequences.
    pub samples: usize,
    /// Positions without padding: text, patches and newlines.
    pub tokens: usize,
    /// Positions of text.
    pub text_tokens: usize,
    /// Images and videos.
    pub visuals: usize,
    /// Image patches with a teacher feature, without newlines.
    pub patches: usize,
    /// Positions whose next token is a label.
    pub label_tokens: usize,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            samples: self.samples + other.samples,
            tokens: self.tokens + other.tokens,
            text_tokens: self.text_tokens + other.text_tokens,
            visuals: self.visuals + other.visuals,
            patches: self.patches + other.patches,
            label_tokens: self.label_tokens + other.label_tokens,
        }
    }
}

/// Share of one micro-batch in the loss of a step.
#[derive(Debug)]
pub struct Loss {
    /// Differentiable scalar; the shares of all micro-batches add up to the loss of the step.
    pub total: Tensor,
    /// Named summands, for logs.
    pub parts: Vec<(&'static str, f64)>,
}

/// Loss over batches, with its model and teachers inside; several threads may compute it at a time.
pub trait Objective: Send + Sync {
    /// Name in logs.
    fn name(&self) -> &'static str;

    /// Counts of a batch.
    ///
    /// # Errors
    /// If the batch lacks something that the objective needs, such as labels.
    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts>;

    /// The share of this batch in the loss of a step that holds `step` in all.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss>;

    /// Whether a parameter may lack a gradient in a step of these counts: the patch projection if no sample held an
    /// image, for example. Any other parameter without a gradient is an error.
    fn may_lack_gradient(&self, parameter: &str, step: &Counts) -> bool;
}

impl<O: Objective + ?Sized> Objective for Box<O> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts> {
        (**self).counts(batch)
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss> {
        (**self).loss(batch, step)
    }

    fn may_lack_gradient(&self, parameter: &str, step: &Counts) -> bool {
        (**self).may_lack_gradient(parameter, step)
    }
}

/// Counts that do not depend on the objective.
fn common_counts(batch: &MultimodalBatch) -> Result<Counts> {
    batch.validate()?;
    let samples = batch.layout.rows.iter().flatten();
    Ok(Counts {
        samples: samples.clone().count(),
        tokens: samples.map(|sample| sample.range.len()).sum(),
        text_tokens: batch.text_positions().len(),
        visuals: batch.visuals.len(),
        ..Counts::default()
    })
}

/// Whether a parameter gets gradients from images only.
fn only_for_pictures(parameter: &str) -> bool {
    ["model.patch_embed.", "model.pre_pos_embed", "model.image_newline", "distillation.vision."]
        .iter()
        .any(|prefix| parameter.starts_with(prefix))
}
