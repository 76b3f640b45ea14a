//! Settings of the engine.

use std::time::Duration;

use crate::config::at_most;
use crate::{Error, Result, memory};

/// Settings of the engine: how many requests run, how many wait, how much memory KV caches may take, and how long a
/// request may take.
///
/// ```
/// use haplovl::pipeline::EngineConfig;
///
/// let config = EngineConfig::default().with_max_batch(4).with_kv_cache_bytes(1 << 30);
/// assert_eq!((config.max_batch, config.queue), (4, 64));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Sequences that are decoded together, 1 to [`Self::MAX_BATCH`].
    pub max_batch: usize,
    /// Requests that may wait while `max_batch` others run; a further one is refused.
    pub queue: usize,
    /// Bytes of keys and values in all: those of requests that run, and those kept for later prompts. `None`: half of
    /// the memory that is free when the engine starts.
    pub kv_cache_bytes: Option<usize>,
    /// Longest time from submission to the end of an answer; a request that takes longer ends as
    /// [`TimedOut`](crate::generation::FinishReason::TimedOut). `None`: no limit.
    pub timeout: Option<Duration>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_batch: 8, queue: 64, kv_cache_bytes: None, timeout: None }
    }
}

impl EngineConfig {
    /// Largest `max_batch`.
    pub const MAX_BATCH: usize = 256;
    /// Largest `queue`.
    pub const MAX_QUEUE: usize = 1 << 16;

    /// The same settings with this number of sequences decoded together.
    #[must_use]
    pub fn with_max_batch(self, max_batch: usize) -> Self {
        Self { max_batch, ..self }
    }

    /// The same settings with this number of waiting requests.
    #[must_use]
    pub fn with_queue(self, queue: usize) -> Self {
        Self { queue, ..self }
    }

    /// The same settings with this memory for keys and values.
    #[must_use]
    pub fn with_kv_cache_bytes(self, bytes: impl Into<Option<usize>>) -> Self {
        Self { kv_cache_bytes: bytes.into(), ..self }
    }

    /// The same settings with this time limit of a request.
    #[must_use]
    pub fn with_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { timeout: timeout.into(), ..self }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=Self::MAX_BATCH).contains(&self.max_batch) {
            let message = format!("is {}, expected 1 to {}", self.max_batch, Self::MAX_BATCH);
            return Err(Error::config("max_batch", message));
        }
        at_most("queue", self.queue, Self::MAX_QUEUE)?;
        if self.kv_cache_bytes == Some(0) {
            return Err(Error::config("kv_cache_bytes", "is 0, expected memory for at least one answer, or nothing"));
        }
        if self.timeout == Some(Duration::ZERO) {
            return Err(Error::config("timeout", "is 0, expected a time above 0, or nothing for no limit"));
        }
        Ok(())
    }

    /// Bytes of keys and values in all, where none are set by the memory that is free now.
    pub(super) fn kv_budget(&self) -> usize {
        // Where the system does not say how much is free.
        const UNKNOWN: f64 = (2u64 << 30) as f64;
        let half = || (memory::available_bytes().unwrap_or(2.0 * UNKNOWN) / 2.0).max(0.0) as usize;
        self.kv_cache_bytes.unwrap_or_else(half)
    }
}
