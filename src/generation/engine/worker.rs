//! The scheduler's thread: decode steps of all running requests, and prefill of one prompt between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answering::Answering;
use super::panics::caught;
use super::prefix_store::{NodeId, PrefixStore};
use super::prompt::PromptChunks;
use super::queue::{Phase, Shared, Waiting};
use super::{Event, Metrics, ServedModel};
use crate::generation::FinishReason;
use crate::{Error, Result};

/// Decode steps' times that prefills may take beyond one, if so many requests wait.
const MAX_EXTRA_PREFILL: usize = 2;

/// Memory of a request under way.
struct Lease {
    /// Last chunk of the prefix cache that the request uses.
    node: Option<NodeId>,
    /// Bytes reserved for positions that are not in the prefix cache.
    reserved: usize,
}

/// The request whose prompt is prefilled.
struct Prefilling<M: ServedModel> {
    answering: Answering,
    prompt: PromptChunks,
    sequence: M::Sequence,
    /// The chunk under way.
    chunk: Option<M::Prefill>,
    lease: Lease,
}

/// A request that is decoded.
struct Running<M: ServedModel> {
    answering: Answering,
    sequence: M::Sequence,
    lease: Lease,
    /// The last token, which the model has not seen yet.
    last_id: u32,
}

/// The end of a request.
type End = Result<FinishReason>;

pub(super) struct Worker<M: ServedModel> {
    model: Arc<M>,
    shared: Arc<Shared>,
    max_batch: usize,
    kv_budget: usize,
    /// Bytes of all leases.
    reserved: usize,
    store: PrefixStore<M::Chunk>,
    prefilling: Option<Prefilling<M>>,
    running: Vec<Running<M>>,
}

impl<M: ServedModel> Worker<M> {
    pub(super) fn new(model: Arc<M>, shared: Arc<Shared>, max_batch: usize, kv_budget: usize) -> Self {
        let (store, running) = (PrefixStore::new(), Vec::new());
        Self { model, shared, max_batch, kv_budget, reserved: 0, store, prefilling: None, running }
    }

