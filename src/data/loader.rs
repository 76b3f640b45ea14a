//! The data loader: shuffling, prefetching on worker threads, grouping, and exact resuming.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bad_share::is_above;
use super::order::{Order, Portion, check_portions, epoch_length};
use super::prefetch::Prefetch;
use super::sharing::{Finding, Sharing};
use super::{BadSample, Dataset, Grouping, IndexSet, Length, SampleResult, guarded, random_stream};
use crate::distributed::World;
use crate::{Error, Result};

/// Order, preparation and grouping of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Seed of all random orders.
    pub seed: u64,
    /// Whether every epoch is shuffled; otherwise samples come in the order of the data set.
    pub shuffle: bool,
    /// Number of epochs; unlimited if absent.
    pub epochs: Option<u64>,
    /// Number of threads that prepare samples, at least 1. It does not change the batches.
    pub workers: usize,
    /// Number of samples that are prefetched.
    pub prefetch: usize,
    /// Grouping of samples into batches.
    pub grouping: Grouping,
    /// Share of bad samples in the data set above which the loader fails, at least 0 and below 1. A sample counts once,
    /// however often it comes. The loader fails as soon as the share is certainly larger, and never below it.
    pub max_bad_share: f64,
    /// Parts of the data set with weights, in order; if empty, every sample comes once per epoch.
    pub portions: Vec<Portion>,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            shuffle: true,
            epochs: None,
            workers: 2,
            prefetch: 64,
            grouping: Grouping::InOrder { rows: 8 },
            max_bad_share: 0.01,
            portions: Vec::new(),
        }
    }
}

impl LoaderConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    pub fn validate(&self) -> Result<()> {
        self.grouping.validate()?;
        if self.workers == 0 {
            return Err(Error::config("loader.workers", "is 0, expected at least 1"));
        }
        if !(0.0..1.0).contains(&self.max_bad_share) {
            let message = format!("is {}, expected 0 to below 1", self.max_bad_share);
            return Err(Error::config("loader.max_bad_share", message));
        }
        Ok(())
    }

    /// Number of samples that an epoch of a data set of `samples` has.
    pub fn epoch_length(&self, samples: usize) -> usize {
        epoch_length(&self.portions, samples)
    }

    /// Whether the samples at the start of an epoch are a random part of the data set.
    fn is_random(&self) -> bool {
        self.shuffle && self.portions.iter().all(|portion| portion.weight == 1.0)
    }
}

/// Position of a loader, from which it resumes with exactly the next group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Completed epochs.
    pub epoch: u64,
    /// Samples of this epoch before the current window.
    pub position: usize,
    /// Groups of the current window that were returned already.
    pub groups: usize,
    /// Samples seen before the current window over all epochs, good and bad.
    pub seen: u64,
    /// Different bad samples so far.
    pub bad: u64,
    /// Size of the data set, to detect changes; 0 before the start.
    pub samples: usize,
    /// Indices of the bad samples so far, those of the current window included. States of the first version of
    /// checkpoints lack them: the samples are then counted and reported once more.
    #[serde(default, skip_serializing_if = "IndexSet::is_empty")]
    pub bad_samples: IndexSet,
}

impl LoaderState {
    /// Different samples seen so far, exact if every sample comes once per epoch, and else at most.
    pub fn different(&self) -> u64 {
        self.seen.min(self.samples as u64)
    }
}

/// Prepared samples for one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<T> {
    /// Rows of one sample each, or of several samples if packed.
    pub rows: Vec<Vec<T>>,
    /// Indices of the samples in the data set, row by row.
    pub samples: Vec<usize>,
    /// Whether the group is for this rank; the rows of a group of another rank are empty.
    pub is_own: bool,
    /// State of the loader after this group.
    pub state: LoaderState,
}

/// A sample that was skipped.
#[derive(Debug)]
#[non_exhaustive]
pub struct BadReport<'a> {
    /// Name of the sample, see [`Dataset::describe`].
    pub sample: &'a str,
    /// Reason.
    pub reason: &'a BadSample,
    /// Different bad samples so far, this one included.
    pub bad: u64,
    /// Different samples so far, this one included.
    pub seen: u64,
}

