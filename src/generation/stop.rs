//! The end of a generation: finish reasons, stop strings and cancellation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

/// The reason why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model produced this end-of-sequence id.
    EndOfSequence(u32),
    /// The text reached this stop string.
    StopString(String),
    /// The answer is complete by its [`Constraint`](super::Constraint), which allows no further token.
    Complete,
    /// `max_new_tokens`, or the model's context, is used up.
    Length,
    /// [`CancelToken::cancel`] was called.
    Cancelled,
    /// The time limit of the engine, [`EngineConfig::timeout`](super::EngineConfig::timeout), passed.
    TimedOut,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfSequence(id) => write!(f, "end of sequence (token {id})"),
            Self::StopString(text) => write!(f, "stop string {text:?}"),
            Self::Complete => f.write_str("complete"),
            Self::Length => f.write_str("length"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// A flag that ends a running generation, from another thread or from a callback. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks every generation that holds a clone to stop before its next token.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Looks for stop strings in a text that arrives in pieces.
///
/// Text that could still turn out to be the beginning of a stop string is held back.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// Text that a token adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPiece {
    /// Text that can no longer become part of a stop string.
    pub text: String,
    /// The stop string that follows `text`, if one was found.
    pub stop: Option<String>,
}

impl StopStrings {
    /// A search for any of `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece of text and returns what is safe to show.
    ///
    /// The stop string that begins first counts; text after it is dropped.
    pub fn push(&mut self, piece: &str) -> TextPiece {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s))).min_by_key(|(at, _)| *at);
        if let Some((at, stop)) = found {
            let stop = stop.clone();
            self.held.truncate(at);
            return TextPiece { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let undecided = self.held.split_off(self.held.len() - self.undecided_len());
        TextPiece { text: std::mem::replace(&mut self.held, undecided), stop: None }
    }

    /// The text held back, at the end of generation.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length in bytes of the longest end of the held text that begins a stop string.
    fn undecided_len(&self) -> usize {
        let longest = |stop: &String| {
            let most = self.held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| self.held.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        // It begins with the first byte of a character, so the held text may be cut there.
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}
