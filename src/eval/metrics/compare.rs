//! Paired comparison of two models on the same test set.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::Interval;
use super::measure::RESAMPLES;
use crate::data::random_stream;

/// Comparison of two models by their scores of the same units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Number of units.
    pub units: usize,
    /// Mean score of the first model.
    pub first: f64,
    /// Mean score of the second model.
    pub second: f64,
    /// Mean of the second model's scores minus the first's.
    pub difference: f64,
    /// Paired bootstrap interval of the difference, 95 %.
    pub interval: Interval,
    /// How `p` was computed.
    pub test: Test,
    /// Probability of a difference at least as large between models that are equally good, two-sided.
    pub p: f64,
}

/// Test of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "name")]
pub enum Test {
    /// McNemar's exact test, of scores that are all 0 or 1.
    #[serde(rename = "mcnemar")]
    McNemar {
        /// Units that only the first model got right.
        only_first: usize,
        /// Units that only the second model got right.
        only_second: usize,
    },
    /// Paired bootstrap, of graded scores: twice the share of resamples whose difference has the other sign.
    PairedBootstrap,
}

/// Compares pairs of scores of the same units, first and second model; `None` for no pairs.
pub fn compare(pairs: &[(f64, f64)], seed: u64) -> Option<Comparison> {
    if pairs.is_empty() {
        return None;
    }
    let mean = |score: fn(&(f64, f64)) -> f64| pairs.iter().map(score).sum::<f64>() / pairs.len() as f64;
    let (first, second) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let differences = resampled_differences(pairs, seed);
    let count = |is_counted: fn(&(f64, f64)) -> bool| pairs.iter().filter(|pair| is_counted(pair)).count();
    let is_graded = pairs.iter().any(|pair| [pair.0, pair.1].iter().any(|score| *score != 0.0 && *score != 1.0));
    let (test, p) = if is_graded {
        (Test::PairedBootstrap, bootstrap_p(&differences))
    } else {
        let (only_first, only_second) = (count(|pair| pair.0 > pair.1), count(|pair| pair.1 > pair.0));
        (Test::McNemar { only_first, only_second }, mcnemar_p(only_first, only_second))
    };
    let (units, difference, interval) = (pairs.len(), second - first, Interval::of(differences));
    Some(Comparison { units, first, second, difference, interval, test, p })
}

fn resampled_differences(pairs: &[(f64, f64)], seed: u64) -> Vec<f64> {
    let difference = |resample: u64| {
        let mut rng = random_stream(seed, resample);
        let drawn = (0..pairs.len()).map(|_| pairs[rng.random_range(0..pairs.len())]);
        drawn.map(|(first, second)| second - first).sum::<f64>() / pairs.len() as f64
    };
    (0..RESAMPLES).map(difference).collect()
}

/// The resample that is the data itself counts with either sign, so that no difference has probability 0.
fn bootstrap_p(differences: &[f64]) -> f64 {
    let share = |count: usize| (count + 1) as f64 / (differences.len() + 1) as f64;
    let below = share(differences.iter().filter(|difference| **difference <= 0.0).count());
    let above = share(differences.iter().filter(|difference| **difference >= 0.0).count());
    (2.0 * below.min(above)).min(1.0)
}

/// Probability that a fair coin falls at least as unevenly.
fn mcnemar_p(only_first: usize, only_second: usize) -> f64 {
    let tosses = only_first + only_second;
    let mut log_probability = -(tosses as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for heads in 0..=only_first.min(only_second) {
        sum += log_probability.exp();
        log_probability += ((tosses - heads) as f64 / (heads + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_is_the_exact_binomial_test() {
        // 2 * (1 + 10) / 2^10 and 2 * (1 + 5 + 10) / 2^5.
        assert!((mcnemar_p(1, 9) - 22.0 / 1024.0).abs() < 1e-12);
        assert!((mcnemar_p(3, 2) - 1.0).abs() < 1e-12 && mcnemar_p(0, 0) == 1.0 && mcnemar_p(5, 5) == 1.0);
        assert!(mcnemar_p(0, 5000) >= 0.0 && (0.3..0.4).contains(&mcnemar_p(49_500, 50_500 - 700)));
    }

    #[test]
    fn right_and_wrong_are_tested_by_mcnemar() {
        let pairs = [vec![(1.0, 1.0); 50], vec![(0.0, 1.0); 9], vec![(1.0, 0.0); 1]].concat();
        let found = compare(&pairs, 0).unwrap();
        assert_eq!(found.test, Test::McNemar { only_first: 1, only_second: 9 });
        assert!((found.p - 22.0 / 1024.0).abs() < 1e-12 && (found.difference - 8.0 / 60.0).abs() < 1e-12);
        assert!(found.interval.low > 0.0 && found.interval.high < 0.25, "{found:?}");
    }

    #[test]
    fn graded_scores_are_tested_by_the_bootstrap() {
        let pairs =
            |shift: f64| Vec::from_iter((0..200).map(|i| (f64::from(i % 7) / 7.0, f64::from(i % 5) / 5.0 + shift)));
        let (better, same) = (compare(&pairs(0.2), 1).unwrap(), compare(&pairs(3.0 / 7.0 - 0.4), 1).unwrap());
        assert!(better.test == Test::PairedBootstrap && better.p < 0.01 && better.interval.low > 0.0, "{better:?}");
        assert!(same.p > 0.5 && same.interval.low < 0.0 && same.interval.high > 0.0, "{same:?}");
        assert_eq!(compare(&[], 0), None);
    }
}
