//! The output of a generation: sequences and timings.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::FinishReason;

/// The answers to a batch of prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// The sequence of each row of the batch.
    pub sequences: Vec<GeneratedSequence>,
    /// Timings of the batch as a whole.
    pub timings: Timings,
}

/// The answer to one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GeneratedSequence {
    /// The text, without the stop string or end token that ended it.
    pub text: String,
    /// All generated token ids, an end token included.
    pub tokens: Vec<u32>,
    /// The reason why the sequence ended.
    pub finish_reason: FinishReason,
}

/// The answer to a batch of one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Answer {
    /// Text, token ids and finish reason.
    #[serde(flatten)]
    pub sequence: GeneratedSequence,
    /// Token counts and times.
    #[serde(flatten)]
    pub timings: Timings,
}

impl Answer {
    /// The text, without white space around it.
    pub fn text(&self) -> &str {
        self.sequence.text.trim()
    }
}

/// Token counts and times of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// Tokens of the prompts, text and image patches together, without padding.
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the KV cache already.
    pub cached_tokens: usize,
    /// Generated tokens of all rows.
    pub new_tokens: usize,
    /// Seconds from the start to the first token of every row.
    pub seconds_to_first_token: f64,
    /// Generated tokens per second after the first of each row; 0 if there were no more.
    pub tokens_per_second: f64,
    /// Seconds in all.
    pub seconds: f64,
}

/// The clock of a generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    first: Option<(Duration, usize)>,
    last: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), first: None, last: Duration::ZERO }
    }

    /// The moment at which the clock started.
    pub(super) fn beginning(&self) -> Instant {
        self.start
    }

    /// Records that every row has its next token, `new_tokens` in all.
    pub(super) fn step(&mut self, new_tokens: usize) {
        self.last = self.start.elapsed();
        self.first.get_or_insert((self.last, new_tokens));
    }

    pub(super) fn timings(&self, prompt_tokens: usize, cached_tokens: usize, new_tokens: usize) -> Timings {
        let (to_first, first_tokens) = self.first.unwrap_or_default();
        let decoding = (self.last - to_first).as_secs_f64();
        let later_tokens = (new_tokens - first_tokens) as f64;
        Timings {
            prompt_tokens,
            cached_tokens,
            new_tokens,
            seconds_to_first_token: to_first.as_secs_f64(),
            tokens_per_second: if decoding > 0.0 { later_tokens / decoding } else { 0.0 },
            seconds: self.last.as_secs_f64(),
        }
    }
}
