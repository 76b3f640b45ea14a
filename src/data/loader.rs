//! The loader: shuffles, prepares samples ahead on worker threads, groups them, and can be stopped and resumed anywhere.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::prefetch::Prefetch;
use super::{BadSample, Dataset, Grouping, Length, SampleResult, guarded, random_stream};
use crate::{Error, Result};

/// So many samples, or all if there are fewer, are taken into account before the share of bad ones is held against
/// its limit, so that one bad sample at the very start does not stop a run.
const SHARE_COUNTS_FROM: u64 = 100;

/// How samples are ordered, prepared and grouped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Decides every order.
    pub seed: u64,
    /// Whether every epoch comes in an order of its own; else all come in the data set's.
    pub shuffle: bool,
    /// Epochs after which the loader ends; without limit if absent.
    pub epochs: Option<u64>,
    /// Threads that prepare samples, at least one. How many does not change what comes.
    pub workers: usize,
    /// Samples that are prepared ahead of those asked for.
    pub prefetch: usize,
    /// How samples are put together.
    pub grouping: Grouping,
    /// Share of bad samples above which the loader fails, from 0 to below 1.
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

/// Where a loader stands: all that it takes to go on with the very group that would have come next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Epochs behind it.
    pub epoch: u64,
    /// Samples of this epoch behind it, up to the present window.
    pub position: usize,
    /// Groups of the present window behind it.
    pub groups: usize,
    /// Samples seen in all, good and bad, up to the present window.
    pub seen: u64,
    /// Bad ones among them.
    pub bad: u64,
    /// Size of the data set, to notice that it has changed; 0 before the start.
    pub samples: usize,
}

/// Prepared samples for one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<T> {
    /// Rows of one sample, or of several if packed.
    pub rows: Vec<Vec<T>>,
    /// Their numbers in the data set, row by row.
    pub samples: Vec<usize>,
    /// Where the loader stands after this group.
    pub state: LoaderState,
}

/// A sample that was skipped.
#[derive(Debug)]
#[non_exhaustive]
pub struct BadReport<'a> {
    /// Its name, see [`Dataset::describe`].
    pub sample: &'a str,
    /// What is wrong with it.
    pub reason: &'a BadSample,
    /// Bad samples so far, this one included.
    pub bad: u64,
    /// Samples so far, this one included.
    pub seen: u64,
}

/// A prepared sample and its number in the data set.
struct Numbered<T> {
    number: usize,
    item: T,
}

impl<T: Length> Length for Numbered<T> {
    fn length(&self) -> usize {
        self.item.length()
    }
}

/// Yields groups of prepared samples, epoch after epoch; ends after [`LoaderConfig::epochs`] or the first error.
///
/// What comes depends on the data set, the configuration and the state alone, not on the number of threads. The window
/// that is sorted or packed at once never reaches over the end of an epoch, so that every sample comes once an epoch;
/// the last group of a window may be smaller.
pub struct Loader<T> {
    config: LoaderConfig,
    prefetch: Prefetch<usize, (usize, SampleResult<T>)>,
    ahead: Cursor,
    /// Where it stands after the groups that were handed out, and where after those that are ready too.
    state: LoaderState,
    window_end: LoaderState,
    ready: VecDeque<Vec<Vec<Numbered<T>>>>,
    describe: Box<dyn Fn(usize) -> String + Send>,
    on_bad: Box<dyn FnMut(&BadReport<'_>) + Send>,
    failed: bool,
}

impl<T: Length + Send + 'static> Loader<T> {
    /// A loader that goes on from `state` (the default one is the start). `prepare` turns a sample into what a batch is
    /// made of, on a worker thread: decoding images, tokenizing.
    ///
    /// # Errors
    /// [`Error::Config`] as [`LoaderConfig::validate`]; [`Error::Data`] for an empty data set and for a state of
    /// another one.
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

    /// Calls `report` for every bad sample; after resuming again for those of the window that is begun anew.
    #[must_use]
    pub fn on_bad(mut self, report: impl FnMut(&BadReport<'_>) + Send + 'static) -> Self {
        self.on_bad = Box::new(report);
        self
    }

    /// Where it stands.
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

    /// Makes the groups of the window that begins at the present state.
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
        // Keyed by place, so that a resumed loader draws the same without any state.
        let key = self.config.seed ^ (position as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.ready = self.config.grouping.arrange(items, &mut random_stream(key, epoch)).into();
        self.ready.drain(..groups.min(self.ready.len()));
        Ok(())
    }

    /// Keeps the workers supplied: with the `left` samples that are needed now, and some to come.
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
                 Mend the data, or raise `max_bad_share`"
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

/// Refuses a state of another data set.
fn check_state(state: &LoaderState, samples: usize) -> Result<()> {
    if samples == 0 {
        return Err(Error::data("the data set holds no sample, expected at least one"));
    }
    if state.samples != 0 && state.samples != samples || state.position >= samples {
        return Err(Error::data(format!(
            "cannot go on: the loader stood at sample {} of {}, but the data set now holds {samples}: give the data \
             set that the run began with, or begin anew",
            state.position, state.samples
        )));
    }
    Ok(())
}

/// The numbers of all samples, epoch after epoch.
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

    /// Sets the order of the present epoch, which follows from its number alone.
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
