//! Accuracy by kind of question, and the baseline of the most common answer.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::answers::{answers_match, normalise_answer};
use crate::data::shapes::{QuestionKind, ShapesConfig, Split};

/// Count of right answers among all answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Number of right answers.
    pub right: usize,
    /// Number of all answers.
    pub total: usize,
}

impl Tally {
    /// Counts an answer.
    pub fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.total += 1;
    }

    /// Share of right answers, 0 to 1; 0 if there are no answers.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.total.max(1) as f64
    }
}

/// Accuracy by kind of question. Prints as a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    kinds: BTreeMap<String, Tally>,
}

impl Accuracy {
    /// Counts an answer, which is right if [`answers_match`], and returns whether it is right.
    pub fn add(&mut self, kind: impl ToString, given: &str, expected: &str) -> bool {
        let right = answers_match(given, expected);
        self.count(kind, right);
        right
    }

    /// Counts an answer that was judged elsewhere.
    pub fn count(&mut self, kind: impl ToString, right: bool) {
        self.kinds.entry(kind.to_string()).or_default().add(right);
    }

    /// Count of each kind, sorted by name.
    pub fn kinds(&self) -> &BTreeMap<String, Tally> {
        &self.kinds
    }

    /// Count over all kinds; every answer has the same weight.
    pub fn overall(&self) -> Tally {
        let sum = |all: Tally, kind: &Tally| Tally { right: all.right + kind.right, total: all.total + kind.total };
        self.kinds.values().fold(Tally::default(), sum)
    }

    /// The kind with the lowest accuracy.
    pub fn worst(&self) -> Option<(&str, Tally)> {
        let worst = self.kinds.iter().min_by(|a, b| a.1.accuracy().total_cmp(&b.1.accuracy()));
        worst.map(|(kind, tally)| (kind.as_str(), *tally))
    }
}

impl fmt::Display for Accuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.kinds.keys().map(String::len).max().unwrap_or(0).max("overall".len());
        writeln!(f, "{:width$}  {:>7}  {:>7}  {:>8}", "kind", "right", "of", "accuracy")?;
        let overall = self.overall();
        let rows = self.kinds.iter().map(|(kind, tally)| (kind.as_str(), tally)).chain([("overall", &overall)]);
        for (kind, tally) in rows {
            let percent = 100.0 * tally.accuracy();
            writeln!(f, "{kind:width$}  {:>7}  {:>7}  {percent:>6.1} %", tally.right, tally.total)?;
        }
        Ok(())
    }
}

/// Training scenes of [`CommonestAnswers::by_form`].
const FORM_SCENES: u64 = 2000;

/// The most common answer of each kind of question: a baseline that needs no image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommonestAnswers {
    kinds: BTreeMap<String, String>,
}

impl CommonestAnswers {
    /// The most common answers of pairs of kind and answer; ties are resolved in alphabetical order.
    pub fn of<K: ToString, A: AsRef<str>>(answers: impl IntoIterator<Item = (K, A)>) -> Self {
        let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        for (kind, answer) in answers {
            let answer = normalise_answer(answer.as_ref());
            *counts.entry(kind.to_string()).or_default().entry(answer).or_default() += 1;
        }
        let commonest = |answers: BTreeMap<String, usize>| {
            let best = answers.into_iter().rev().max_by_key(|(_, count)| *count);
            best.map(|(answer, _)| answer).unwrap_or_default()
        };
        Self { kinds: counts.into_iter().map(|(kind, answers)| (kind, commonest(answers))).collect() }
    }

    /// The most common answer to each form of question, see [`Question::form`](crate::data::shapes::Question::form), among
    /// 2,000 training scenes of shapes world.
    pub fn by_form(scenes: &ShapesConfig, kinds: &[QuestionKind]) -> Self {
        let questions = (0..FORM_SCENES).flat_map(|index| Split::Train.scene(index, scenes).test_questions(kinds));
        Self::of(questions.map(|question| (question.form(), question.answer)))
    }

    /// The most common answer to a question of this kind; empty for an unknown kind.
    pub fn answer(&self, kind: impl ToString) -> &str {
        self.kinds.get(&kind.to_string()).map_or("", String::as_str)
    }

    /// The accuracy of these answers on questions given as pairs of kind and right answer.
    pub fn accuracy<K: ToString, A: AsRef<str>>(&self, answers: impl IntoIterator<Item = (K, A)>) -> Accuracy {
        let mut accuracy = Accuracy::default();
        for (kind, answer) in answers {
            let given = self.answer(kind.to_string());
            accuracy.add(kind, given, answer.as_ref());
        }
        accuracy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERS: [(&str, &str); 6] =
        [("colour", "red"), ("colour", "Red."), ("colour", "blue"), ("count", "2"), ("count", "two"), ("count", "1")];

    #[test]
    fn a_form_has_one_answer_of_those_that_it_allows() {
        let commonest = CommonestAnswers::by_form(&ShapesConfig::default(), &QuestionKind::ALL);
        let edge = commonest.answer("which edge is the nearest to ?");
        assert!(["left", "right", "top", "bottom"].iter().any(|side| edge.contains(side)), "{edge}");
        assert!(["yes", "no"].contains(&commonest.answer("is there ?")));
        assert_eq!(commonest.answer("why ?"), "");
    }

    #[test]
    fn the_table_sums_all_kinds() {
        let mut accuracy = Accuracy::default();
        assert!(accuracy.add("colour", "Red", "red"));
        assert!(!accuracy.add("counting", "3", "two"));
        assert!(accuracy.add("counting", "two", "2"));
        assert_eq!(accuracy.overall(), Tally { right: 2, total: 3 });
        assert_eq!(accuracy.worst(), Some(("counting", Tally { right: 1, total: 2 })));
        let expected = "\
kind        right       of  accuracy
colour          1        1   100.0 %
counting        1        2    50.0 %
overall         2        3    66.7 %
";
        assert_eq!(accuracy.to_string(), expected);
    }

    #[test]
    fn the_baseline_accuracy_is_the_share_of_the_commonest_answer() {
        let commonest = CommonestAnswers::of(ANSWERS);
        assert_eq!((commonest.answer("colour"), commonest.answer("count"), commonest.answer("size")), ("red", "2", ""));
        assert_eq!(commonest.accuracy(ANSWERS).overall(), Tally { right: 4, total: 6 });
        assert_eq!(commonest.accuracy([("size", "large")]).overall().right, 0);
    }

    #[test]
    fn accuracy_without_answers_is_zero() {
        assert_eq!(Accuracy::default().overall().accuracy(), 0.0);
        assert!(Accuracy::default().worst().is_none());
    }
}
