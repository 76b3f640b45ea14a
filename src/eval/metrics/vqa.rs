//! VQA accuracy: agreement with ten annotators, after normalisation.

use super::contractions::corrected;
use super::python_text::{is_digit, strip, words};

/// Number of other annotators with the same answer that give the full score.
const FULL_AGREEMENT: f64 = 3.0;
/// Punctuation that is removed or becomes a space. Apostrophes and colons stay, for `girl's` and `2:50`.
const PUNCTUATION: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];
/// Most periods that are removed: the scorer passes a flag of this value in place of the number of replacements.
const MAX_PERIODS: usize = 32;
const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// Accuracy of an answer by VQA's scorer, 0 to 1; OK-VQA has the same.
///
/// `right` are the annotators' answers, mostly ten. For each annotator, the answer scores a third of the number of
/// *other* annotators who gave it, at most 1; the accuracy is the mean over all annotators. Without annotators it is 0.
///
/// All answers are compared after [`normalise_vqa_answer`]. If the annotators all gave one and the same answer, nothing
/// is normalised, as in the published scorer: `Yes` then scores 0 where all said `yes`.
pub fn vqa_accuracy<A: AsRef<str>>(answer: &str, right: &[A]) -> f64 {
    let answer = one_line(answer);
    let right = Vec::from_iter(right.iter().map(|right| one_line(right.as_ref())));
    let is_unanimous = right.windows(2).all(|pair| pair[0] == pair[1]);
    if is_unanimous {
        return agreement(&answer, &right);
    }
    agreement(&normalised(&answer), &Vec::from_iter(right.iter().map(|right| normalised(right))))
}

/// Accuracy of an answer by TextVQA's scorer, 0 to 1: as [`vqa_accuracy`], but after [`normalise_text_vqa_answer`],
/// which is always applied.
pub fn text_vqa_accuracy<A: AsRef<str>>(answer: &str, right: &[A]) -> f64 {
    let right = Vec::from_iter(right.iter().map(|right| normalise_text_vqa_answer(right.as_ref())));
    agreement(&normalise_text_vqa_answer(answer), &right)
}

/// Normal form of an answer by VQA's scorer:
///
/// 1. White space around it is removed, and line breaks and tabs become spaces.
/// 2. Each punctuation mark but `'`, `:` and `.` becomes a space. It is removed instead if it has a space on either side
///    anywhere in the answer, or if the answer has a comma between two digits: `1,000-2` is `10002`.
/// 3. Periods are removed unless a digit follows; the first 32 of them.
/// 4. It becomes lower case; `none` and `zero` to `ten` become digits; `a`, `an` and `the` are removed.
/// 5. Missing apostrophes are inserted: `dont` is `don't`.
pub fn normalise_vqa_answer(answer: &str) -> String {
    normalised(&one_line(answer))
}

/// Normal form of an answer by TextVQA's scorer: lower case, without `,` and `?`, with a space before `'s`, then as
/// [`normalise_vqa_answer`].
pub fn normalise_text_vqa_answer(answer: &str) -> String {
    let plain = answer.to_lowercase().replace([',', '?'], "").replace("'s", " 's");
    normalise_vqa_answer(strip(&plain))
}

/// Mean over all annotators of the agreement with the others.
fn agreement(answer: &str, right: &[String]) -> f64 {
    let matching = right.iter().filter(|right| *right == answer).count() as f64;
    let others = |right: &String| matching - f64::from(right == answer);
    let scores = right.iter().map(|right| (others(right) / FULL_AGREEMENT).min(1.0));
    scores.sum::<f64>() / right.len().max(1) as f64
}

fn one_line(answer: &str) -> String {
    strip(&answer.replace(['\n', '\t'], " ")).to_owned()
}

fn normalised(answer: &str) -> String {
    let plain = without_periods(&without_punctuation(answer)).to_lowercase();
    let numbers = words(&plain).map(|word| NUMBERS.iter().find(|(name, _)| *name == word).map_or(word, |(_, n)| n));
    let words = numbers.filter(|word| !matches!(*word, "a" | "an" | "the")).map(corrected);
    Vec::from_iter(words).join(" ")
}

