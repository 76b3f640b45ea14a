//! The order of samples: shuffled epochs, with weights of sources.

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{LoaderConfig, LoaderState, random_stream};
use crate::{Error, Result};

/// Largest weight of a portion; larger numbers are typing errors.
const MAX_WEIGHT: f64 = 1000.0;
/// Most samples of an epoch, whose indices take 8 GB.
const MAX_EPOCH: usize = 1 << 30;
/// Random stream of the permutation that decides which samples of a portion an epoch repeats.
const REPEATS_STREAM: u64 = 1 << 63;

/// Consecutive samples of a data set, such as those of one source, and how often they come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Portion {
    /// Number of samples.
    pub samples: usize,
    /// Times that each sample comes per epoch, above 0 and at most 1000. Of a fraction, as many samples come once more
    /// as make it up: with 2.5, half of the samples come twice and the others three times. The next epoch takes the
    /// next samples for the fraction, so that over the epochs all samples of a portion come equally often.
    pub weight: f64,
}

impl Portion {
    /// Copies of every sample in each epoch, and the number of samples with one copy more.
    fn copies(&self) -> (usize, usize) {
        let rest = self.weight.fract() * self.samples as f64;
        (self.weight as usize, (rest.round() as usize).min(self.samples))
    }

    /// Checks that the weight is in its range and that an epoch takes at least one sample; `field` is that of the weight.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn check(&self, field: &str) -> Result<()> {
        let Self { samples, weight } = *self;
        check_weight(field, weight)?;
        if samples == 0 || self.per_epoch() > 0 {
            return Ok(());
        }
        let message = format!(
            "is {weight:e}, which takes none of {samples} samples in an epoch: raise it, or leave out the source"
        );
        Err(Error::config(field, message))
    }

    /// Number of samples that an epoch takes from the portion.
    fn per_epoch(&self) -> usize {
        let (every, more) = self.copies();
        self.samples.saturating_mul(every).saturating_add(more)
    }

    /// Appends the samples of an epoch, of which the first has the index `start`.
    fn append(&self, start: usize, seed: u64, epoch: u64, order: &mut Vec<usize>) {
        let (every, more) = self.copies();
        (0..every).for_each(|_| order.extend(start..start + self.samples));
        if more == 0 {
            return;
        }
        let mut turns = Vec::from_iter(start..start + self.samples);
        turns.shuffle(&mut random_stream(seed, REPEATS_STREAM | start as u64));
        let first = (u128::from(epoch) * more as u128 % self.samples as u128) as usize;
        order.extend(turns.iter().cycle().skip(first).take(more));
    }
}

/// Checks the weights, that the portions make up the whole data set, and that an epoch fits in memory.
pub(super) fn check_portions(portions: &[Portion], samples: usize) -> Result<()> {
    let found = portions.iter().map(|portion| portion.samples).fold(0, usize::saturating_add);
    if !portions.is_empty() && found != samples {
        let message = format!("have {found} samples, expected all {samples} of the data set");
        return Err(Error::config("loader.portions", message));
    }
    portions.iter().try_for_each(|portion| portion.check("loader.portions.weight"))?;
    let length = epoch_length(portions, samples);
    if length > MAX_EPOCH {
        return Err(Error::data(format!(
            "an epoch has {length} samples, expected at most {MAX_EPOCH}: lower the weights, or split the data set"
        )));
    }
    Ok(())
}

/// Checks the range of a weight.
pub(crate) fn check_weight(field: &str, weight: f64) -> Result<()> {
    if weight > 0.0 && weight <= MAX_WEIGHT {
        return Ok(());
    }
    let message =
        format!("is {weight:?}, expected above 0 and at most {MAX_WEIGHT}; leave out a source that is unused");
    Err(Error::config(field, message))
}

/// Number of samples in an epoch.
pub(super) fn epoch_length(portions: &[Portion], samples: usize) -> usize {
    if portions.is_empty() {
        return samples;
    }
    portions.iter().map(Portion::per_epoch).fold(0, usize::saturating_add)
}

/// Indices of all samples, epoch after epoch.
pub(super) struct Order {
    seed: u64,
    shuffle: bool,
    epochs: Option<u64>,
    portions: Vec<Portion>,
    epoch: u64,
    position: usize,
    samples: Vec<usize>,
}

