//! Scores of free answers to questions with one or several right answers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::answers::{answers_match, normalise_answer};
use super::{Accuracy, Tally};

/// Number of equal right answers that give the full VQA score.
const FULL_SCORE: f64 = 3.0;

/// Score of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AnswerScore {
    /// Whether the answer equals a right answer, apart from white space around it.
    pub exact: bool,
    /// Whether the answer and a right answer [match](answers_match) after normalisation.
    pub normalised: bool,
    /// VQA score: a third of the number of right answers that match, at most 1. `None` for fewer than three right
    /// answers, of which none could reach 1.
    pub vqa: Option<f64>,
}

impl AnswerScore {
    /// The score of the answer `given`, where all of `right` are right.
    pub fn new<A: AsRef<str>>(given: &str, right: &[A]) -> Self {
        let matching = right.iter().filter(|right| answers_match(given, right.as_ref())).count();
        Self {
            exact: right.iter().any(|right| right.as_ref().trim() == given.trim()),
            normalised: matching > 0,
            vqa: (right.len() as f64 >= FULL_SCORE).then(|| (matching as f64 / FULL_SCORE).min(1.0)),
        }
    }
}

/// Scores of all answers of a test set, by kind of question and by right answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AnswerScores {
    /// Exact matches by kind.
    pub exact: Accuracy,
    /// Matches after normalisation by kind.
    pub normalised: Accuracy,
    /// Exact matches by the normal form of the first right answer.
    pub exact_by_answer: BTreeMap<String, Tally>,
    /// Matches after normalisation by the normal form of the first right answer.
    pub normalised_by_answer: BTreeMap<String, Tally>,
    vqa_sum: f64,
    vqa_count: usize,
}

impl AnswerScores {
    /// Counts the answer `given` to a question of this kind, where all of `right` are right, and returns its score.
    pub fn add<A: AsRef<str>>(&mut self, kind: &str, given: &str, right: &[A]) -> AnswerScore {
        let score = AnswerScore::new(given, right);
        let first = normalise_answer(right.first().map_or("", AsRef::as_ref));
        self.exact.count(kind, score.exact);
        self.normalised.count(kind, score.normalised);
        self.exact_by_answer.entry(first.clone()).or_default().add(score.exact);
        self.normalised_by_answer.entry(first).or_default().add(score.normalised);
        self.vqa_sum += score.vqa.unwrap_or(0.0);
        self.vqa_count += usize::from(score.vqa.is_some());
        score
    }

    /// Mean VQA score of the questions that have one, 0 to 1; `None` if there is none.
    pub fn vqa(&self) -> Option<f64> {
        (self.vqa_count > 0).then(|| self.vqa_sum / self.vqa_count as f64)
    }

    /// The right answers that were asked for most often, at most `count`, the most frequent first; ties in alphabetical
    /// order.
    pub fn most_frequent(&self, count: usize) -> Vec<&str> {
        let mut answers = Vec::from_iter(self.normalised_by_answer.iter().map(|(answer, tally)| (tally.total, answer)));
        answers.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        answers.into_iter().take(count).map(|(_, answer)| answer.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_right_answer_is_matched_exactly_or_after_normalisation() {
        let score = |given| AnswerScore::new(given, &["two"]);
        assert_eq!(score(" two "), AnswerScore { exact: true, normalised: true, vqa: None });
        assert_eq!(score("2."), AnswerScore { exact: false, normalised: true, vqa: None });
        assert_eq!(score(""), AnswerScore { exact: false, normalised: false, vqa: None });
    }

    #[test]
    fn several_right_answers_give_the_vqa_score() {
        let right = ["yes", "Yes", "yes.", "no", "maybe"];
        assert_eq!(AnswerScore::new("yes", &right).vqa, Some(1.0));
        assert_eq!(AnswerScore::new("no", &right).vqa, Some(1.0 / 3.0));
        assert_eq!(AnswerScore::new("red", &right), AnswerScore { exact: false, normalised: false, vqa: Some(0.0) });
    }

    #[test]
    fn tables_are_by_kind_and_by_right_answer() {
        let mut scores = AnswerScores::default();
        scores.add("count", "2", &["two"]);
        scores.add("count", "two", &["Two"]);
        scores.add("colour", "red", &["blue", "red", "navy"]);
        assert_eq!(scores.exact.overall(), Tally { right: 1, total: 3 });
        assert_eq!(scores.normalised.kinds()["count"], Tally { right: 2, total: 2 });
        assert_eq!(scores.normalised_by_answer["2"], Tally { right: 2, total: 2 });
        assert_eq!(scores.exact_by_answer["blue"], Tally { right: 1, total: 1 });
        assert_eq!((scores.most_frequent(1), scores.vqa()), (vec!["2"], Some(1.0 / 3.0)));
        assert_eq!(AnswerScores::default().vqa(), None);
    }
}
