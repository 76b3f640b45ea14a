//! The engine's thread, as its callers see it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvError, channel};
use std::thread::{self, JoinHandle};

use super::answering::Answering;
use super::panics::panicked;
use super::prompt::PromptChunks;
use super::queue::{Phase, Shared, Waiting};
use super::worker::Worker;
use super::{EngineConfig, Handle, Metrics, Request, ServedModel, SubmitError};
use crate::batch::MultimodalBatch;
use crate::config::HaploVlConfig;
use crate::generation::output::Clock;
use crate::generation::sequence_state::SequenceState;
use crate::generation::session::{Decode, pad_token, token_budget};
use crate::generation::{CancelToken, Sampler};
use crate::{Error, Result};

/// Stack of the scheduler's thread in bytes. It is memory only where it is used, and jobs may build deep graphs.
const STACK_BYTES: usize = 64 << 20;

/// A scheduler of requests over a [`ServedModel`], on a thread of its own; [`pipeline::Engine`] is made of it.
///
/// Each turn of the thread decodes one token of all running requests, and then prefills for about as long, or up to three
/// times as long while others wait. Requests are admitted in the order of their arrival, once a place in the batch and
/// memory for their longest answer are free, so that none waits for ever. Dropping the scheduler cancels all requests.
///
/// [`pipeline::Engine`]: crate::pipeline::Engine
pub struct Scheduler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    config: EngineConfig,
    kv_budget: usize,
    bytes_per_position: usize,
    model: HaploVlConfig,
    adapters: Vec<String>,
    decode: Decode,
}

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
        config.validate()?;
        let kv_budget = config.kv_budget();
        let shared = Arc::new(Shared::new(kv_budget));
        let (model_config, bytes_per_position) = (model.config().clone(), model.bytes_per_position());
        let adapters = model.adapters();
        let worker = Worker::new(model, Arc::clone(&shared), config.max_batch, kv_budget);
        let subscriber = tracing::dispatcher::get_default(Clone::clone);
        let thread = thread::Builder::new().name("engine".into()).stack_size(STACK_BYTES);
        let thread = thread
            .spawn(move || tracing::dispatcher::with_default(&subscriber, || worker.run()))
            .map_err(|e| Error::generation(format!("the engine's thread cannot be started: {e}")).caused_by(e))?;
        let (model, decode) = (model_config, Arc::new(decode));
        Ok(Self { shared, thread: Some(thread), config, kv_budget, bytes_per_position, model, adapters, decode })
    }

    /// Queues a request. `prepare` makes of its prompt a batch of one row without padding; it runs on this thread, and
    /// only if the queue has room.
    ///
    /// # Errors
    /// [`SubmitError`], which says why not.
    pub fn submit<P>(
        &self,
        request: Request<P>,
        prepare: impl FnOnce(P) -> Result<MultimodalBatch>,
    ) -> Result<Handle, SubmitError> {
        self.submit_choices(request, 1, prepare)?.pop().ok_or(SubmitError::ShutDown)
    }

    /// Queues `choices` answers to a request, all or none, which [`Self::submit`]'s `prepare` prepares once. Their random
    /// streams count on from the request's.
    ///
    /// # Errors
    /// [`SubmitError`], which says why not.
    pub fn submit_choices<P>(
        &self,
        request: Request<P>,
        choices: usize,
        prepare: impl FnOnce(P) -> Result<MultimodalBatch>,
    ) -> Result<Vec<Handle>, SubmitError> {
        let clock = Clock::start();
        let room = Shared::check_room(&self.shared.inbox(), &self.config, choices);
        let request = room.and_then(|()| Ok(request.try_map(prepare)?));
        let result = request.and_then(|request| self.enqueue(&request, choices, clock));
        let count = choices as u64;
        match &result {
            Ok(_) => {}
            Err(SubmitError::QueueFull { .. }) => self.shared.metrics().requests.queue_full += count,
            Err(_) => self.shared.metrics().requests.refused += count,
        }
        result
    }

    fn enqueue(
        &self,
        request: &Request<MultimodalBatch>,
        choices: usize,
        clock: Clock,
    ) -> Result<Vec<Handle>, SubmitError> {
        let prompt = PromptChunks::new(&request.prompt, self.adapter(request.adapter.as_deref())?)?;
        let (mut handles, mut waiting) = (Vec::new(), Vec::new());
        for choice in 0..choices as u64 {
            let request = request.clone().with_random_stream(request.random_stream.wrapping_add(choice));
            let (handle, request) = self.waiting(&request, prompt.clone(), clock)?;
            handles.push(handle);
            waiting.push(request);
        }
        self.shared.enqueue(waiting, &self.config)?;
        Ok(handles)
    }

    /// The place of an adapter of this name.
    fn adapter(&self, name: Option<&str>) -> Result<Option<usize>> {
        let Some(name) = name else { return Ok(None) };
        let found = self.adapters.iter().position(|adapter| adapter == name);
        let unknown = || {
            let known = self.adapters.join(", ");
            Error::config("adapter", format!("is `{name:.80}`, expected one of: {known:.120}"))
        };
        found.map(Some).ok_or_else(unknown)
    }

    fn waiting(
        &self,
        request: &Request<MultimodalBatch>,
        prompt: PromptChunks,
        clock: Clock,
    ) -> Result<(Handle, Waiting), SubmitError> {
        let (events, receiver) = channel();
        let cancel = CancelToken::default();
        let prompt_tokens = request.prompt.layout.seq_len;
        let state = self.sequence_state(request)?;
        let positions = prompt_tokens + state.budget;
        let needed = positions.saturating_mul(self.bytes_per_position);
        if needed > self.kv_budget {
            return Err(SubmitError::TooLarge { needed, budget: self.kv_budget });
        }
        let answering = Answering {
            state,
            logprobs: request.logprobs,
            unreported: Vec::new(),
            prompt_tokens,
            cached_tokens: 0,
            clock,
            started: None,
            last_token: None,
            deadline: self.config.timeout.and_then(|timeout| clock.beginning().checked_add(timeout)),
            cancel: cancel.clone(),
            events,
        };
        Ok((Handle::new(receiver, cancel), Waiting { answering, prompt, positions }))
    }

    fn sequence_state(&self, request: &Request<MultimodalBatch>) -> Result<SequenceState> {
        let (model, config, most) = (&self.model, &request.generation, Request::<()>::MAX_LOGPROBS);
        if let Some(count) = request.logprobs.filter(|count| *count > most) {
            return Err(Error::config("logprobs", format!("is {count}, expected at most {most} alternatives")));
        }
        let budget = token_budget(model, request.prompt.layout.seq_len, config)?;
        let pad = pad_token(model, config)?;
        let placeholders = [model.image_token_index, model.video_token_index];
        let mut sampler = Sampler::new(config, request.random_stream)?.ban(&placeholders);
        sampler.observe(&request.prompt.input_ids.flatten_all()?.to_vec1::<u32>()?);
        let constraint = request.constraint.as_ref().map(|constraint| constraint.start()).transpose()?;
        Ok(SequenceState::new(sampler, config, budget, pad, Arc::clone(&self.decode)).with_constraint(constraint))
    }

    /// Runs a job on the scheduler's thread between two steps, and returns its result.
    ///
    /// # Errors
    /// [`Error::Generation`] if the job panics, or the scheduler is shut down.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let job = move || catch_unwind(AssertUnwindSafe(job)).map_err(|panic| panicked("the job", &*panic));
        if self.is_own_thread() {
            return job();
        }
        let (sender, result) = channel();
        self.shared.enqueue_job(Box::new(move || drop(sender.send(job()))))?;
        result.recv().unwrap_or_else(|RecvError| Err(SubmitError::ShutDown.into()))
    }

    /// Counters, gauges and histograms at this moment.
    pub fn metrics(&self) -> Metrics {
        let inbox = self.shared.inbox();
        let (waiting, running) = (inbox.waiting.len(), inbox.running);
        Metrics { waiting, running, ..self.shared.metrics().clone() }
    }

    /// Accepts no more requests, and returns when those under way have ended; at once in a job of [`Self::run`].
    pub fn shutdown(&self) {
        self.shared.enter(Phase::Draining);
        if !self.is_own_thread() {
            self.shared.wait_for_end();
        }
    }

    /// Whether the caller is a job on the scheduler's thread, which must not wait for itself.
    fn is_own_thread(&self) -> bool {
        self.thread.as_ref().is_some_and(|own| own.thread().id() == thread::current().id())
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shared.enter(Phase::Stopping);
        let own = self.is_own_thread();
        if let Some(thread) = self.thread.take().filter(|_| !own) {
            // A panic was reported, and every request has its error.
            let _ = thread.join();
        }
    }
}