fn without_punctuation(answer: &str) -> String {
    let chars = Vec::from_iter(answer.chars());
    let has_number = chars.windows(3).any(|c| c[1] == ',' && is_digit(c[0]) && is_digit(c[2]));
    let is_apart = |mark: char| chars.windows(2).any(|c| *c == [mark, ' '] || *c == [' ', mark]);
    let mut plain = answer.to_owned();
    for mark in PUNCTUATION.into_iter().filter(|mark| answer.contains(*mark)) {
        plain = plain.replace(mark, if has_number || is_apart(mark) { "" } else { " " });
    }
    plain
}

fn without_periods(answer: &str) -> String {
    let next = answer.chars().skip(1).map(Some).chain([None]);
    let mut left = MAX_PERIODS;
    let is_kept = |(c, next): &(char, Option<char>)| {
        let is_removed = *c == '.' && left > 0 && !next.is_some_and(is_digit);
        left -= usize::from(is_removed);
        !is_removed
    };
    answer.chars().zip(next).filter(is_kept).map(|(c, _)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_normalised_with_the_scorers_quirks() {
        for (answer, normal) in [
            (" The  Two\tdogs ", "2 dogs"),
            ("dont know", "don't know"),
            ("red/blue", "red blue"),
            ("red / blue", "red blue"),
            ("t-shirt", "t shirt"),
            ("t-shirt -", "tshirt"),
            ("1,000", "1000"),
            ("1,000 t-shirts", "1000 tshirts"),
            ("2.5 m.", "2.5 m"),
            (".5", ".5"),
            ("2:50 p.m.", "2:50 pm"),
            ("girl's", "girl's"),
            ("None", "0"),
            ("a", ""),
            ("", ""),
            ("Im", "im"),
            ("somebody'd", "somebodyd"),
            ("CAFÉ", "café"),
            ("no!", "no"),
            ("1,٣", "1٣"),
        ] {
            assert_eq!(normalise_vqa_answer(answer), normal, "{answer:?}");
        }
        assert_eq!(normalise_vqa_answer(&".".repeat(40)), ".".repeat(8));
    }

    #[test]
    fn the_accuracy_is_the_mean_of_leaving_each_annotator_out() {
        let answers = |yes: usize, no: usize| [vec!["yes"; yes], vec!["no"; no]].concat();
        // Three of ten: two others for the three who said it, three for the other seven.
        let three = (3.0 * 2.0 / 3.0 + 7.0) / 10.0;
        for (yes, score) in [(0, 0.0), (1, 0.3), (2, (2.0 / 3.0 + 8.0 * 2.0 / 3.0) / 10.0), (3, three), (4, 1.0)] {
            assert!((vqa_accuracy("Yes.", &answers(yes, 10 - yes)) - score).abs() < 1e-12, "{yes}");
        }
        assert_eq!(vqa_accuracy("2", &["two", "Two.", "2", "a 2", "no"]), 1.0);
        assert_eq!(vqa_accuracy::<&str>("yes", &[]), 0.0);
        assert_eq!(
            (vqa_accuracy("yes", &["yes"]), vqa_accuracy("", &["", "", "", "no"])),
            (0.0, (3.0 * 2.0 / 3.0 + 1.0) / 4.0)
        );
    }

    #[test]
    fn unanimous_answers_are_not_normalised() {
        assert_eq!(
            [" yes\n", "Yes", "yes.", "no"].map(|answer| vqa_accuracy(answer, &["yes"; 10])),
            [1.0, 0.0, 0.0, 0.0]
        );
        assert_eq!(text_vqa_accuracy("Yes.", &["yes"; 10]), 1.0);
    }

    #[test]
    fn text_vqa_takes_commas_and_possessives_apart() {
        assert_eq!(normalise_text_vqa_answer("Levi's, New"), "levi 's new");
        assert_eq!(normalise_text_vqa_answer("1,5-2?"), "15 2");
        assert_eq!(normalise_vqa_answer("1,5-2?"), "152");
    }
}
