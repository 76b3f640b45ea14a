//! Log probabilities of tokens.

use super::TokenLogprob;
use crate::generation::sampler::likeliest;

/// The log probability of token `id` and of the `count` likeliest tokens under the softmax of `logits`.
pub(super) fn token_logprob(logits: &[f32], id: u32, count: usize) -> TokenLogprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let total = f64::from(max) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - total) as f32;
    let alternatives = likeliest(logits, count).into_iter().map(|(id, logit)| (id, logprob(logit))).collect();
    let own = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    TokenLogprob { id, logprob: logprob(own), alternatives }
}