    /// Works until the engine is shut down and all requests have ended.
    pub(super) fn run(mut self) {
        let _end = EndOnDrop(Arc::clone(&self.shared));
        loop {
            let (job, phase) = self.shared.wait(self.is_busy());
            let has_job = job.is_some();
            job.into_iter().for_each(|job| job());
            self.end_interrupted(phase == Phase::Stopping);
            let step = self.decode_step();
            self.prefill_for(step * self.prefill_share());
            if phase != Phase::Open && !has_job && !self.is_busy() && self.shared.inbox().waiting.is_empty() {
                return;
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.prefilling.is_some() || !self.running.is_empty()
    }

    /// Ends the requests that were cancelled or ran out of time; all, if the engine is stopping.
    fn end_interrupted(&mut self, stopping: bool) {
        for (request, reason) in self.shared.take_interrupted(stopping) {
            self.end(request.answering, None, Ok(reason));
        }
        let interruption = |answering: &Answering| match stopping {
            true => Some(FinishReason::Cancelled),
            false => answering.interruption(),
        };
        for at in (0..self.running.len()).rev() {
            if let Some(reason) = interruption(&self.running[at].answering) {
                let Running { answering, lease, .. } = self.running.swap_remove(at);
                self.end(answering, Some(lease), Ok(reason));
            }
        }
        let reason = self.prefilling.as_ref().and_then(|prefilling| interruption(&prefilling.answering));
        if let Some(reason) = reason {
            self.end_prefilling(Ok(reason));
        }
    }

    /// Begins the prefill of the request that waits longest, if there is a place and memory for it.
    fn admit(&mut self) {
        if self.prefilling.is_some() || self.running.len() >= self.max_batch {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.inbox();
        let Some((lease, path)) = inbox.waiting.front().and_then(|request| self.reserve(request)) else { return };
        let Some(request) = inbox.waiting.pop_front() else { return };
        inbox.running += 1;
        drop(inbox);
        self.begin(request, lease, &path);
    }

    /// Reserves memory for a request; `None` if it has to wait. Also returns the cached chunks of its prompt.
    fn reserve(&mut self, request: &Waiting) -> Option<(Lease, Vec<Arc<M::Chunk>>)> {
        let path = self.store.path(&request.prompt.keys);
        let cached: usize = request.prompt.keys.iter().take(path.len()).map(|key| key.len()).sum();
        let node = path.last().map(|(id, _)| *id);
        let reserved = self.bytes(request.positions - cached);
        self.store.pin(node);
        if self.make_room(reserved) {
            self.reserved += reserved;
            return Some((Lease { node, reserved }, path.into_iter().map(|(_, chunk)| chunk).collect()));
        }
        self.store.unpin(node);
        // Nothing else runs: chunks that take more memory than their positions must not stop the request.
        let whole = self.bytes(request.positions);
        let alone = !self.is_busy() && self.store.shrink_to(0);
        alone.then(|| {
            self.reserved += whole;
            (Lease { node: None, reserved: whole }, Vec::new())
        })
    }

    fn bytes(&self, positions: usize) -> usize {
        positions.saturating_mul(self.model.bytes_per_position())
    }

    /// Removes unused chunks until `needed` bytes are free, and returns whether they are.
    fn make_room(&mut self, needed: usize) -> bool {
        let left = self.kv_budget.checked_sub(self.reserved.saturating_add(needed));
        left.is_some_and(|left| self.store.shrink_to(left))
    }

    /// Starts a request after the cached chunks of its prompt.
    fn begin(&mut self, request: Waiting, lease: Lease, path: &[Arc<M::Chunk>]) {
        let Waiting { mut answering, mut prompt, positions } = request;
        let cached = prompt.keys.iter().take(path.len()).map(|key| key.len()).sum();
        prompt.skip(path.len());
        tracing::debug!(tokens = answering.prompt_tokens, cached, "request started");
        self.count_start(&answering, cached, path.len(), prompt.keys.len());
        answering.start(cached);
        let (model, adapter) = (Arc::clone(&self.model), prompt.adapter);
        let sequence = caught("the model", || {
            let mut sequence = model.sequence_of(adapter, positions)?;
            path.iter().try_for_each(|chunk| model.push_chunk(&mut sequence, chunk))?;
            Ok(sequence)
        });
        match sequence {
            Ok(sequence) => self.prefilling = Some(Prefilling { answering, prompt, sequence, chunk: None, lease }),
            Err(error) => self.end(answering, Some(lease), Err(error)),
        }
    }

    fn count_start(&self, answering: &Answering, cached: usize, hits: usize, misses: usize) {
        let mut metrics = self.shared.metrics();
        metrics.prompt_tokens += answering.prompt_tokens as u64;
        metrics.cached_tokens += cached as u64;
        metrics.prefix_cache.hits += hits as u64;
        metrics.prefix_cache.misses += misses as u64;
        metrics.queue_seconds.record(answering.queue_time());
        self.set_gauges(&mut metrics);
    }

    /// Decodes one token of each running request, and returns how long that took.
    fn decode_step(&mut self) -> Duration {
        let start = Instant::now();
        let rows = self.running.len();
        self.shared.metrics().batch_size = rows;
        if rows == 0 {
            return Duration::ZERO;
        }
        let ids = Vec::from_iter(self.running.iter().map(|request| request.last_id));
        let mut sequences = Vec::from_iter(self.running.iter_mut().map(|request| &mut request.sequence));
        let logits = caught("the model", || checked_rows(self.model.decode(&ids, &mut sequences)?, rows));
        self.shared.metrics().decode_steps += 1;
        let requests = std::mem::take(&mut self.running);
        match logits {
            Ok(logits) => requests.into_iter().zip(logits).for_each(|(request, logits)| self.go_on(request, logits)),
            Err(error) => {
                // Each request gets the error; an error has no copies.
                let error = || Err(Error::generation(format!("a decode step failed: {error}")));
                requests.into_iter().for_each(|request| self.end(request.answering, Some(request.lease), error()));
            }
        }
        start.elapsed()
    }

    /// Samples a request's next token and lets it run on, or ends it.
    fn go_on(&mut self, mut request: Running<M>, logits: Vec<f32>) {
        let is_first = request.answering.last_token.is_none();
        let token = caught("the constraint", || request.answering.take_token(logits));
        let end = match token {
            Ok((id, gap)) => {
                request.last_id = id;
                self.count_token(&request.answering, is_first, gap);
                request.answering.reason().cloned().map(Ok)
            }
            Err(error) => Some(Err(error)),
        };
        match end {
            None => self.running.push(request),
            Some(end) => self.end(request.answering, Some(request.lease), end),
        }
    }

    fn count_token(&self, answering: &Answering, is_first: bool, gap: Option<Duration>) {
        let mut metrics = self.shared.metrics();
        metrics.new_tokens += 1;
        if is_first {
            metrics.first_token_seconds.record(answering.elapsed());
        }
        gap.into_iter().for_each(|gap| metrics.inter_token_seconds.record(gap));
    }

    /// Time for prefills after a decode step, in times of the step: more while others wait, since decoding few sequences
    /// takes almost as long as decoding many.
    fn prefill_share(&self) -> u32 {
        1 + self.shared.inbox().waiting.len().min(MAX_EXTRA_PREFILL) as u32
    }

    /// Admits and prefills for about `time`, and at least one work item.
    fn prefill_for(&mut self, time: Duration) {
        let start = Instant::now();
        loop {
            self.admit();
            let Some(prefilling) = &mut self.prefilling else { return };
            match caught("the model", || prefilling.advance(&self.model)) {
                Ok(None) => {}
                Ok(Some(logits)) => self.end_chunk(logits),
                Err(error) => self.end_prefilling(Err(error)),
            }
            let interrupted = self.prefilling.as_ref().is_some_and(|p| p.answering.interruption().is_some());
            if interrupted || start.elapsed() >= time {
                return;
            }
        }
    }

    /// Shares a chunk that was prefilled, or begins to decode after the last one.
    fn end_chunk(&mut self, logits: Vec<f32>) {
        let Some(mut prefilling) = self.prefilling.take() else { return };
        prefilling.prompt.chunks.pop_front();
        let Some(key) = prefilling.prompt.keys.pop_front() else {
            let Prefilling { answering, sequence, lease, .. } = prefilling;
            return self.go_on(Running { answering, sequence, lease, last_id: 0 }, logits);
        };
        match caught("the model", || self.model.freeze(&mut prefilling.sequence)) {
            Ok(chunk) => {
                let moved = self.bytes(key.len()).min(prefilling.lease.reserved);
                let bytes = self.model.chunk_bytes(&chunk);
                let node = self.store.insert(prefilling.lease.node, key, chunk, bytes);
                self.store.pin(Some(node));
                self.store.unpin(prefilling.lease.node);
                self.reserved -= moved;
                prefilling.lease = Lease { node: Some(node), reserved: prefilling.lease.reserved - moved };
                self.make_room(0);
                self.set_gauges(&mut self.shared.metrics());
                self.prefilling = Some(prefilling);
            }
            Err(error) => self.end(prefilling.answering, Some(prefilling.lease), Err(error)),
        }
    }

    fn end_prefilling(&mut self, end: End) {
        if let Some(Prefilling { answering, lease, .. }) = self.prefilling.take() {
            self.end(answering, Some(lease), end);
        }
    }

    /// Ends a request: frees its memory, counts it, and reports its end, in this order, so that a caller that has seen
    /// the end finds the rest done.
    fn end(&mut self, mut answering: Answering, lease: Option<Lease>, end: End) {
        if let Some(lease) = &lease {
            self.store.unpin(lease.node);
            self.reserved -= lease.reserved;
            self.shared.inbox().running -= 1;
        }
        let end = end.and_then(|reason| match answering.reason() {
            Some(reason) => Ok(reason.clone()),
            None => answering.finish(reason.clone()).map(|()| answering.reason().cloned().unwrap_or(reason)),
        });
        self.count_end(&answering, &end);
        answering.send(match end {
            Ok(reason) => answering.finished(reason),
            Err(error) => Event::Failed(error),
        });
    }

    fn count_end(&self, answering: &Answering, end: &End) {
        let mut metrics = self.shared.metrics();
        self.set_gauges(&mut metrics);
        if let Some(started) = answering.started {
            metrics.count_run(started.elapsed());
            metrics.request_seconds.record(answering.elapsed());
        }
        let requests = &mut metrics.requests;
        *match end {
            Ok(FinishReason::EndOfSequence(_) | FinishReason::StopString(_) | FinishReason::Complete) => {
                &mut requests.stopped
            }
            Ok(FinishReason::Length) => &mut requests.length,
            Ok(FinishReason::Cancelled) => &mut requests.cancelled,
            Ok(FinishReason::TimedOut) => &mut requests.timed_out,
            Err(_) => &mut requests.failed,
        } += 1;
    }

    fn set_gauges(&self, metrics: &mut Metrics) {
        metrics.kv_reserved_bytes = self.reserved;
        metrics.prefix_cache.chunks = self.store.len();
        metrics.prefix_cache.bytes = self.store.bytes();
        metrics.prefix_cache.evictions = self.store.evictions();
    }
}

impl<M: ServedModel> Prefilling<M> {
    /// Does one work item; returns the logits at the end of a chunk.
    fn advance(&mut self, model: &M) -> Result<Option<Vec<f32>>> {
        let chunk = match &mut self.chunk {
            Some(chunk) => chunk,
            none => {
                let batch =
                    self.prompt.chunks.front().ok_or_else(|| Error::generation("the prompt has no chunk left"))?;
                none.insert(model.start_prefill(batch, &self.sequence)?)
            }
        };
        let logits = model.advance(chunk, &mut self.sequence)?;
        if logits.is_some() {
            self.chunk = None;
        }
        Ok(logits)
    }
}

fn checked_rows(logits: Vec<Vec<f32>>, rows: usize) -> Result<Vec<Vec<f32>>> {
    if logits.len() == rows {
        return Ok(logits);
    }
    Err(Error::generation(format!("the model gave logits for {} rows, expected {rows}", logits.len())))
}

/// Ends the shared state with the thread, also if it panics, so that no caller waits for ever.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox();
        inbox.phase = Phase::Ended;
        let rest = (std::mem::take(&mut inbox.waiting), std::mem::take(&mut inbox.jobs));
        drop(inbox);
        self.0.enter(Phase::Ended);
        drop(rest);
    }
}
