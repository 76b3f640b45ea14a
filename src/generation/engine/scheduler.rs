//! The engine's thread and its queue.

use std::sync::Arc;

use super::{EngineConfig, Handle, Metrics, Request, ServedModel, SubmitError};
use crate::batch::MultimodalBatch;
use crate::{Error, Result};

/// A scheduler of requests over a [`ServedModel`], on a thread of its own; [`pipeline::Engine`] is made of it.
///
/// Dropping it cancels all requests.
///
/// [`pipeline::Engine`]: crate::pipeline::Engine
pub struct Scheduler {}

impl Scheduler {
    /// Starts a scheduler; `decode` turns token ids into text and leaves out special tokens.
    ///
    /// # Errors
    /// The errors of [`EngineConfig::validate`], and [`Error::Generation`] if no thread can be started.
    pub fn start<M: ServedModel>(
        model: Arc<M>,
        decode: impl Fn(&[u32]) -> Result<String> + Send + Sync + 'static,
        config: EngineConfig,
    ) -> Result<Self> {
        let _ = (model, decode, config);
        Ok(Self {})
    }

    /// Checks that a request could be accepted now, before work is spent on its prompt.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`] and [`SubmitError::ShutDown`].
    pub fn check_open(&self) -> Result<(), SubmitError> {
        Err(SubmitError::ShutDown)
    }

    /// Counts a request whose prompt is invalid, for [`Self::metrics`].
    pub(crate) fn count_invalid<T>(&self, request: Result<T>) -> Result<T> {
        request
    }

    /// Queues a request, whose prompt is a batch of one row without padding.
    ///
    /// # Errors
    /// [`SubmitError`], which says why not.
    pub fn submit(&self, request: Request<MultimodalBatch>) -> Result<Handle, SubmitError> {
        let _ = request;
        Err(SubmitError::ShutDown)
    }

    /// Runs a job on the scheduler's thread between two steps, and returns its result.
    ///
    /// # Errors
    /// [`Error::Generation`] if the job panics, or the scheduler is shut down.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let _ = job;
        Err(Error::generation(SubmitError::ShutDown.to_string()))
    }

    /// Counters, gauges and histograms at this moment.
    pub fn metrics(&self) -> Metrics {
        Metrics::default()
    }

    /// Accepts no more requests, and returns when those under way have ended.
    pub fn shutdown(&self) {}
}
