//! Relaxed accuracy, the metric of ChartQA.

use super::python_text::{float, strip};

/// Largest relative error of a number.
const TOLERANCE: f64 = 0.05;

/// Whether an answer is right: a number within 5 % of the right one, or else the same text apart from case and white
/// space around it. `50%` is the number 0.5. If the right number is 0, the texts must be equal.
pub fn relaxed_match(answer: &str, right: &str) -> bool {
    let (answer, right) = (strip(answer), strip(right));
    match (number(answer), number(right)) {
        (Some(given), Some(expected)) if expected != 0.0 => ((given - expected) / expected).abs() <= TOLERANCE,
        _ => answer.to_lowercase() == right.to_lowercase(),
    }
}

/// Number of a text, a hundredth of it if it ends in `%`.
fn number(text: &str) -> Option<f64> {
    match text.ends_with('%') {
        true => float(text.trim_end_matches('%')).map(|percent| percent / 100.0),
        false => float(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_differ_by_five_percent() {
        for (answer, right) in [("95", "100"), ("105", "100"), ("-95", "-100"), ("0.5", "50%"), ("52 %", "0.5")] {
            assert!(relaxed_match(answer, right), "{answer} and {right}");
        }
        for (answer, right) in [("94.9", "100"), ("105.1", "100"), ("100", "-100"), ("50", "50%"), ("nan", "5")] {
            assert!(!relaxed_match(answer, right), "{answer} and {right}");
        }
    }

    #[test]
    fn other_answers_are_compared_as_texts() {
        assert!(relaxed_match(" Blue ", "blue") && relaxed_match("0", "0") && relaxed_match("1,200", "1,200"));
        for (answer, right) in [("0.0", "0"), ("1,200", "1200"), ("blue.", "blue"), ("", "blue"), ("ten", "10")] {
            assert!(!relaxed_match(answer, right), "{answer} and {right}");
        }
    }
}
