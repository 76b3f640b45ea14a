//! Next-token prediction on the assistant's words: stage 2, and the alignment of the connector before it.

use super::objective::{Counts, Loss, Objective, common_counts, only_for_pictures};
use crate::Result;
use crate::batch::{IGNORE_INDEX, MultimodalBatch};
use crate::loss::linear_cross_entropy;
use crate::model::HaploVl;
use candle_core::Tensor;

/// Cross-entropy of the next token of a whole HaploVL, over labelled positions.
#[derive(Debug)]
pub struct NextToken {
    model: HaploVl,
}

impl NextToken {
    /// The objective of this model; which of its parameters are trained is up to how it was built.
    pub fn new(model: HaploVl) -> Self {
        Self { model }
    }

    /// The model in training.
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
        let hidden = self.model.last_hidden_states(batch, labelled_tail(batch)?)?;
        let head = self.model.lm_head().weight()?.to_dtype(hidden.dtype())?;
        next_token_loss(&hidden, &head, batch, step)
    }

    fn may_lack_gradient(&self, parameter: &str, step: &Counts) -> bool {
        step.visuals == 0 && only_for_pictures(parameter)
    }
}

/// What a batch holds for a next-token loss.
pub(super) fn next_token_counts(batch: &MultimodalBatch) -> Result<Counts> {
    let label_tokens = batch.next_token_labels()?.into_iter().filter(|&label| label != IGNORE_INDEX).count();
    Ok(Counts { label_tokens, ..common_counts(batch)? })
}

/// From how many positions before its end on each row holds all its labels.
fn labelled_tail(batch: &MultimodalBatch) -> Result<usize> {
    let (labels, seq_len) = (batch.next_token_labels()?, batch.layout.seq_len);
    let is_label = |label: &u32| *label != IGNORE_INDEX;
    let first = labels.chunks(seq_len.max(1)).filter_map(|row| row.iter().position(is_label)).min();
    Ok(first.map_or(1, |first| seq_len - first))
}

/// The share of a batch in the mean next-token loss of a step; `hidden` is (batch, count, width), of the last `count`
/// positions, which hold all labels.
pub(super) fn next_token_loss(hidden: &Tensor, head: &Tensor, batch: &MultimodalBatch, step: &Counts) -> Result<Loss> {
    let (rows, count, _) = hidden.dims3()?;
    let (labels, seq_len) = (batch.next_token_labels()?, batch.layout.seq_len);
    let labels = labels.chunks(seq_len.max(1)).flat_map(|row| &row[seq_len - count..]).copied().collect();
    let labels = Tensor::from_vec(labels, rows * count, hidden.device())?;
    let hidden = &hidden.flatten_to(1)?;
    let total = (linear_cross_entropy(hidden, head, &labels)?.sum / step.label_tokens.max(1) as f64)?;
    Ok(Loss { total, parts: vec![] })
}
