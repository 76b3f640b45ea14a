//! Answers to a stream of requests, computed in batches.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::thread;

use crate::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence};
use crate::config::GenerationConfig;
use crate::data::{Prefetch, guarded};
use crate::generation::{CancelToken, GeneratedSequence, Generator};
use crate::model::HaploVl;
use crate::pipeline::LoadedModel;
use crate::processor::{Conversation, Processor};
use crate::{Error, Result};

/// Most worker threads by default; the model's matmuls need the cores too.
const MAX_WORKERS: usize = 4;

/// Largest number of positions of a batch, padding included, unless one request alone has more: the KV cache of eight
/// long prompts could exhaust memory, and their prefill gains nothing from a batch.
const MAX_BATCH_POSITIONS: usize = 8192;

/// Batches of requests that are prepared, beside the batch under way.
const BATCHES_AHEAD: usize = 2;

/// A function that prepares a conversation.
type Prepare = Box<dyn FnOnce(&Processor) -> Result<Conversation> + Send>;

/// A request to the model: a conversation that awaits an answer, and whose images are not decoded yet.
pub struct Request {
    prepare: Prepare,
    stream: Option<u64>,
}

impl Request {
    /// A request that `prepare`, called on a worker thread with the model's processor, turns into a conversation.
    pub fn new(prepare: impl FnOnce(&Processor) -> Result<Conversation> + Send + 'static) -> Self {
        Self { prepare: Box::new(prepare), stream: None }
    }

    /// The same request with this random stream of the seed, in place of that of its place among the requests: it samples
    /// what the request of that number would.
    #[must_use]
    pub fn with_random_stream(self, stream: u64) -> Self {
        Self { stream: Some(stream), ..self }
    }
}

impl From<Conversation> for Request {
    fn from(conversation: Conversation) -> Self {
        Self::new(|_| Ok(conversation))
    }
}

/// A runner of batch inference over one model. Clones share the model.
#[derive(Clone)]
pub struct BatchRunner {
    model: LoadedModel,
    generator: Generator<HaploVl>,
    config: GenerationConfig,
    batch_size: usize,
    workers: usize,
    first_stream: u64,
}

impl BatchRunner {
    /// The default batch size.
    pub const DEFAULT_BATCH_SIZE: usize = 8;

    /// A runner with the model's default generation settings.
    pub fn new(model: &LoadedModel) -> Self {
        Self {
            model: model.clone(),
            generator: model.generator(),
            config: model.generation().clone(),
            batch_size: Self::DEFAULT_BATCH_SIZE,
            workers: thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_WORKERS),
            first_stream: 0,
        }
    }

    /// The same runner with another number of requests a batch; 0 counts as 1.
    #[must_use]
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        Self { batch_size: batch_size.max(1), ..self }
    }

    /// The same runner with another number of threads that decode images; 0 counts as 1.
    #[must_use]
    pub fn with_workers(self, workers: usize) -> Self {
        Self { workers: workers.max(1), ..self }
    }

    /// The same runner with other generation settings.
    #[must_use]
    pub fn with_generation(self, config: GenerationConfig) -> Self {
        Self { config, ..self }
    }

    /// The same runner, whose answers end once `cancel` is cancelled.
    #[must_use]
    pub fn with_cancel(self, cancel: CancelToken) -> Self {
        Self { generator: self.generator.with_cancel(cancel), ..self }
    }

    /// The same runner, whose first request draws from random stream `first` of the seed, and later requests from the
    /// following ones: a run that continues after `first` requests samples what one run would have.
    #[must_use]
    pub fn with_first_stream(self, first: u64) -> Self {
        Self { first_stream: first, ..self }
    }

    /// Starts to answer requests; each has a tag of the caller, such as its file name, that comes back with the answer.
    ///
    /// Requests are taken from the iterator a few batches ahead.
    ///
    /// # Errors
    /// [`Error::Data`] if no thread can be started.
    pub fn run<T, I>(&self, requests: I) -> Result<BatchAnswers<T, I::IntoIter>>
    where
        I: IntoIterator<Item = (T, Request)>,
    {
        let model = self.model.clone();
        let prefetch = Prefetch::new(self.workers, move |prepare: Prepare| {
            let processor = model.processor();
            let sequence = || processor.sequence(&prepare(processor)?, true);
            guarded(|| Ok(sequence()?)).map_err(Error::from)
        })?;
        Ok(BatchAnswers {
            runner: self.clone(),
            requests: requests.into_iter(),
            prefetch,
            queue: VecDeque::new(),
            prepared: 0,
            first: self.first_stream,
        })
    }

    /// The answers to some sequences, in their order. If they fail together, each is tried alone, so that one cannot
    /// spoil the others.
    fn answer(&self, sequences: &[(u64, Sequence)]) -> Vec<Result<GeneratedSequence>> {
        match (self.generate(sequences), sequences) {
            (Ok(answers), _) => answers.into_iter().map(Ok).collect(),
            (Err(error), [_]) => vec![Err(error)],
            (Err(_), several) => several.chunks(1).flat_map(|one| self.answer(one)).collect(),
        }
    }

    fn generate(&self, sequences: &[(u64, Sequence)]) -> Result<Vec<GeneratedSequence>> {
        let model = self.generator.model();
        let (streams, sequences): (Vec<u64>, Vec<Sequence>) = sequences.iter().cloned().unzip();
        let spec = BatchSpec::new(model.config());
        let batch = MultimodalBatch::new(&sequences, spec, PaddingSide::Left, model.device())?;
        let mut session = self.generator.session(&batch, &[], &self.config)?.with_streams(streams);
        let mut cache = model.cache(batch.batch_size(), session.new_positions())?;
        while session.step(&**model, &mut cache, |_, _| ())? {}
        Ok(session.finish()?.sequences)
    }
}

