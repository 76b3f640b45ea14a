//! Exact match of short answers, the accuracy of GQA.

use super::python_text::strip;

/// Whether an answer is the right one apart from case, white space around it and periods at its end, which GQA's answers
/// never have; an empty answer is wrong.
///
/// GQA's own scorer compares the texts as they are, since its answers are chosen from a list; sentences of a language
/// model begin with a capital and end with a period.
pub fn exact_match(answer: &str, right: &str) -> bool {
    let answer = plain(answer);
    !answer.is_empty() && answer == plain(right)
}

fn plain(answer: &str) -> String {
    strip(strip(answer).trim_end_matches('.')).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_case_space_and_periods_at_the_end_are_ignored() {
        assert!(exact_match(" Yes. ", "yes") && exact_match("CAFÉ", "café"));
        for (answer, right) in [("yes!", "yes"), ("a dog", "dog"), ("", ""), (".", "."), ("1.5", "15")] {
            assert!(!exact_match(answer, right), "{answer:?} and {right:?}");
        }
    }
}
