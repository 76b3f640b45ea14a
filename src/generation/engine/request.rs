//! Requests, and the reasons to refuse one.

use std::fmt;
use std::sync::Arc;

use crate::config::GenerationConfig;
use crate::generation::Constraint;
use crate::{Error, Result};

/// A request for one answer to a prompt of type `P`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request<P> {
    /// The prompt.
    pub prompt: P,
    /// Sampling and limits of the answer.
    pub generation: GenerationConfig,
    /// Random stream of the seed. Several answers to one prompt have one seed and streams 0, 1, 2, ...
    pub random_stream: u64,
    /// Number of alternatives whose log probabilities are reported beside each token's own, up to
    /// [`Self::MAX_LOGPROBS`]; `None` reports none.
    pub logprobs: Option<usize>,
    /// Name of the adapter that answers; `None` for the model itself.
    pub adapter: Option<String>,
    /// What the answer has to be; `None` for any answer. [`Self::generation`] holds for the tokens that are allowed.
    pub constraint: Option<Arc<dyn Constraint>>,
}

impl<P> Request<P> {
    /// Largest number of alternatives in `logprobs`.
    pub const MAX_LOGPROBS: usize = 20;

    /// A request with stream 0 and without log probabilities.
    pub fn new(prompt: P, generation: GenerationConfig) -> Self {
        Self { prompt, generation, random_stream: 0, logprobs: None, adapter: None, constraint: None }
    }

    /// The same request with this random stream of its seed.
    #[must_use]
    pub fn with_random_stream(self, random_stream: u64) -> Self {
        Self { random_stream, ..self }
    }

    /// The same request, which reports the log probability of each token and of so many alternatives.
    #[must_use]
    pub fn with_logprobs(self, alternatives: impl Into<Option<usize>>) -> Self {
        Self { logprobs: alternatives.into(), ..self }
    }

    /// The same request, which this adapter of the engine answers.
    #[must_use]
    pub fn with_adapter(self, adapter: impl Into<Option<String>>) -> Self {
        Self { adapter: adapter.into(), ..self }
    }

    /// The same request, whose answer fulfils this constraint. An answer that reaches its limit of tokens is a beginning
    /// of one that does.
    #[must_use]
    pub fn with_constraint(self, constraint: impl Into<Option<Arc<dyn Constraint>>>) -> Self {
        Self { constraint: constraint.into(), ..self }
    }

    /// The same request with its prompt in another form.
    ///
    /// # Errors
    /// The errors of `f`.
    pub fn try_map<Q>(self, f: impl FnOnce(P) -> Result<Q>) -> Result<Request<Q>> {
        let Self { prompt, generation, random_stream, logprobs, adapter, constraint } = self;
        Ok(Request { prompt: f(prompt)?, generation, random_stream, logprobs, adapter, constraint })
    }
}

/// The reason why the engine did not accept a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many requests wait as may: a later try can succeed.
    QueueFull {
        /// Number of requests that wait.
        waiting: usize,
        /// Number of requests that run.
        running: usize,
    },
    /// Keys and values of prompt and longest answer exceed the engine's memory, whatever else runs.
    TooLarge {
        /// Bytes that the request could need.
        needed: usize,
        /// Bytes that the engine has, [`EngineConfig::kv_cache_bytes`](super::EngineConfig::kv_cache_bytes).
        budget: usize,
    },
    /// The request itself is invalid.
    Invalid(Error),
    /// The engine takes no more requests.
    ShutDown,
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull { waiting, running } => {
                write!(f, "the queue is full ({waiting} requests wait, {running} run): try again later")
            }
            Self::TooLarge { needed, budget } => write!(
                f,
                "the request may need {needed} bytes of KV cache, the engine has {budget}: shorten the prompt, lower \
                 `max_new_tokens`, or raise `kv_cache_bytes`"
            ),
            Self::Invalid(error) => error.fmt(f),
            Self::ShutDown => f.write_str("the engine is shut down and takes no more requests"),
        }
    }
}

impl std::error::Error for SubmitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Invalid(error) => error.source(),
            _ => None,
        }
    }
}

impl From<Error> for SubmitError {
    fn from(error: Error) -> Self {
        Self::Invalid(error)
    }
}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid(error) => error,
            other => Error::generation(other.to_string()),
        }
    }
}