/// State of a request that was taken from the iterator and not returned yet.
enum State {
    /// With a worker.
    Queued,
    Prepared(Sequence),
    Done(Result<GeneratedSequence>),
}

/// A request in the queue.
struct Entry<T> {
    tag: T,
    /// Its random stream, if it is not that of its place.
    stream: Option<u64>,
    state: State,
}

/// Answers in the order of their requests, each with the request's tag.
///
/// A request that fails, because an image cannot be read or a prompt is too long, is an error in its place; the others
/// are answered. Requests of similar length share a batch, since shorter ones are padded: the oldest unanswered request
/// is in every batch, with those next to it in length among the requests that are prepared.
pub struct BatchAnswers<T, I> {
    runner: BatchRunner,
    requests: I,
    prefetch: Prefetch<Prepare, Result<Sequence>>,
    /// Requests in order; those with a worker are the last ones.
    queue: VecDeque<Entry<T>>,
    /// Number of requests at the front of the queue that came back from the workers.
    prepared: usize,
    /// Random stream of the first request in the queue.
    first: u64,
}

impl<T, I: Iterator<Item = (T, Request)>> BatchAnswers<T, I> {
    /// Hands requests to the workers until enough are in memory.
    fn request(&mut self) {
        let unanswered =
            |queue: &VecDeque<Entry<T>>| queue.iter().filter(|entry| !matches!(entry.state, State::Done(_))).count();
        let most = BATCHES_AHEAD * self.runner.batch_size;
        for _ in unanswered(&self.queue)..most {
            let Some((tag, request)) = self.requests.next() else { break };
            let Request { prepare, stream } = request;
            self.prefetch.push(prepare);
            self.queue.push_back(Entry { tag, stream, state: State::Queued });
        }
    }

    /// Waits for all requests that are with the workers.
    fn collect(&mut self) {
        while let Some(result) = self.prefetch.pop() {
            let state = match result.and_then(|prepared| prepared) {
                Ok(sequence) => State::Prepared(sequence),
                Err(error) => State::Done(Err(error)),
            };
            if let Some(entry) = self.queue.get_mut(self.prepared) {
                entry.state = state;
            }
            self.prepared += 1;
        }
    }

    /// Takes the next batch of prepared requests: their places in the queue, and their sequences.
    fn take_batch(&mut self) -> (Vec<usize>, Vec<(u64, Sequence)>) {
        let length = |state: &State| match state {
            State::Prepared(sequence) => Some(sequence.len()),
            _ => None,
        };
        let ready = self.queue.iter().enumerate().filter_map(|(at, entry)| Some((at, length(&entry.state)?)));
        let places = similar(ready.collect(), self.runner.batch_size);
        let take = |&at: &usize| {
            let entry = self.queue.get_mut(at)?;
            match std::mem::replace(&mut entry.state, State::Queued) {
                State::Prepared(sequence) => Some((entry.stream.unwrap_or(self.first + at as u64), sequence)),
                _ => None,
            }
        };
        let sequences = places.iter().filter_map(take).collect();
        (places, sequences)
    }
}

/// The places of the oldest request and of those nearest to it in length, at most `most` and
/// [`MAX_BATCH_POSITIONS`]. `ready` are places, oldest first, with their lengths.
fn similar(mut ready: Vec<(usize, usize)>, most: usize) -> Vec<usize> {
    let Some(&(_, oldest)) = ready.first() else { return vec![] };
    // Stable, so that the oldest of equally near ones come first.
    ready.sort_by_key(|&(_, length)| length.abs_diff(oldest));
    let mut longest = 0;
    let fits = |(n, (_, length)): &(usize, (usize, usize))| {
        longest = longest.max(*length);
        *n == 0 || (n + 1) * longest <= MAX_BATCH_POSITIONS
    };
    ready.into_iter().take(most).enumerate().take_while(fits).map(|(_, (place, _))| place).collect()
}

impl<T, I: Iterator<Item = (T, Request)>> Iterator for BatchAnswers<T, I> {
    type Item = (T, Result<GeneratedSequence>);

    fn next(&mut self) -> Option<Self::Item> {
        while !matches!(self.queue.front(), Some(Entry { state: State::Done(_), .. })) {
            self.request();
            self.collect();
            let (places, sequences) = self.take_batch();
            if sequences.is_empty() {
                break;
            }
            // The workers prepare the next requests while the model computes.
            self.request();
            for (place, answer) in places.into_iter().zip(self.runner.answer(&sequences)) {
                if let Some(entry) = self.queue.get_mut(place) {
                    entry.state = State::Done(answer);
                }
            }
        }
        let Entry { tag, state, .. } = self.queue.pop_front()?;
        self.prepared = self.prepared.saturating_sub(1);
        self.first += 1;
        match state {
            State::Done(answer) => Some((tag, answer)),
            State::Queued | State::Prepared(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_the_oldest_request_and_those_of_similar_length() {
        let ready = [(3, 100), (4, 900), (5, 110), (6, 100), (7, 95)];
        assert_eq!(similar(ready.to_vec(), 3), [3, 6, 7]);
        assert_eq!(similar(ready.to_vec(), 4), [3, 6, 7, 5]);
        assert_eq!(similar(ready.to_vec(), 99).len(), 5);
        // Long prompts share a batch only while its positions are few.
        assert_eq!(similar(vec![(0, 3000), (1, 3000), (2, 3000)], 8), [0, 1]);
        assert_eq!(similar(vec![(0, 9000), (1, 10)], 8), [0]);
        assert!(similar(vec![], 8).is_empty());
    }
}
