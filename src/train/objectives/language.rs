//! Objective of the stage `language`: next-token prediction of a language model alone.

use super::next_token::{next_token_counts, next_token_loss};
use super::{Counts, Loss, Objective};
use crate::Result;
use crate::batch::MultimodalBatch;
use crate::model::LanguageModel;

/// Cross-entropy of the next token over labelled positions of text.
#[derive(Debug)]
pub struct Language {
    model: LanguageModel,
}

impl Language {
    /// The objective of this model.
    pub fn new(model: LanguageModel) -> Self {
        Self { model }
    }
}

impl Objective for Language {
    fn name(&self) -> &'static str {
        "language"
    }

    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts> {
        next_token_counts(batch)
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss> {
        let embeddings = self.model.embed(&batch.input_ids)?;
        let hidden = self.model.hidden_states(&embeddings, &batch.layout)?;
        next_token_loss(&hidden, self.model.lm_head(), &batch.next_token_labels()?, step)
    }

    fn may_lack_gradient(&self, _parameter: &str, _step: &Counts) -> bool {
        false
    }
}
