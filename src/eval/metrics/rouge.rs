//! ROUGE-L of captions, as the COCO caption evaluation computes it.

/// Weight of recall against precision.
const BETA: f64 = 1.2;
/// Most words of a text that are compared, far more than a caption has.
const MAX_WORDS: usize = 5000;

/// ROUGE-L of a caption, 0 to 1: the F-measure (beta 1.2) of the longest common subsequence of words, from the highest
/// precision and the highest recall over the references, which may be of different ones. All are
/// [tokenised](super::tokenize_caption) texts.
///
/// Of each text, the first 5000 words count. Words are separated by single spaces, so that an empty text has one empty word: two empty texts are equal. Without
/// references the score is 0.
pub fn rouge_l<A: AsRef<str>>(caption: &str, references: &[A]) -> f64 {
    let caption = Vec::from_iter(caption.split(' ').take(MAX_WORDS));
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in references {
        let reference = Vec::from_iter(reference.as_ref().split(' ').take(MAX_WORDS));
        let common = common_subsequence(&caption, &reference) as f64;
        precision = precision.max(common / caption.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA.powi(2)) * precision * recall / (recall + BETA.powi(2) * precision)
}

/// Length of the longest common subsequence, in memory of one row.
fn common_subsequence(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for left in a {
        let mut diagonal = 0;
        for (j, right) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if left == right { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_common_subsequence_keeps_order() {
        let length =
            |a: &str, b: &str| common_subsequence(&Vec::from_iter(a.split(' ')), &Vec::from_iter(b.split(' ')));
        assert_eq!((length("a b c d", "b d a c"), length("a b", "c"), length("a a a", "a a")), (2, 0, 2));
    }

    #[test]
    fn precision_and_recall_may_come_from_different_references() {
        // Precision 1 from the first, recall 1 from the second.
        assert_eq!(rouge_l("a b", &["a b c d", "b"]), 1.0);
        let (precision, recall) = (2.0 / 3.0, 0.5);
        let expected = 2.44 * precision * recall / (recall + 1.44 * precision);
        assert!((rouge_l("a x c", &["a b c d"]) - expected).abs() < 1e-12);
        assert_eq!((rouge_l("", &["a"]), rouge_l("", &[""]), rouge_l::<&str>("a", &[])), (0.0, 1.0, 0.0));
    }
}
