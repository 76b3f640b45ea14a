//! Average normalised Levenshtein similarity, the metric of DocVQA.

use super::python_text::words;

/// Smallest similarity that counts.
const THRESHOLD: f64 = 0.5;

/// Most characters of texts that are compared one by one; longer ones are equal or have nothing in common.
const MAX_CHARS: usize = 10_000;

/// Similarity of an answer to the nearest of the right answers, 0 to 1: one minus their edit distance over the length of
/// the longer one, in characters, or 0 below one half. The distance is that of the texts in lower case with single spaces;
/// lengths are those of the texts as they are, in capitals, as in the published scorer. Two empty texts are equal.
///
/// ANLS of a test set is the mean over its questions. Without any right answer the similarity is 0. Texts of more than
/// 10,000 characters are similar only if they are equal.
pub fn anls<A: AsRef<str>>(answer: &str, right: &[A]) -> f64 {
    let similarity = |right: &A| 1.0 - normalised_distance(right.as_ref(), answer);
    let best = right.iter().map(similarity).fold(0.0, f64::max);
    if best < THRESHOLD { 0.0 } else { best }
}

fn plain(text: &str) -> Vec<char> {
    Vec::from_iter(words(&text.to_lowercase())).join(" ").chars().collect()
}

fn normalised_distance(a: &str, b: &str) -> f64 {
    let longest = length(a).max(length(b));
    let (a, b) = (plain(a), plain(b));
    if a.len().max(b.len()) > MAX_CHARS {
        return f64::from(a != b);
    }
    if longest == 0 { 0.0 } else { distance(&a, &b) as f64 / longest as f64 }
}

/// Characters of a text in capitals, white space included.
fn length(text: &str) -> usize {
    text.chars().map(|c| c.to_uppercase().count()).sum()
}

/// Levenshtein distance, in memory of one row.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row = Vec::from_iter(0..=b.len());
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_characters() {
        let distance_of = |a: &str, b: &str| distance(&plain(a), &plain(b));
        assert_eq!(distance_of("kitten", "sitting"), 3);
        assert_eq!((distance_of("", "abc"), distance_of("abc", ""), distance_of("é", "e")), (3, 3, 1));
    }

    #[test]
    fn the_nearest_answer_counts_and_half_is_the_limit() {
        assert_eq!(anls("  New\n YORK", &["new york", "NY"]), 1.0);
        assert_eq!(anls("abxy", &["abcd"]), 0.5);
        assert_eq!(anls("axyz", &["abcd"]), 0.0);
        assert_eq!(anls("kitten", &["zzz", "sitting"]), 1.0 - 3.0 / 7.0);
        // White space counts in the length, not in the distance; the capital of `ß` is two letters.
        assert_eq!((anls("New Yorc", &["New  York"]), anls("ab", &["a  b"])), (1.0 - 1.0 / 9.0, 0.75));
        assert_eq!((anls("b", &["a b", "a  b"]), anls("straße 5", &["strase 5"])), (0.5, 1.0 - 1.0 / 9.0));
        assert_eq!(anls("t f riexl\n", &["t f riehl"]), 0.9);
        let long = "a".repeat(20_000);
        assert_eq!((anls(&long, &[&long]), anls(&long, &[format!("{long}a")])), (1.0, 0.0));
        assert_eq!((anls("", &["a"]), anls("", &[""]), anls::<&str>("a", &[])), (0.0, 1.0, 0.0));
    }
}
