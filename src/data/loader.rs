//! The data loader: shuffling, prefetching on worker threads, grouping, and exact resuming.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::prefetch::Prefetch;
use super::{BadSample, Dataset, Grouping, Length, SampleResult, guarded, random_stream};
use crate::{Error, Result};

/// Smallest number of samples (or the whole data set if that is smaller) that the share of bad samples is computed
/// over, so that one bad sample at the start does not stop a run.
const SHARE_COUNTS_FROM: u64 = 100;

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
    /// Share of bad samples above which the loader fails, at least 0 and below 1.
    pub max_bad_share: f64,
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
}

/// Position of a loader, from which it resumes with exactly the next group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Bad samples among `seen`.
    pub bad: u64,
    /// Size of the data set, to detect changes; 0 before the start.
    pub samples: usize,
}

/// Prepared samples for one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<T> {
    /// Rows of one sample each, or of several samples if packed.
    pub rows: Vec<Vec<T>>,
    /// Indices of the samples in the data set, row by row.
    pub samples: Vec<usize>,
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
    /// Bad samples so far, this one included.
    pub bad: u64,
    /// Samples so far, this one included.
    pub seen: u64,
}

/// A prepared sample and its index in the data set.
struct Numbered<T> {
    number: usize,
    item: T,
}

impl<T: Length> Length for Numbered<T> {
    fn length(&self) -> usize {
        self.item.length()
    }
}

/// Iterator over groups of prepared samples, epoch after epoch; ends after [`LoaderConfig::epochs`] or the first error.
///
/// The groups depend only on the data set, the configuration and the state, not on the number of threads. A window that
/// is sorted or packed never crosses the end of an epoch, so that every sample comes once per epoch; the last group of
/// a window may be smaller.
pub struct Loader<T> {
    config: LoaderConfig,
    prefetch: Prefetch<usize, (usize, SampleResult<T>)>,
    ahead: Cursor,
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
        check_state(&state, samples)?;
        let state = LoaderState { samples, ..state };
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
        let prefetch = Prefetch::new(config.workers, move |number| (number, guarded(|| get(number))))?;
        Ok(Self {
            prefetch,
            ahead: Cursor::new(&config, &state),
            config,
            state,
            window_end: state,
            ready: VecDeque::new(),
            describe: Box::new(move |number| names.describe(number)),
            on_bad: Box::new(|_| ()),
            failed: false,
        })
    }

    /// Calls `report` for every bad sample. After resuming, bad samples of the current window are reported again.
    #[must_use]
    pub fn on_bad(mut self, report: impl FnMut(&BadReport<'_>) + Send + 'static) -> Self {
        self.on_bad = Box::new(report);
        self
    }

    /// Current state, to resume from.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    fn next_group(&mut self) -> Result<Option<Group<T>>> {
        while self.ready.is_empty() {
            self.state = self.window_end;
            if self.config.epochs.is_some_and(|epochs| self.state.epoch >= epochs) {
                return Ok(None);
            }
            self.prepare_window()?;
        }
        let Some(rows) = self.ready.pop_front() else { return Ok(None) };
        self.state.groups += 1;
        if self.ready.is_empty() {
            self.state = self.window_end;
        }
        let samples = rows.iter().flatten().map(|numbered| numbered.number).collect();
        let rows = rows.into_iter().map(|row| row.into_iter().map(|numbered| numbered.item).collect()).collect();
        Ok(Some(Group { rows, samples, state: self.state }))
    }

    /// Prepares the groups of the window that begins at the current state.
    fn prepare_window(&mut self) -> Result<()> {
        let LoaderState { epoch, position, groups, samples, .. } = self.state;
        let count = self.config.grouping.window().min(samples - position);
        self.window_end = LoaderState { position: position + count, groups: 0, ..self.state };
        if self.window_end.position == samples {
            self.window_end = LoaderState { epoch: epoch + 1, position: 0, ..self.window_end };
        }
        let mut items = Vec::with_capacity(count);
        for left in (1..=count).rev() {
            self.fill_queue(left);
            let Some((number, item)) = self.prefetch.pop().transpose()? else { break };
            self.window_end.seen += 1;
            match item {
                Ok(item) => items.push(Numbered { number, item }),
                Err(reason) => self.skip(number, &reason)?,
            }
        }
        // The seed depends on the position, so that a resumed loader draws the same numbers without saved state.
        let key = self.config.seed ^ (position as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.ready = self.config.grouping.arrange(items, &mut random_stream(key, epoch)).into();
        self.ready.drain(..groups.min(self.ready.len()));
        Ok(())
    }

    /// Queues work for the `left` samples that are needed now and the samples to prefetch.
    fn fill_queue(&mut self, left: usize) {
        while self.prefetch.in_flight() < left.max(self.config.prefetch) {
            match self.ahead.next() {
                Some(number) => self.prefetch.push(number),
                None => break,
            }
        }
    }

    /// Counts and reports a bad sample.
    fn skip(&mut self, number: usize, reason: &BadSample) -> Result<()> {
        self.window_end.bad += 1;
        let LoaderState { seen, bad, samples, .. } = self.window_end;
        let sample = (self.describe)(number);
        (self.on_bad)(&BadReport { sample: &sample, reason, bad, seen });
        let limit = self.config.max_bad_share;
        if bad as f64 > limit * seen.max(SHARE_COUNTS_FROM.min(samples as u64)) as f64 {
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

/// Rejects a state of another data set.
fn check_state(state: &LoaderState, samples: usize) -> Result<()> {
    if samples == 0 {
        return Err(Error::data("the data set contains no sample, expected at least one"));
    }
    if state.samples != 0 && state.samples != samples || state.position >= samples {
        return Err(Error::data(format!(
            "cannot resume: the loader was at sample {} of {}, but the data set now has {samples}: give the data \
             set that the run started with, or start a new run",
            state.position, state.samples
        )));
    }
    Ok(())
}

/// Indices of all samples, epoch after epoch.
struct Cursor {
    seed: u64,
    shuffle: bool,
    epochs: Option<u64>,
    epoch: u64,
    position: usize,
    order: Vec<usize>,
}

impl Cursor {
    fn new(config: &LoaderConfig, state: &LoaderState) -> Self {
        let (epoch, position) = (state.epoch, state.position);
        let order = Vec::from_iter(0..state.samples);
        let &LoaderConfig { seed, shuffle, epochs, .. } = config;
        let mut cursor = Self { seed, shuffle, epochs, epoch, position, order };
        cursor.reorder();
        cursor
    }

    /// Sets the order of the current epoch, which depends only on the seed and the number of the epoch.
    fn reorder(&mut self) {
        if self.shuffle {
            self.order.sort_unstable();
            self.order.shuffle(&mut random_stream(self.seed, self.epoch));
        }
    }
}

impl Iterator for Cursor {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.position == self.order.len() {
            self.position = 0;
            self.epoch += 1;
            self.reorder();
        }
        if self.epochs.is_some_and(|epochs| self.epoch >= epochs) {
            return None;
        }
        self.position += 1;
        self.order.get(self.position - 1).copied()
    }
}
