//! Objective of stage 2 and of the connector training before it: next-token prediction on the assistant's turns.

use super::{Counts, Loss, Objective, common_counts, only_for_pictures};
use crate::Result;
use crate::batch::{IGNORE_INDEX, MultimodalBatch};
use crate::loss::head_cross_entropy;
use crate::model::{ADAPTER_PREFIX, HaploVl, LanguageHead};
use candle_core::Tensor;

/// Cross-entropy of the next token of a whole HaploVL, over labelled positions.
#[derive(Debug)]
pub struct NextToken {
    model: HaploVl,
}

impl NextToken {
    /// The objective of this model; the builder of the model decides which of its parameters are trained.
    pub fn new(model: HaploVl) -> Self {
        Self { model }
    }

    /// The model that is trained.
    pub fn model(&self) -> &HaploVl {
        &self.model
    }
}

impl Objective for NextToken {
    fn name(&self) -> &'static str {
        "next_token"
    }

    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts> {
        next_token_counts(batch)
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss> {
        let labels = batch.next_token_labels()?;
        let hidden = self.model.last_hidden_states(batch, labelled_tail(&labels, batch.layout.seq_len))?;
        next_token_loss(&hidden, self.model.lm_head(), &labels, step)
    }

    fn may_lack_gradient(&self, parameter: &str, step: &Counts) -> bool {
        step.visuals == 0 && only_for_pictures(parameter.strip_prefix(ADAPTER_PREFIX).unwrap_or(parameter))
    }
}

/// Counts of a batch for a next-token loss.
///
/// # Errors
/// [`Error::Batch`](crate::Error::Batch) if the batch is invalid or has no labels.
pub fn next_token_counts(batch: &MultimodalBatch) -> Result<Counts> {
    let label_tokens = batch.next_token_labels()?.into_iter().filter(|&label| label != IGNORE_INDEX).count();
    Ok(Counts { label_tokens, ..common_counts(batch)? })
}

/// Number of last positions of each row that hold all of these labels (batch * seq_len), at least 1: the positions whose
/// hidden states [`next_token_loss`] needs.
pub fn labelled_tail(labels: &[u32], seq_len: usize) -> usize {
    let is_label = |label: &u32| *label != IGNORE_INDEX;
    let first = labels.chunks(seq_len.max(1)).filter_map(|row| row.iter().position(is_label)).min();
    first.map_or(1, |first| seq_len - first)
}

/// The share of a batch in the mean next-token loss of a step; `hidden` is (batch, count, width), of the last `count`
/// positions of each row, which hold all of `labels` (batch * seq_len).
///
/// # Errors
/// [`Error::Batch`](crate::Error::Batch) if shapes do not match, or a label is outside the vocabulary.
pub fn next_token_loss(hidden: &Tensor, head: &LanguageHead, labels: &[u32], step: &Counts) -> Result<Loss> {
    let (rows, count, _) = hidden.dims3()?;
    let seq_len = labels.len().checked_div(rows).unwrap_or_default().max(1);
    let tail = labels.chunks(seq_len).flat_map(|row| &row[row.len().saturating_sub(count)..]).copied().collect();
    let tail = Tensor::from_vec(tail, rows * count, hidden.device())?;
    let total =
        (head_cross_entropy(&hidden.flatten_to(1)?, head.linear(), &tail)?.sum / step.label_tokens.max(1) as f64)?;
    Ok(Loss { total, parts: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labelled_tail_starts_at_the_first_label_of_any_row() {
        const NONE: u32 = IGNORE_INDEX;
        assert_eq!(labelled_tail(&[NONE, NONE, 7, NONE, NONE, NONE, NONE, 8], 4), 2);
        assert_eq!(labelled_tail(&[NONE, NONE, NONE, NONE, NONE, 7, NONE, NONE], 4), 3, "a row without labels");
        assert_eq!(labelled_tail(&[5, NONE, NONE, 6], 4), 4);
        assert_eq!(labelled_tail(&[NONE; 8], 4), 1);
        assert_eq!(labelled_tail(&[], 0), 1);
    }
}
