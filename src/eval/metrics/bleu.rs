//! BLEU of captions, as the COCO caption evaluation computes it.

use std::collections::HashMap;

use super::ngrams::{MAX_N, NgramCounts};

/// Keeps quotients of nothing finite; the published scorer's values.
const SMALL: f64 = 1e-9;
const TINY: f64 = 1e-15;

/// Counts of one or several captions, from which BLEU is computed; counts of a corpus are the sum of its captions'.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BleuCounts {
    /// Number of n-grams of the captions that are in their references, each as often as in the reference that has it
    /// most often; for n = 1 to 4.
    pub matching: [f64; MAX_N],
    /// Number of n-grams of the captions, for n = 1 to 4.
    pub total: [f64; MAX_N],
    /// Number of words of the captions.
    pub length: f64,
    /// Number of words of the references nearest in length, of equally near ones the shorter.
    pub reference_length: f64,
}

impl BleuCounts {
    /// Number of values of [`Self::to_array`].
    pub const LEN: usize = 2 * MAX_N + 2;

    /// The counts of one caption and its references, all [tokenised](super::tokenize_caption).
    pub fn of<A: AsRef<str>>(caption: &str, references: &[A]) -> Self {
        let caption = NgramCounts::of(caption);
        let references = Vec::from_iter(references.iter().map(|reference| NgramCounts::of(reference.as_ref())));
        let mut most: HashMap<&[&str], usize> = HashMap::new();
        for (ngram, count) in references.iter().flat_map(|reference| &reference.counts) {
            let found = most.entry(ngram.as_slice()).or_default();
            *found = (*found).max(*count);
        }
        let mut counts = Self { length: caption.words as f64, ..Self::default() };
        for (ngram, count) in &caption.counts {
            let matching = most.get(ngram.as_slice()).map_or(0, |most| *most.min(count));
            counts.matching[ngram.len() - 1] += matching as f64;
        }
        counts.total = std::array::from_fn(|n| caption.words.saturating_sub(n) as f64);
        let nearest = references.iter().map(|reference| reference.words);
        let nearest = nearest.min_by_key(|words| (words.abs_diff(caption.words), *words));
        counts.reference_length = nearest.unwrap_or(0) as f64;
        counts
    }

    /// All counts in a fixed order: matching, total, length, reference length.
    pub fn to_array(self) -> [f64; Self::LEN] {
        let Self { matching: [m1, m2, m3, m4], total: [t1, t2, t3, t4], length, reference_length } = self;
        [m1, m2, m3, m4, t1, t2, t3, t4, length, reference_length]
    }

    /// The counts of [`Self::to_array`]; missing values are 0.
    pub fn from_slice(values: &[f64]) -> Self {
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        Self {
            matching: std::array::from_fn(at),
            total: std::array::from_fn(|n| at(MAX_N + n)),
            length: at(2 * MAX_N),
            reference_length: at(2 * MAX_N + 1),
        }
    }
}

/// BLEU-1 to BLEU-4 of these counts, 0 to 1: the geometric mean of the shares of matching n-grams, times the penalty of
/// captions that are shorter than their references.
pub fn bleu(counts: &BleuCounts) -> [f64; MAX_N] {
    let ratio = (counts.length + TINY) / (counts.reference_length + SMALL);
    let penalty = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
    let mut product = 1.0;
    std::array::from_fn(|n| {
        product *= (counts.matching[n] + TINY) / (counts.total[n] + SMALL);
        product.powf(1.0 / (n + 1) as f64) * penalty
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_clipped_and_the_nearest_length_counts() {
        let counts = BleuCounts::of("the the the cat", &["the cat sat", "a cat on the mat today ok"]);
        assert_eq!(counts.matching, [2.0, 1.0, 0.0, 0.0]);
        assert_eq!((counts.total, counts.length, counts.reference_length), ([4.0, 3.0, 2.0, 1.0], 4.0, 3.0));
        assert_eq!(BleuCounts::of("a b", &["a", "a b c"]).reference_length, 1.0);
        assert_eq!(BleuCounts::from_slice(&counts.to_array()), counts);
    }

    #[test]
    fn bleu_is_the_geometric_mean_with_a_penalty() {
        let same = bleu(&BleuCounts::of("a b c d e", &["a b c d e"]));
        assert!(same.iter().all(|score| (score - 1.0).abs() < 1e-6), "{same:?}");
        let [one, two, ..] = bleu(&BleuCounts::of("a b x", &["a b c d e f"]));
        let penalty = (1.0f64 - 2.0).exp();
        assert!((one - penalty * 2.0 / 3.0).abs() < 1e-6 && (two - penalty * (1.0f64 / 3.0).sqrt()).abs() < 1e-6);
    }

    #[test]
    fn empty_captions_score_nothing() {
        for (caption, reference) in [("", "a b"), ("", "")] {
            let scores = bleu(&BleuCounts::of(caption, &[reference]));
            assert!(scores.iter().all(|score| score.is_finite() && *score < 1e-3), "{scores:?}");
        }
        assert!(bleu(&BleuCounts::of::<&str>("a", &[])).iter().all(|score| score.is_finite()));
    }
}
