//! CIDEr-D of captions, as the COCO caption evaluation computes it.

use std::collections::{HashMap, HashSet};

use super::ngrams::{MAX_N, NgramCounts};

/// Standard deviation of the penalty of a difference in length.
const SIGMA: f64 = 6.0;

/// Scorer of captions by CIDEr-D, with the document frequencies of the references of all images.
#[derive(Debug, Clone)]
pub struct CiderScorer<'a> {
    /// Number of images in whose references an n-gram is.
    frequencies: HashMap<Vec<&'a str>, usize>,
    images: usize,
}

/// TF-IDF weights of a caption.
struct Weights<'c, 'a> {
    weights: HashMap<&'c [&'a str], f64>,
    norms: [f64; MAX_N],
    /// Number of bigrams, which the published scorer takes for the length.
    length: f64,
}

impl<'a> CiderScorer<'a> {
    /// A scorer for images with these references, all [tokenised](super::tokenize_caption).
    pub fn new<R: AsRef<str> + 'a>(images: impl IntoIterator<Item = &'a [R]>) -> Self {
        let mut scorer = Self { frequencies: HashMap::new(), images: 0 };
        for references in images {
            scorer.images += 1;
            let ngrams = references.iter().flat_map(|reference| NgramCounts::of(reference.as_ref()).counts.into_keys());
            for ngram in HashSet::<Vec<&str>>::from_iter(ngrams) {
                *scorer.frequencies.entry(ngram).or_default() += 1;
            }
        }
        scorer
    }

    /// CIDEr-D of one caption, 0 to 10, by its references; that of a test set is the mean over its images.
    ///
    /// With a single image all weights, and so all scores, are 0. Without references the score is 0.
    pub fn score<R: AsRef<str>>(&self, caption: &str, references: &[R]) -> f64 {
        let caption = NgramCounts::of(caption);
        let caption = self.weights(&caption);
        let similarity = |reference: &R| {
            let reference = NgramCounts::of(reference.as_ref());
            similarity(&caption, &self.weights(&reference))
        };
        10.0 * references.iter().map(similarity).sum::<f64>() / references.len().max(1) as f64
    }

    fn weights<'c, 'w>(&self, caption: &'c NgramCounts<'w>) -> Weights<'c, 'w> {
        let images = (self.images.max(1) as f64).ln();
        let (mut weights, mut norms, mut length) = (HashMap::new(), [0.0; MAX_N], 0);
        for (ngram, count) in &caption.counts {
            let frequency = self.frequencies.get(ngram.as_slice()).copied().unwrap_or(0).max(1) as f64;
            let weight = *count as f64 * (images - frequency.ln());
            norms[ngram.len() - 1] += weight.powi(2);
            length += if ngram.len() == 2 { *count } else { 0 };
            weights.insert(ngram.as_slice(), weight);
        }
        Weights { weights, norms: norms.map(f64::sqrt), length: length as f64 }
    }
}

/// Mean over n = 1 to 4 of the clipped cosine similarity, less for captions of different length.
fn similarity(caption: &Weights<'_, '_>, reference: &Weights<'_, '_>) -> f64 {
    let mut products = [0.0; MAX_N];
    for (ngram, weight) in &caption.weights {
        let other = reference.weights.get(ngram).copied().unwrap_or(0.0);
        products[ngram.len() - 1] += weight.min(other) * other;
    }
    let norms = caption.norms.iter().zip(&reference.norms).map(|(a, b)| a * b);
    let cosines = products.iter().zip(norms).map(|(product, norm)| if norm > 0.0 { product / norm } else { *product });
    let penalty = (-(caption.length - reference.length).powi(2) / (2.0 * SIGMA.powi(2))).exp();
    cosines.sum::<f64>() * penalty / MAX_N as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGES: [&[&str]; 3] = [&["a red cat", "the cat"], &["a blue dog"], &["a bird in a tree"]];

    #[test]
    fn the_own_reference_scores_most_of_all() {
        let scorer = CiderScorer::new(IMAGES);
        // n = 1 to 3 have cosine 1, and there are no 4-grams.
        assert!((scorer.score("a blue dog", &["a blue dog"]) - 7.5).abs() < 1e-12);
        assert_eq!(scorer.score("", &["a blue dog"]), 0.0);
        assert_eq!(scorer.score("something else", &["a blue dog"]), 0.0);
    }

    #[test]
    fn weights_are_worked_by_hand() {
        let scorer = CiderScorer::new(IMAGES);
        // `a` is in the references of all three images, `cat` in those of one.
        let counts = NgramCounts::of("a cat cat");
        let weights = scorer.weights(&counts);
        let log3 = 3.0f64.ln();
        assert_eq!(weights.weights[&["a"][..]], 0.0);
        assert!((weights.weights[&["cat"][..]] - 2.0 * log3).abs() < 1e-12);
        assert_eq!((weights.length, weights.norms[3]), (2.0, 0.0));
        // Unigrams: min(2, 1) * 1 / (2 * 1); the length differs by two bigrams against none.
        let score = scorer.score("a cat cat", &["cat"]);
        let penalty = (-4.0f64 / 72.0).exp();
        assert!((score - 10.0 * 0.5 * penalty / 4.0).abs() < 1e-12, "{score}");
    }

    #[test]
    fn one_image_or_no_reference_scores_zero() {
        assert_eq!(CiderScorer::new([&["a cat"][..]]).score("a cat", &["a cat"]), 0.0);
        assert_eq!(CiderScorer::new(IMAGES).score::<&str>("a cat", &[]), 0.0);
        assert_eq!(CiderScorer::new::<&str>([]).score("a", &["a"]), 0.0);
    }
}
