//! Worker threads that compute results ahead of time and return them in order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::{Error, Result};

/// An input and the channel for its result.
type Job<I, O> = (I, SyncSender<O>);

/// Pool of threads that map inputs to outputs. The caller bounds the number of inputs in flight by requesting one
/// result per input.
pub(crate) struct Prefetch<I, O> {
    jobs: Option<Sender<Job<I, O>>>,
    results: VecDeque<Receiver<O>>,
    workers: Vec<JoinHandle<()>>,
    stopped: Arc<AtomicBool>,
}

impl<I: Send + 'static, O: Send + 'static> Prefetch<I, O> {
    /// Starts `workers` threads (at least one) that run `work`.
    pub(crate) fn new(workers: usize, work: impl Fn(I) -> O + Send + Sync + 'static) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job<I, O>>();
        let queue = Arc::new(Mutex::new(queue));
        let work = Arc::new(work);
        let stopped = Arc::new(AtomicBool::new(false));
        let worker = |number| {
            let (queue, work, stopped) = (Arc::clone(&queue), Arc::clone(&work), Arc::clone(&stopped));
            let run = move || {
                // The lock is held while waiting for an input, not during the work.
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok((input, result)) = next() {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    // The receiver is gone if the loader was dropped.
                    let _ = result.send(work(input));
                }
            };
            thread::Builder::new().name(format!("loader-{number}")).spawn(run)
        };
        let workers = (0..workers.max(1)).map(worker).collect::<std::io::Result<_>>();
        let workers = workers.map_err(|e| Error::data(format!("cannot start a loader thread: {e}")))?;
        Ok(Self { jobs: Some(jobs), results: VecDeque::new(), workers, stopped })
    }

    /// Queues an input.
    pub(crate) fn push(&mut self, input: I) {
        let (sender, receiver) = mpsc::sync_channel(1);
        if let Some(jobs) = &self.jobs {
            // Cannot fail while workers are alive; otherwise the result channel reports the failure.
            let _ = jobs.send((input, sender));
        }
        self.results.push_back(receiver);
    }

    /// Waits for the result of the oldest input and returns it; `None` if there is no input.
    pub(crate) fn pop(&mut self) -> Option<Result<O>> {
        let result = self.results.pop_front()?.recv();
        Some(result.map_err(|_| Error::data("a loader thread panicked while preparing a sample: see its message")))
    }
}

impl<I, O> Drop for Prefetch<I, O> {
    fn drop(&mut self) {
        // Queued inputs are dropped; waiting workers wake up when the sender is dropped.
        self.stopped.store(true, Ordering::Relaxed);
        self.jobs = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