/// A sample, its index in the data set and its length; prepared, unless it is for another rank or has to be prepared again.
struct Numbered<T> {
    number: usize,
    length: usize,
    item: Option<T>,
}

impl<T> Length for Numbered<T> {
    fn length(&self) -> usize {
        self.length
    }
}

/// Prepares the sample of an index.
type Prepare<T> = Arc<dyn Fn(usize) -> (usize, SampleResult<T>) + Send + Sync>;

/// Iterator over groups of prepared samples, epoch after epoch; ends after [`LoaderConfig::epochs`] or the first error.
///
/// The groups depend only on the data set, the configuration and the state, not on the number of threads. A window that
/// is sorted or packed never crosses the end of an epoch, so that every sample comes once per epoch; the last group of
/// a window may be smaller. With [`LoaderConfig::portions`], a sample comes as often per epoch as its portion says.
///
/// On several ranks ([`Self::in_world`]) the groups are the same, and each rank prepares those that are dealt to it.
pub struct Loader<T> {
    config: LoaderConfig,
    prepare: Prepare<T>,
    prefetch: Prefetch<usize, (usize, SampleResult<T>)>,
    /// Samples of this rank's groups that other ranks have prepared.
    again: Option<Prefetch<usize, (usize, SampleResult<T>)>>,
    ahead: Order,
    /// Samples that are queued, and whether this rank prepares them.
    queued: VecDeque<(usize, bool)>,
    sharing: Sharing,
    /// State after the groups that were returned, and state after the groups that are ready.
    state: LoaderState,
    window_end: LoaderState,
    ready: VecDeque<Vec<Vec<Numbered<T>>>>,
    describe: Box<dyn Fn(usize) -> String + Send>,
    on_bad: Box<dyn FnMut(&BadReport<'_>) + Send>,
    failed: bool,
}

impl<T: Length + Send + 'static> Loader<T> {
    /// A loader that starts at `state` (by default at the first sample). `prepare` converts a sample on a worker
    /// thread, for example by decoding images and tokenizing.
    ///
    /// # Errors
    /// [`Error::Config`] as [`LoaderConfig::validate`]; [`Error::Data`] for an empty data set and for a state of
    /// another data set.
    pub fn new<D>(
        dataset: D,
        config: LoaderConfig,
        state: LoaderState,
        prepare: impl Fn(D::Item) -> SampleResult<T> + Send + Sync + 'static,
    ) -> Result<Self>
    where
        D: Dataset + 'static,
    {
        config.validate()?;
        let samples = dataset.len();
        check_portions(&config.portions, samples)?;
        check_state(&state, samples, config.epoch_length(samples))?;
        let state = LoaderState { samples, bad: state.bad_samples.len(), ..state };
        let dataset = Arc::new(dataset);
        let names = Arc::clone(&dataset);
        let longest = config.grouping.longest();
        let get = move |number| {
            let item = prepare(dataset.get(number)?)?;
            match longest.filter(|&limit| item.length() > limit) {
                Some(limit) => Err(BadSample::TooLong { length: item.length(), limit }),
                None => Ok(item),
            }
        };
        let prepare: Prepare<T> = Arc::new(move |number| (number, guarded(|| get(number))));
        let epoch = config.epoch_length(samples);
        Ok(Self {
            prefetch: prefetch(&config, &prepare)?,
            prepare,
            again: None,
            ahead: Order::new(&config, &state),
            queued: VecDeque::new(),
            sharing: Sharing::new(World::default(), &config.grouping, epoch, state.position),
            config,
            window_end: state.clone(),
            state,
            ready: VecDeque::new(),
            describe: Box::new(move |number| names.describe(number)),
            on_bad: Box::new(|_| ()),
            failed: false,
        })
    }

