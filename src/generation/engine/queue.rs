//! What callers and the scheduler's thread share: the queue of requests, jobs, and metrics.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::answering::Answering;
use super::prompt::PromptChunks;
use super::{EngineConfig, Metrics, SubmitError};
use crate::Error;
use crate::generation::FinishReason;

/// A job for the scheduler's thread. It catches its own panics.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// A request that waits.
pub(super) struct Waiting {
    pub(super) answering: Answering,
    pub(super) prompt: PromptChunks,
    /// Positions of the prompt and the longest answer.
    pub(super) positions: usize,
}

/// How far the engine's life has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Requests are accepted.
    Open,
    /// None are accepted; those accepted go on to their ends.
    Draining,
    /// None are accepted; those accepted are cancelled.
    Stopping,
    /// The thread has ended.
    Ended,
}

pub(super) struct Inbox {
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) jobs: VecDeque<Job>,
    /// Requests that are prefilled or decoded.
    pub(super) running: usize,
    pub(super) phase: Phase,
}

/// The state that callers and the scheduler's thread share.
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// Signalled after each change that the thread, or a caller of [`Self::close`], may wait for.
    changed: Condvar,
    metrics: Mutex<Metrics>,
}

impl Shared {
    pub(super) fn new(kv_budget: usize) -> Self {
        let inbox = Inbox { waiting: VecDeque::new(), jobs: VecDeque::new(), running: 0, phase: Phase::Open };
        let metrics = Metrics { kv_budget_bytes: kv_budget, ..Metrics::default() };
        Self { inbox: Mutex::new(inbox), changed: Condvar::new(), metrics: Mutex::new(metrics) }
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that `count` more requests may wait.
    pub(super) fn check_room(inbox: &Inbox, config: &EngineConfig, count: usize) -> Result<(), SubmitError> {
        let (waiting, running) = (inbox.waiting.len(), inbox.running);
        let places = config.queue + config.max_batch;
        match inbox.phase {
            Phase::Open if count > places => {
                let message =
                    format!("is {count}, more than the {places} requests that may wait or run: ask for fewer");
                Err(Error::config("choices", message).into())
            }
            Phase::Open if waiting + running + count <= places => Ok(()),
            Phase::Open => Err(SubmitError::QueueFull { waiting, running }),
            _ => Err(SubmitError::ShutDown),
        }
    }

    /// Queues requests, if there is room for all.
    pub(super) fn enqueue(&self, requests: Vec<Waiting>, config: &EngineConfig) -> Result<(), SubmitError> {
        let mut inbox = self.inbox();
        Self::check_room(&inbox, config, requests.len())?;
        self.metrics().requests.accepted += requests.len() as u64;
        inbox.waiting.extend(requests);
        self.changed.notify_all();
        Ok(())
    }

    /// Queues a job, unless the engine is shut down.
    pub(super) fn enqueue_job(&self, job: Job) -> Result<(), SubmitError> {
        let mut inbox = self.inbox();
        if inbox.phase != Phase::Open {
            return Err(SubmitError::ShutDown);
        }
        inbox.jobs.push_back(job);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until there is work, and returns the next job and the phase; `is_busy` says that requests run.
    pub(super) fn wait(&self, is_busy: bool) -> (Option<Job>, Phase) {
        let idle = |inbox: &mut Inbox| {
            !is_busy && inbox.phase == Phase::Open && inbox.waiting.is_empty() && inbox.jobs.is_empty()
        };
        let waited = self.changed.wait_while(self.inbox(), idle);
        let mut inbox = waited.unwrap_or_else(PoisonError::into_inner);
        (inbox.jobs.pop_front(), inbox.phase)
    }

    /// Moves on to a phase; a later one stays.
    pub(super) fn enter(&self, phase: Phase) {
        let mut inbox = self.inbox();
        inbox.phase = inbox.phase.max(phase);
        self.changed.notify_all();
    }

    /// Waits until the thread has ended.
    pub(super) fn wait_for_end(&self) {
        drop(self.changed.wait_while(self.inbox(), |inbox| inbox.phase != Phase::Ended));
    }

    /// Removes the requests that were cancelled or ran out of time while they waited; all, if the engine is `stopping`.
    pub(super) fn take_interrupted(&self, stopping: bool) -> Vec<(Waiting, FinishReason)> {
        let mut inbox = self.inbox();
        let mut interrupted = Vec::new();
        if !stopping && inbox.waiting.iter().all(|request| request.answering.interruption().is_none()) {
            return interrupted;
        }
        for request in std::mem::take(&mut inbox.waiting) {
            let reason = if stopping { Some(FinishReason::Cancelled) } else { request.answering.interruption() };
            match reason {
                Some(reason) => interrupted.push((request, reason)),
                None => inbox.waiting.push_back(request),
            }
        }
        interrupted
    }
}
