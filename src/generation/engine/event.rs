//! What a request reports while it runs.

use crate::Error;
use crate::generation::{FinishReason, Timings};

/// A report of a request under way: [`Self::Started`] at most once, then texts, then [`Self::Finished`] or
/// [`Self::Failed`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The prefill of the prompt began. A request that ends while it waits never starts.
    Started {
        /// Tokens of the prompt, text and image patches together.
        prompt_tokens: usize,
        /// Prompt tokens whose keys and values were in the prefix cache.
        cached_tokens: usize,
    },
    /// New text, of whole characters.
    Text {
        /// The text; empty only where tokens without text are reported at the end.
        text: String,
        /// The tokens since the last text, if the request asked for log probabilities. The token that ended the answer
        /// is not among them.
        tokens: Vec<TokenLogprob>,
    },
    /// The answer is complete, cancelled or out of time.
    Finished(Finished),
    /// The request failed; others go on.
    Failed(Error),
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Finished {
    /// The reason why the answer ended.
    pub reason: FinishReason,
    /// All generated token ids, an end token included.
    pub tokens: Vec<u32>,
    /// Token counts, and times since the submission.
    pub timings: Timings,
    /// Seconds from the submission to the start of the prefill, or to the end of a request that never started.
    pub queue_seconds: f64,
}

/// Log probability of a token: of the softmax of the model's logits, before the constraint, penalties,
/// temperature and filters.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its natural log probability.
    pub logprob: f32,
    /// The likeliest tokens with their log probabilities, likeliest first; the token may be among them.
    pub alternatives: Vec<(u32, f32)>,
}