    /// The same loader as one of several ranks, which all ask for groups in step. Every rank gets every group, in the same
    /// order as one process, but only its own ones with rows.
    ///
    /// # Errors
    /// [`Error::Data`] if a thread cannot be started.
    pub fn in_world(mut self, world: World) -> Result<Self> {
        let epoch = self.config.epoch_length(self.state.samples);
        self.again = if world.size() > 1 { Some(prefetch(&self.config, &self.prepare)?) } else { None };
        self.sharing = Sharing::new(world, &self.config.grouping, epoch, self.state.position);
        Ok(self)
    }

    /// Calls `report` for every bad sample, once for each, also over resumed runs.
    #[must_use]
    pub fn on_bad(mut self, report: impl FnMut(&BadReport<'_>) + Send + 'static) -> Self {
        self.on_bad = Box::new(report);
        self
    }

    /// Current state, to resume from.
    pub fn state(&self) -> LoaderState {
        self.state.clone()
    }

    fn next_group(&mut self) -> Result<Option<Group<T>>> {
        while self.ready.is_empty() {
            self.state = self.window_end.clone();
            if self.config.epochs.is_some_and(|epochs| self.state.epoch >= epochs) {
                return Ok(None);
            }
            self.prepare_window()?;
        }
        let Some(rows) = self.ready.pop_front() else { return Ok(None) };
        self.state.groups += 1;
        if self.ready.is_empty() {
            self.state = self.window_end.clone();
        }
        let samples = rows.iter().flatten().map(|numbered| numbered.number).collect();
        let is_own = self.sharing.gets(self.sharing.groups);
        self.sharing.groups += 1;
        let rows = if is_own { self.complete(rows)? } else { Vec::new() };
        Ok(Some(Group { rows, samples, is_own, state: self.state() }))
    }

    /// The rows of a group of this rank, with the samples that were prepared again.
    fn complete(&mut self, rows: Vec<Vec<Numbered<T>>>) -> Result<Vec<Vec<T>>> {
        let mut complete = |sample: Numbered<T>| match sample.item {
            Some(item) => Ok(item),
            None => self.prepared_again(sample.number),
        };
        rows.into_iter().map(|row| row.into_iter().map(&mut complete).collect()).collect()
    }

    fn prepared_again(&mut self, number: usize) -> Result<T> {
        let found = self.again.as_mut().and_then(Prefetch::pop).transpose()?;
        match found {
            Some((found, Ok(item))) if found == number => Ok(item),
            Some((_, Err(reason))) => Err(Error::data(format!(
                "{} is good on one rank, but rank {} cannot use it: {reason}; give all ranks the same files",
                (self.describe)(number),
                self.sharing.world.rank()
            ))),
            _ => Err(Error::data("samples are prepared in another order than they were asked for; this is a bug")),
        }
    }

    /// Prepares the groups of the window that begins at the current state.
    fn prepare_window(&mut self) -> Result<()> {
        let LoaderState { epoch, position, groups, samples, .. } = self.state;
        let length = self.config.epoch_length(samples);
        let count = self.config.grouping.window().min(length.saturating_sub(position));
        self.window_end = LoaderState { position: position + count, groups: 0, ..self.state() };
        if self.window_end.position == length {
            (self.window_end.epoch, self.window_end.position) = (epoch.saturating_add(1), 0);
        }
        let items = self.usable(count)?;
        // The seed depends on the position, so that a resumed loader draws the same numbers without saved state.
        let key = self.config.seed ^ (position as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.ready = self.config.grouping.arrange(items, &mut random_stream(key, epoch)).into();
        self.ready.drain(..groups.min(self.ready.len()));
        self.deal();
        // What is known of bad samples holds at every position.
        (self.state.bad, self.state.bad_samples) = (self.window_end.bad, self.window_end.bad_samples.clone());
        Ok(())
    }

    /// The good samples among the next `count`.
    fn usable(&mut self, count: usize) -> Result<Vec<Numbered<T>>> {
        let (mut numbers, mut found) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for left in (1..=count).rev() {
            self.fill_queue(left);
            let Some((number, is_own)) = self.queued.pop_front() else { break };
            numbers.push(number);
            found.push(if is_own { self.prefetch.pop().transpose()?.map(|(_, item)| item) } else { None });
        }
        let mut items = Vec::with_capacity(count);
        for (number, finding) in numbers.into_iter().zip(self.sharing.exchange(found)?) {
            self.window_end.seen = self.window_end.seen.saturating_add(1);
            match finding {
                Finding::Own(Ok(item)) => items.push(Numbered { number, length: item.length(), item: Some(item) }),
                Finding::Length(length) => items.push(Numbered { number, length, item: None }),
                Finding::Own(Err(reason)) => self.skip(number, &reason)?,
                Finding::Bad(reason) => self.skip(number, &BadSample::Elsewhere(reason))?,
                Finding::Unknown => {
                    return Err(Error::data("no rank has prepared a sample: give all ranks the same recipe and files"));
                }
            }
        }
        Ok(items)
    }

    /// Queues again what other ranks have prepared of this rank's groups, and drops what is for others.
    fn deal(&mut self) {
        for (at, group) in self.ready.iter_mut().enumerate() {
            let is_own = self.sharing.gets(self.sharing.groups + at);
            for sample in group.iter_mut().flatten() {
                match &mut self.again {
                    Some(again) if is_own && sample.item.is_none() => again.push(sample.number),
                    _ if !is_own => sample.item = None,
                    _ => {}
                }
            }
        }
    }

    /// Queues work for the `left` samples that are needed now and the samples to prefetch.
    fn fill_queue(&mut self, left: usize) {
        while self.queued.len() < left.max(self.config.prefetch) {
            let Some(number) = self.ahead.next() else { break };
            let is_own = self.sharing.takes_next();
            if is_own {
                self.prefetch.push(number);
            }
            self.queued.push_back((number, is_own));
        }
    }

    /// Counts and reports a bad sample, unless it came before.
    fn skip(&mut self, number: usize, reason: &BadSample) -> Result<()> {
        if !self.window_end.bad_samples.insert(number) {
            return Ok(());
        }
        self.window_end.bad = self.window_end.bad_samples.len();
        let (bad, seen) = (self.window_end.bad, self.window_end.different());
        let sample = (self.describe)(number);
        (self.on_bad)(&BadReport { sample: &sample, reason, bad, seen });
        let limit = self.config.max_bad_share;
        if is_above(limit, bad, seen, self.window_end.samples as u64, self.config.is_random()) {
            return Err(Error::data(format!(
                "{bad} of {seen} samples are bad, more than the allowed share of {limit}; the last is {sample}: {reason}. \
                 Fix the data, or raise `max_bad_share`"
            )));
        }
        Ok(())
    }
}

impl<T: Length + Send + 'static> Iterator for Loader<T> {
    type Item = Result<Group<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let group = self.next_group().transpose();
        self.failed = matches!(group, Some(Err(_)));
        group
    }
}

fn prefetch<T: Send + 'static>(
    config: &LoaderConfig,
    prepare: &Prepare<T>,
) -> Result<Prefetch<usize, (usize, SampleResult<T>)>> {
    let prepare = Arc::clone(prepare);
    Prefetch::new(config.workers, move |number| prepare(number))
}

/// Rejects a state of another data set, or beyond the `length` samples of an epoch.
fn check_state(state: &LoaderState, samples: usize, length: usize) -> Result<()> {
    if samples == 0 || length == 0 {
        return Err(Error::data("the data set contains no sample, expected at least one"));
    }
    let is_other = state.samples != 0 && state.samples != samples;
    if is_other || state.position >= length || state.bad_samples.end() > samples {
        return Err(Error::data(format!(
            "cannot resume: the loader was at sample {} of {}, but the data set now has {samples}: give the data \
             set that the run started with, or start a new run",
            state.position, state.samples
        )));
    }
    Ok(())
}
