//! Bootstrap intervals of accuracies.

use std::collections::BTreeMap;
use std::ops::Range;

use haplovl::eval::Tally;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::correctness::Correctness;

/// Number of resamples.
pub(super) const RESAMPLES: usize = 2000;
/// Seed of the resamples, the same for every interval, so that those of two entries are paired.
const SEED: u64 = 1;

/// Correctness of an entry's answers by seed, in the same test.
pub struct Graded<'a> {
    seeds: BTreeMap<u64, &'a Correctness>,
}

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub interval: [f64; 2],
}

impl<'a> Graded<'a> {
    /// The answers of each seed.
    pub fn new(seeds: impl IntoIterator<Item = (u64, &'a Correctness)>) -> Self {
        Self { seeds: seeds.into_iter().collect() }
    }

    /// Accuracy of a kind of question with its percentile interval over seeds and scenes, both drawn with replacement.
    pub fn accuracy(&self, kind: &str) -> Estimate {
        let tallies = Vec::from_iter(self.seeds.values().map(|answers| answers.tallies(kind)));
        let resampled = draws(tallies.len(), scenes(&tallies)).map(|draw| draw.accuracy(&tallies));
        Estimate::of(mean(&tallies), resampled.collect())
    }

    /// Number of seeds that both entries have.
    pub fn common_seeds(&self, other: &Self) -> usize {
        self.paired(other).count()
    }

    /// Accuracy of this entry minus that of another one, over the seeds that both have.
    pub fn difference(&self, other: &Self, kind: &str) -> Estimate {
        let pairs = self.paired(other).map(|(own, other)| (own.tallies(kind), other.tallies(kind)));
        let (own, others): (Vec<_>, Vec<_>) = pairs.unzip();
        let scenes = scenes(&own).min(scenes(&others));
        let resampled = draws(own.len(), scenes).map(|draw| draw.accuracy(&own) - draw.accuracy(&others));
        Estimate::of(mean(&own) - mean(&others), resampled.collect())
    }

    fn paired(&self, other: &Self) -> impl Iterator<Item = (&'a Correctness, &'a Correctness)> {
        self.seeds.iter().filter_map(|(seed, own)| Some((*own, *other.seeds.get(seed)?)))
    }
}

/// Scenes of every test.
fn scenes(tallies: &[Vec<Tally>]) -> usize {
    tallies.iter().map(Vec::len).min().unwrap_or(0)
}

fn mean(tallies: &[Vec<Tally>]) -> f64 {
    sum(tallies.iter().flatten()).accuracy()
}

fn sum<'a>(tallies: impl Iterator<Item = &'a Tally>) -> Tally {
    tallies.fold(Tally::default(), |sum, t| Tally { right: sum.right + t.right, total: sum.total + t.total })
}

/// One resample: which seeds, and which scenes.
struct Draw {
    seeds: Vec<usize>,
    scenes: Vec<usize>,
}

impl Draw {
    fn accuracy(&self, tallies: &[Vec<Tally>]) -> f64 {
        let of_seed = |&seed: &usize| self.scenes.iter().filter_map(move |&scene| tallies.get(seed)?.get(scene));
        sum(self.seeds.iter().flat_map(of_seed)).accuracy()
    }
}

fn draws(seeds: usize, scenes: usize) -> impl Iterator<Item = Draw> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    (0..RESAMPLES).map(move |_| Draw { seeds: sample(0..seeds, &mut rng), scenes: sample(0..scenes, &mut rng) })
}

/// As many indices as there are, with replacement.
fn sample(range: Range<usize>, rng: &mut impl Rng) -> Vec<usize> {
    range.clone().map(|_| rng.random_range(range.clone())).collect()
}

impl Estimate {
    /// The 2.5 and 97.5 % percentiles of the resampled values.
    fn of(value: f64, mut resampled: Vec<f64>) -> Self {
        resampled.sort_by(f64::total_cmp);
        let at = |share: f64| resampled.get(((resampled.len() as f64 - 1.0) * share).round() as usize).copied();
        Self { value, interval: [at(0.025), at(0.975)].map(|bound| bound.unwrap_or(value)) }
    }

    /// In percent: `71.2 (69.0 to 73.5)`.
    pub fn percent(&self) -> String {
        // Rounded first, so that a small negative number is no `-0.0`.
        let [low, high] = self.interval.map(|bound| (1000.0 * bound).round() / 10.0 + 0.0);
        format!("{:.1} ({low:.1} to {high:.1})", (1000.0 * self.value).round() / 10.0 + 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::correctness::ALL;
    use super::*;

    /// Correctness of the answers to one question about each scene.
    fn answers(scenes: u64, right: impl Fn(u64) -> bool) -> Correctness {
        let text = (0..scenes).map(|scene| if right(scene) { '1' } else { '0' }).collect();
        BTreeMap::from([("size".to_string(), text)]).try_into().unwrap()
    }

    #[test]
    fn an_interval_holds_the_value_and_shrinks_with_the_scenes() {
        let width = |scenes| {
            let answers = answers(scenes, |scene| scene % 4 > 0);
            let Estimate { value, interval: [low, high] } = Graded::new([(1, &answers)]).accuracy("size");
            assert!(value == 0.75 && low <= value && value <= high);
            high - low
        };
        // 1.96 standard errors of a share of three quarters on either side.
        let expected = |scenes: f64| 2.0 * 1.96 * (0.75 * 0.25 / scenes).sqrt();
        assert!((width(100) - expected(100.0)).abs() < 0.02, "{}", width(100));
        assert!((width(400) - expected(400.0)).abs() < 0.01, "{}", width(400));
    }

    #[test]
    fn differences_are_paired_by_scene() {
        let own = answers(200, |scene| scene % 2 == 0);
        let better = answers(200, |scene| scene % 2 == 0 || scene % 10 == 1);
        let [own, better] = [&own, &better].map(|answers| Graded::new([(1, answers)]));
        let Estimate { value, interval: [low, high] } = better.difference(&own, ALL);
        assert!((value - 0.1).abs() < 1e-9 && low > 0.05 && high < 0.15, "{low} {high}");
        assert_eq!(own.difference(&own, "size").interval, [0.0, 0.0]);
        assert_eq!(own.accuracy("colour").value, 0.0);
    }

    #[test]
    fn differences_are_of_the_seeds_that_both_have() {
        let [none, all, half] = [0, 1, 2].map(|n| answers(10, move |scene| n == 1 || n == 2 && scene < 5));
        let (own, other) = (Graded::new([(1, &none), (2, &all), (3, &half)]), Graded::new([(3, &half), (2, &none)]));
        assert_eq!((own.common_seeds(&other), own.difference(&other, ALL).value), (2, 0.5));
        let other = Graded::new([(4, &half)]);
        assert_eq!((own.common_seeds(&other), own.difference(&other, ALL).value), (0, 0.0));
    }
}
