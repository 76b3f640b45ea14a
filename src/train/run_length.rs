//! Length of a run: steps, and the epochs they make up.

use serde::{Deserialize, Serialize};

use super::recipe::UpdateConfig;
use crate::data::{Grouping, Length, random_stream};

/// Relative error of products of floats that is not another step.
const ROUNDING: f64 = 1e-9;

/// Steps of a run, and the epochs that they were computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunLength {
    /// Steps of the whole run.
    pub steps: u64,
    /// Bit pattern of [`UpdateConfig::epochs`], which is exact unlike a decimal number.
    pub epochs: Option<u64>,
}

impl RunLength {
    /// Length that a recipe asks for, given the size of an epoch.
    pub fn new(update: &UpdateConfig, epoch: EpochSize) -> Self {
        let epochs = update.epochs.unwrap_or(1.0);
        let batches = epochs * epoch.batches * (1.0 - ROUNDING);
        let computed = (batches / update.gradient_accumulation_steps as f64).ceil().max(1.0) as u64;
        Self { steps: update.steps.unwrap_or(computed), epochs: update.epochs.map(f64::to_bits) }
    }

    /// Length that a recipe asks for if the saved length answers it without the data: steps are given, or the same
    /// number of epochs.
    pub fn known(update: &UpdateConfig, saved: Option<Self>) -> Option<Self> {
        match (update.steps, update.epochs) {
            (Some(steps), _) => Some(Self { steps, epochs: None }),
            (None, epochs) => saved.filter(|saved| saved.epochs == epochs.map(f64::to_bits)),
        }
    }
}

/// Size of an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct EpochSize {
    /// Samples, good and bad; repeated ones count each time.
    pub samples: usize,
    /// Batches, one for each micro-batch.
    pub batches: f64,
}

impl EpochSize {
    /// Size of an epoch of `samples` samples if all of them are good: no batch holds samples of two epochs, so that the
    /// last one of an epoch may be smaller. Estimated for packed rows, from `lengths` in tokens of samples spread over
    /// the epoch.
    pub fn new(grouping: &Grouping, samples: usize, lengths: &[usize]) -> Self {
        let batches = match *grouping {
            Grouping::InOrder { rows } | Grouping::ByLength { rows, .. } => samples.div_ceil(rows) as f64,
            Grouping::Packed { window, .. } => {
                packed_batches(grouping, window.min(samples).max(1), lengths) * samples as f64
            }
        };
        Self { samples, batches }
    }
}

/// Batches for each sample, if windows of `count` samples like those of these lengths are packed.
fn packed_batches(grouping: &Grouping, count: usize, lengths: &[usize]) -> f64 {
    let windows = lengths.len().div_ceil(count).max(1);
    let all = windows * count;
    let at = |i: usize| lengths.get((i as u128 * lengths.len() as u128 / all as u128) as usize).copied();
    let batches = |window: usize| {
        let typical: Vec<_> = (window..all).step_by(windows).filter_map(at).map(Tokens).collect();
        grouping.arrange(typical, &mut random_stream(0, 0)).len()
    };
    (0..windows).map(batches).sum::<usize>() as f64 / all as f64
}

/// Length of a sample that is not prepared.
struct Tokens(usize);

impl Length for Tokens {
    fn length(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(epochs: f64, accumulation: usize) -> UpdateConfig {
        let update = UpdateConfig::new(1, 4, 1e-3);
        UpdateConfig { steps: None, epochs: Some(epochs), gradient_accumulation_steps: accumulation, ..update }
    }

    #[test]
    fn epochs_become_as_many_steps_as_show_every_sample() {
        let steps = |epochs: f64, accumulation: usize, samples: usize| {
            let epoch = EpochSize::new(&Grouping::InOrder { rows: 4 }, samples, &[]);
            RunLength::new(&update(epochs, accumulation), epoch).steps
        };
        assert_eq!(steps(3.0, 1, 100), 75);
        assert_eq!(steps(3.0, 2, 100), 38);
        assert_eq!(steps(1.0, 1, 101), 26);
        assert_eq!(steps(0.1, 1, 120), 3, "0.1 * 30 is a little more than 3 as a float");
        assert_eq!(steps(0.001, 1, 8), 1);
    }

    #[test]
    fn packed_epochs_are_estimated_from_lengths() {
        let grouping = Grouping::Packed { rows: 2, row_length: 100, window: 32 };
        // Four samples of 25 tokens fill a row, so a batch holds eight.
        let epoch = EpochSize::new(&grouping, 1000, &[25; 50]);
        assert!((epoch.batches - 125.0).abs() < 8.0, "{epoch:?}");
        let epoch = EpochSize::new(&grouping, 1000, &[60; 50]);
        assert!((epoch.batches - 500.0).abs() < 1.0, "{epoch:?}");
        assert!(EpochSize::new(&grouping, 5, &[60, 30, 60, 30, 60]).batches >= 1.0);
        assert_eq!(EpochSize::new(&grouping, 5, &[]).batches, 0.0);
    }

    #[test]
    fn a_saved_length_answers_the_same_epochs() {
        let saved = Some(RunLength { steps: 38, epochs: Some(3f64.to_bits()) });
        assert_eq!(RunLength::known(&update(3.0, 2), saved), saved);
        assert_eq!(RunLength::known(&update(4.0, 2), saved), None);
        assert_eq!(RunLength::known(&UpdateConfig::new(9, 1, 1.0), saved).unwrap().steps, 9);
    }
}
