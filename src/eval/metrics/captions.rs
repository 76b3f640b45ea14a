//! All caption metrics of a test set.

use super::{BleuCounts, CiderScorer, Measure, bleu, rouge_l, tokenize_captions};

/// Scores of the caption of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CaptionScores {
    /// CIDEr-D, 0 to 10.
    pub cider: f64,
    /// ROUGE-L, 0 to 1.
    pub rouge_l: f64,
    /// Counts of BLEU, which is computed over all captions.
    pub bleu: BleuCounts,
}

/// Scores each caption by the references of its image. Document frequencies are those of all the references here, so
/// that a part of a test set has other scores of CIDEr-D than the same captions in the whole.
pub fn score_captions<R: AsRef<str>>(captions: &[(R, Vec<R>)]) -> Vec<CaptionScores> {
    let mut references = tokenize_captions(captions.iter().flat_map(|(_, references)| references)).into_iter();
    let answers = tokenize_captions(captions.iter().map(|(caption, _)| caption)).into_iter();
    let counts = captions.iter().map(|(_, references)| references.len());
    let tokenized = answers.zip(counts).map(|(caption, count)| (caption, references.by_ref().take(count).collect()));
    let tokenized: Vec<(String, Vec<String>)> = tokenized.collect();
    let scorer = CiderScorer::new(tokenized.iter().map(|(_, references)| references.as_slice()));
    let score = |(caption, references): &(String, Vec<String>)| CaptionScores {
        cider: scorer.score(caption, references),
        rouge_l: rouge_l(caption, references),
        bleu: BleuCounts::of(caption, references),
    };
    tokenized.iter().map(score).collect()
}

impl CaptionScores {
    /// CIDEr-D, BLEU-1 to BLEU-4 and ROUGE-L of a test set; resample units are images.
    pub fn measures(scores: &[Self]) -> Vec<Measure> {
        let mean = |name: &str, of: fn(&Self) -> f64| Measure::mean(name, "image", scores.iter().map(of));
        let counts = || scores.iter().map(|score| score.bleu.to_array());
        let bleu: [fn(&[f64]) -> f64; 4] = [
            |sums| bleu(&BleuCounts::from_slice(sums))[0],
            |sums| bleu(&BleuCounts::from_slice(sums))[1],
            |sums| bleu(&BleuCounts::from_slice(sums))[2],
            |sums| bleu(&BleuCounts::from_slice(sums))[3],
        ];
        let bleu = bleu.into_iter().zip(1..);
        let mut measures = vec![mean("CIDEr-D", |score| score.cider)];
        measures.extend(bleu.map(|(value, n)| Measure::new(format!("BLEU-{n}"), "image", counts(), value)));
        measures.push(mean("ROUGE-L", |score| score.rouge_l));
        measures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_of_all_captions_together() {
        let captions = [
            ("A red cat.", vec!["a red cat", "The cat!"]),
            ("a dog", vec!["a blue dog"]),
            ("", vec!["a bird in a tree"]),
        ];
        let scores = score_captions(&captions);
        assert!((scores[0].rouge_l - 1.0).abs() < 1e-12 && scores[2].cider == 0.0);
        let measures = CaptionScores::measures(&scores);
        let names = Vec::from_iter(measures.iter().map(Measure::name));
        assert_eq!(names, ["CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]);
        let mean = scores.iter().map(|score| score.cider).sum::<f64>() / 3.0;
        assert_eq!(measures[0].value(), mean);
        // Five of five unigrams match; eleven words of references stand against five.
        assert!((measures[1].value() - (1.0 - 11.0f64 / 5.0).exp()).abs() < 1e-6);
        assert!(score_captions::<&str>(&[]).is_empty());
    }
}