impl Order {
    pub fn new(config: &LoaderConfig, state: &LoaderState) -> Self {
        let &LoaderConfig { seed, shuffle, epochs, .. } = config;
        let whole = vec![Portion { samples: state.samples, weight: 1.0 }];
        let portions = if config.portions.is_empty() { whole } else { config.portions.clone() };
        let (epoch, position) = (state.epoch, state.position);
        let mut order = Self { seed, shuffle, epochs, portions, epoch, position, samples: Vec::new() };
        order.arrange();
        order
    }

    /// Sets the order of the current epoch, which depends only on the portions, the seed and the number of the epoch.
    fn arrange(&mut self) {
        self.samples.clear();
        let mut start = 0;
        for portion in &self.portions {
            portion.append(start, self.seed, self.epoch, &mut self.samples);
            start += portion.samples;
        }
        if self.shuffle {
            self.samples.shuffle(&mut random_stream(self.seed, self.epoch));
        }
    }
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.position == self.samples.len() {
            self.position = 0;
            self.epoch = self.epoch.saturating_add(1);
            self.arrange();
        }
        if self.epochs.is_some_and(|epochs| self.epoch >= epochs) {
            return None;
        }
        self.position += 1;
        self.samples.get(self.position - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(portions: &[Portion], epoch: u64) -> Vec<usize> {
        let samples = portions.iter().map(|portion| portion.samples).sum();
        let config = LoaderConfig { portions: portions.to_vec(), ..LoaderConfig::default() };
        let order = Order::new(&config, &LoaderState { epoch, samples, ..LoaderState::default() });
        let mut counts = vec![0; samples];
        order.take(epoch_length(portions, samples)).for_each(|index| counts[index] += 1);
        counts
    }

    #[test]
    fn an_epoch_repeats_samples_by_weight() {
        let portions = [Portion { samples: 4, weight: 2.5 }, Portion { samples: 10, weight: 0.3 }];
        for epoch in 0..3 {
            let counts = counts(&portions, epoch);
            assert_eq!(counts[..4].iter().sum::<usize>(), 10);
            assert!(counts[..4].iter().all(|count| (2..=3).contains(count)), "{counts:?}");
            assert_eq!(counts[4..].iter().sum::<usize>(), 3);
            assert!(counts[4..].iter().all(|count| *count <= 1), "{counts:?}");
        }
    }

    #[test]
    fn over_the_epochs_all_samples_come_equally_often() {
        let portions = [Portion { samples: 7, weight: 1.0 }, Portion { samples: 10, weight: 0.3 }];
        let mut total = vec![0; 17];
        for epoch in 0..10 {
            counts(&portions, epoch).iter().zip(&mut total).for_each(|(count, total)| *total += count);
        }
        assert_eq!(total, [vec![10; 7], vec![3; 10]].concat());
    }

    #[test]
    fn weights_of_one_do_not_change_the_order() {
        let order = |portions| {
            let config = LoaderConfig { portions, ..LoaderConfig::default() };
            let state = LoaderState { samples: 30, ..LoaderState::default() };
            Order::new(&config, &state).take(90).collect::<Vec<_>>()
        };
        let parts = vec![Portion { samples: 10, weight: 1.0 }, Portion { samples: 20, weight: 1.0 }];
        assert_eq!(order(vec![]), order(parts));
    }

    #[test]
    fn weights_out_of_range_are_rejected() {
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            let error = check_portions(&[Portion { samples: 3, weight }], 3).unwrap_err().to_string();
            assert!(error.contains("loader.portions.weight"), "{error}");
        }
        assert!(check_portions(&[Portion { samples: 2, weight: 1.0 }], 3).is_err());
        let never = check_portions(&[Portion { samples: 3, weight: 1e-300 }], 3).unwrap_err().to_string();
        assert!(never.contains("is 1e-300, which takes none of 3 samples in an epoch"), "{never}");
        let huge = [Portion { samples: 1 << 40, weight: 1000.0 }];
        assert!(check_portions(&huge, 1 << 40).unwrap_err().to_string().contains("lower the weights"));
    }
}
