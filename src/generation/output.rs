//! What a generation made, and how long it took.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::FinishReason;

/// The answers to a batch of prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generation {
    /// One for each row of the batch.
    pub sequences: Vec<GeneratedSequence>,
    /// Of the batch as a whole.
    pub timings: Timings,
}

/// The answer to one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GeneratedSequence {
    /// The text, without the stop string or end token that ended it.
    pub text: String,
    /// All new ids, an end token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The answer to a batch of one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Text, ids and reason.
    #[serde(flatten)]
    pub sequence: GeneratedSequence,
    /// Counts and times.
    #[serde(flatten)]
    pub timings: Timings,
}

impl Answer {
    /// The text, without white space around it.
    pub fn text(&self) -> &str {
        self.sequence.text.trim()
    }
}

/// Counts and times of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timings {
    /// Tokens given, text and image patches together, without padding.
    pub prompt_tokens: usize,
    /// Those of them that an earlier turn had left in the cache.
    pub cached_tokens: usize,
    /// Tokens generated, all rows together.
    pub new_tokens: usize,
    /// Seconds from the start until the first token of each row was picked.
    pub seconds_to_first_token: f64,
    /// New tokens per second after the first ones; 0 if there were no more.
    pub tokens_per_second: f64,
    /// Seconds in all.
    pub seconds: f64,
}

/// Takes the times while a generation runs.
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

    /// Notes that every row has its next token, `new_tokens` in all.
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
