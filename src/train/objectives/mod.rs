//! What a training step minimises: the trainer knows no model, and a model knows no trainer.

mod contrastive;
mod distillation;
mod language;
mod next_token;

pub use contrastive::Contrastive;
pub(super) use distillation::select;
pub use distillation::{Distillation, DistillationWeights};
pub use language::Language;
pub use next_token::NextToken;

use std::ops::Add;

use candle_core::Tensor;

use crate::Result;
use crate::batch::MultimodalBatch;

/// How much of everything a batch holds. Losses are divided by the counts of a whole step, so that a step does not
/// depend on how its samples are spread over micro-batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sequences.
    pub samples: usize,
    /// Positions that hold something: text, patches and newlines.
    pub tokens: usize,
    /// Positions of text.
    pub text_tokens: usize,
    /// Pictures and videos.
    pub visuals: usize,
    /// Patches (without newlines) that a teacher has something to say of.
    pub patches: usize,
    /// Positions whose next token counts in the loss.
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

/// The share of a step's loss that one micro-batch brings.
#[derive(Debug)]
pub struct Loss {
    /// A scalar, differentiable; the shares of all micro-batches add up to the loss of the step.
    pub total: Tensor,
    /// Named summands, for people to look at.
    pub parts: Vec<(&'static str, f64)>,
}

/// A loss over batches, with its model and teachers inside; several threads may ask for it at a time.
pub trait Objective: Send + Sync {
    /// What it is called in logs.
    fn name(&self) -> &'static str;

    /// What the batch holds.
    ///
    /// # Errors
    /// If the batch lacks something that the objective needs, such as labels.
    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts>;

    /// The share of this batch in the loss of a step that holds `step` in all.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss>;

    /// Whether the parameter may go without gradient in a step of these counts: the patch projection if no sample held
    /// a picture, for example. Any other parameter without gradient is an error.
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

/// Whether the parameter is one that only pictures reach.
fn only_for_pictures(parameter: &str) -> bool {
    ["model.patch_embed.", "model.pre_pos_embed", "model.image_newline", "distillation.vision."]
        .iter()
        .any(|prefix| parameter.starts_with(prefix))
}
