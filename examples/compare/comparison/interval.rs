//! Bootstrap intervals of accuracies.

use std::collections::BTreeMap;
use std::ops::Range;

use haplovl::eval::Tally;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::exam::Answered;

/// Number of resamples.
const RESAMPLES: usize = 2000;
/// Seed of the resamples, the same for every interval, so that those of two entries are paired.
const SEED: u64 = 1;

/// Name of all kinds together.
pub const ALL: &str = "all";

/// Answers of an entry's seeds to the same questions, by seed and scene.
pub struct Graded {
    seeds: Vec<BTreeMap<u64, Vec<(String, bool)>>>,
    /// Scenes of the test.
    scenes: Vec<u64>,
}

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub interval: [f64; 2],
}

impl Graded {
    /// The answers of each seed.
    pub fn new<'a>(seeds: impl IntoIterator<Item = &'a [Answered]>) -> Self {
        let by_scene = |answers: &[Answered]| {
            let mut scenes = BTreeMap::<u64, Vec<_>>::new();
            for answered in answers {
                scenes.entry(answered.scene).or_default().push((answered.kind.clone(), answered.right));
            }
            scenes
        };
        let seeds: Vec<_> = seeds.into_iter().map(by_scene).collect();
        let scenes = seeds.first().map(|scenes| scenes.keys().copied().collect()).unwrap_or_default();
        Self { seeds, scenes }
    }

    /// Right answers of questions of a kind, or of all, by seed and scene.
    fn tallies(&self, kind: &str) -> Vec<Vec<Tally>> {
        let tally = |answers: Option<&Vec<(String, bool)>>| {
            let mut tally = Tally::default();
            let of_kind = answers.into_iter().flatten().filter(|(name, _)| kind == ALL || name == kind);
            of_kind.for_each(|(_, right)| tally.add(*right));
            tally
        };
        let of_seed = |seed: &BTreeMap<_, _>| self.scenes.iter().map(|scene| tally(seed.get(scene))).collect();
        self.seeds.iter().map(of_seed).collect()
    }

    /// Accuracy of a kind of question with its percentile interval over seeds and scenes, both drawn with replacement.
    pub fn accuracy(&self, kind: &str) -> Estimate {
        let tallies = self.tallies(kind);
        let resampled = draws(tallies.len(), self.scenes.len()).map(|draw| draw.accuracy(&tallies));
        Estimate::of(mean(&tallies), resampled.collect())
    }

    /// Accuracy of this entry minus that of another one, over the seeds that both have.
    pub fn difference(&self, other: &Self, kind: &str) -> Estimate {
        let [mut own, mut others] = [self, other].map(|graded| graded.tallies(kind));
        let seeds = own.len().min(others.len());
        own.truncate(seeds);
        others.truncate(seeds);
        let scenes = self.scenes.len().min(other.scenes.len());
        let resampled = draws(seeds, scenes).map(|draw| draw.accuracy(&own) - draw.accuracy(&others));
        Estimate::of(mean(&own) - mean(&others), resampled.collect())
    }
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
        let [low, high] = self.interval;
        format!("{:.1} ({:.1} to {:.1})", 100.0 * self.value, 100.0 * low, 100.0 * high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(scene: u64, kind: &str, right: bool) -> Answered {
        let (kind, text) = (kind.to_string(), String::new());
        Answered { scene, kind, question: text.clone(), answer: text.clone(), given: text, right }
    }

    #[test]
    fn an_interval_holds_the_value_and_shrinks_with_the_scenes() {
        let exam = |scenes: u64| Vec::from_iter((0..scenes).map(|scene| answered(scene, "size", scene % 4 > 0)));
        let width = |scenes| {
            let answers = exam(scenes);
            let Estimate { value, interval: [low, high] } = Graded::new([&*answers]).accuracy("size");
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
        let own = Vec::from_iter((0..200).map(|scene| answered(scene, "size", scene % 2 == 0)));
        let better = Vec::from_iter((0..200).map(|scene| answered(scene, "size", scene % 2 == 0 || scene % 10 == 1)));
        let [own, better] = [&own, &better].map(|answers| Graded::new([&**answers]));
        let Estimate { value, interval: [low, high] } = better.difference(&own, ALL);
        assert!((value - 0.1).abs() < 1e-9 && low > 0.05 && high < 0.15, "{low} {high}");
        assert_eq!(own.difference(&own, "size").interval, [0.0, 0.0]);
        assert_eq!(own.accuracy("colour").value, 0.0);
    }
}
