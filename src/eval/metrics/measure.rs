//! Measures of a test set, with bootstrap intervals.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::data::random_stream;

/// Number of resamples of an interval.
pub(super) const RESAMPLES: u64 = 1000;
/// Share of the resamples on either side of an interval of 95 %.
const TAIL: f64 = 0.025;

/// A measure of a test set: a function of the sums of some statistics over its units, such as questions or images.
///
/// An accuracy is the number of right answers by the number of questions; BLEU and F1 are functions of more counts.
#[derive(Debug, Clone)]
pub struct Measure {
    name: String,
    unit: &'static str,
    /// The statistics of all units, one unit after the other.
    statistics: Vec<f64>,
    /// Number of statistics of a unit.
    width: usize,
    value: fn(&[f64]) -> f64,
}

/// Interval of the values that a measure could have had on another test set of the same size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end, the 2.5th percentile.
    pub low: f64,
    /// Upper end, the 97.5th percentile.
    pub high: f64,
}

impl Measure {
    /// A measure whose value is `value` of the sums of statistics over all units; `unit` is what a unit is called.
    pub fn new<const N: usize>(
        name: impl Into<String>,
        unit: &'static str,
        statistics: impl IntoIterator<Item = [f64; N]>,
        value: fn(&[f64]) -> f64,
    ) -> Self {
        let statistics = statistics.into_iter().flatten().collect();
        Self { name: name.into(), unit, statistics, width: N.max(1), value }
    }

    /// The mean of a score of each unit.
    pub fn mean(name: impl Into<String>, unit: &'static str, scores: impl IntoIterator<Item = f64>) -> Self {
        let statistics = scores.into_iter().map(|score| [score, 1.0]);
        Self::new(name, unit, statistics, |sums| if sums[1] > 0.0 { sums[0] / sums[1] } else { 0.0 })
    }

    /// What is measured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a unit is called.
    pub fn unit(&self) -> &'static str {
        self.unit
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        self.statistics.len() / self.width
    }

    /// The value on all units.
    pub fn value(&self) -> f64 {
        let mut sums = vec![0.0; self.width];
        self.statistics.chunks(self.width).for_each(|unit| add(&mut sums, unit));
        (self.value)(&sums)
    }

    /// The percentile bootstrap interval of 95 %: from 1000 test sets of the same size, drawn with replacement from the
    /// units. The same seed gives the same interval. Without units both ends are the value.
    pub fn interval(&self, seed: u64) -> Interval {
        let units = self.units();
        if units == 0 {
            return Interval { low: self.value(), high: self.value() };
        }
        let resampled = |resample: u64| {
            let (mut rng, mut sums) = (random_stream(seed, resample), vec![0.0; self.width]);
            for _ in 0..units {
                let start = rng.random_range(0..units) * self.width;
                add(&mut sums, &self.statistics[start..start + self.width]);
            }
            (self.value)(&sums)
        };
        Interval::of((0..RESAMPLES).map(resampled).collect())
    }
}

impl Interval {
    /// The interval that leaves out 2.5 % of some values on either side, none of which is NaN.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { low: percentile(&values, TAIL), high: percentile(&values, 1.0 - TAIL) }
    }
}

fn add(sums: &mut [f64], unit: &[f64]) {
    sums.iter_mut().zip(unit).for_each(|(sum, value)| *sum += value);
}

/// The value at a share of sorted values, interpolated between its neighbours.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let value = |index: f64| sorted.get(index as usize).copied().unwrap_or(0.0);
    let (low, high) = (value(at.floor()), value(at.ceil()));
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors() {
        let measure = Measure::mean("accuracy", "question", (0..400).map(|i| f64::from(i % 4 == 0)));
        assert_eq!((measure.value(), measure.units(), measure.unit()), (0.25, 400, "question"));
        let Interval { low, high } = measure.interval(7);
        let error = 1.96 * (0.25f64 * 0.75 / 400.0).sqrt();
        assert!((0.25 - low - error).abs() < 0.008 && (high - 0.25 - error).abs() < 0.008, "{low} {high}");
        assert_eq!(measure.interval(7), measure.interval(7));
        assert_ne!(measure.interval(7), measure.interval(8));
    }

    #[test]
    fn units_are_resampled_whole() {
        // Each unit has as many right ones as wrong ones, so that no resample differs.
        let measure = Measure::new("ratio", "pair", (1..20).map(|n| [f64::from(n); 2]), |sums| sums[0] / sums[1]);
        assert_eq!(measure.interval(0), Interval { low: 1.0, high: 1.0 });
    }

    #[test]
    fn no_units_are_no_panic() {
        let measure = Measure::mean("accuracy", "question", []);
        assert_eq!((measure.value(), measure.interval(0)), (0.0, Interval { low: 0.0, high: 0.0 }));
        assert_eq!(percentile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
