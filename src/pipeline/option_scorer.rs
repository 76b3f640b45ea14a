//! Likelihood of given answers.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;

use super::LoadedModel;
use crate::batch::IGNORE_INDEX;
use crate::generation::PrefixCache;
use crate::processor::{Content, Conversation, Message};
use crate::{Error, Result};

/// A scorer of given answers, such as the options of a multiple-choice question, by their likelihood.
///
/// The KV cache of the last prompt is kept: all answers to it, and another question about the same images, do not compute
/// the images again.
pub struct OptionScorer {
    model: LoadedModel,
    cache: PrefixCache,
}

impl OptionScorer {
    /// A scorer with an empty cache.
    pub fn new(model: &LoadedModel) -> Self {
        Self { model: model.clone(), cache: PrefixCache::default() }
    }

    /// The mean log probability (natural, 0 at most) of the tokens of each answer to a conversation that awaits one, the
    /// token that ends the turn included. Means do not favour short answers.
    ///
    /// # Errors
    /// If the conversation does not fit the model or the context, for an answer without a token, and for logits that
    /// are NaN.
    pub fn log_likelihoods<A: AsRef<str>>(&mut self, conversation: &Conversation, answers: &[A]) -> Result<Vec<f64>> {
        let batch = self.model.batch(std::slice::from_ref(conversation))?;
        let first = self.cache.prefill(self.model.model(), &batch)?;
        let score = |answer: &A| {
            self.cache.rewind();
            let tokens = self.answer_tokens(answer.as_ref())?;
            self.log_likelihood(&first, &tokens)
        };
        answers.iter().map(score).collect()
    }

    fn log_likelihood(&mut self, first: &Tensor, tokens: &[u32]) -> Result<f64> {
        let mut sum = log_probability(first, tokens.first().copied())?;
        for (token, next) in tokens.iter().zip(tokens.iter().skip(1)) {
            sum += log_probability(&self.cache.decode(self.model.model(), *token)?, Some(*next))?;
        }
        Ok(sum / tokens.len() as f64)
    }

    /// The tokens of an answer as the assistant's turn, which do not depend on the question.
    fn answer_tokens(&self, answer: &str) -> Result<Vec<u32>> {
        let turns = [Message::user([Content::from("?")]), Message::assistant(answer)];
        let sequence = self.model.processor().training_sequence(&turns.into_iter().collect())?;
        let learned = |(id, label): (u32, u32)| (label != IGNORE_INDEX).then_some(id);
        let labels = sequence.labels.unwrap_or_default();
        Ok(sequence.input_ids.into_iter().zip(labels).filter_map(learned).collect())
    }
}

/// The log probability of a token by the logits (1, vocab_size) before it.
fn log_probability(logits: &Tensor, token: Option<u32>) -> Result<f64> {
    let empty = || Error::prompt("has an answer to score without any token: give it a text");
    let token = token.ok_or_else(empty)? as usize;
    let probabilities = log_softmax(&logits.to_dtype(DType::F32)?, D::Minus1)?.flatten_all()?;
    let found = f64::from(probabilities.get(token)?.to_scalar::<f32>()?);
    if found.is_nan() {
        return Err(Error::generation("the logits are NaN: load the model in f32, or check its weights"));
    }
    Ok(found)
}
