//! Yes and no, the answers of POPE.

use std::ops::Add;

use serde::{Deserialize, Serialize};

/// An answer of yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum YesNo {
    /// Yes, the class that precision and recall are about.
    Yes,
    /// No.
    No,
}

impl YesNo {
    /// Reads an answer as POPE's scorer does: no, if its first sentence has the word `No`, `no` or `not`, in just this
    /// case and between spaces; else yes, whatever it says.
    pub fn of_answer(answer: &str) -> Self {
        let sentence = answer.split('.').next().unwrap_or_default().replace(',', "");
        let is_no = sentence.split(' ').any(|word| matches!(word, "No" | "not" | "no"));
        if is_no { Self::No } else { Self::Yes }
    }

    /// Whether an answer says neither yes nor no, so that [`Self::of_answer`] takes it for yes.
    pub fn is_neither(answer: &str) -> bool {
        let words = || answer.split(|c: char| !c.is_alphanumeric());
        Self::of_answer(answer) == Self::Yes && !words().any(|word| word.eq_ignore_ascii_case("yes"))
    }

    /// Reads a right answer; `None` if it is neither `yes` nor `no`, in any case.
    pub fn of_label(label: &str) -> Option<Self> {
        match label.trim().to_lowercase().as_str() {
            "yes" => Some(Self::Yes),
            "no" => Some(Self::No),
            _ => None,
        }
    }
}

/// Numbers of answers by what they say and what is right. Shares without a case, such as the precision of a model that
/// never says yes, are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct YesNoCounts {
    /// Yes, rightly.
    pub true_yes: f64,
    /// Yes, where no is right.
    pub false_yes: f64,
    /// No, rightly.
    pub true_no: f64,
    /// No, where yes is right.
    pub false_no: f64,
}

impl YesNoCounts {
    /// The counts of one answer.
    pub fn of(given: YesNo, right: YesNo) -> Self {
        let mut counts = Self::default();
        *match (given, right) {
            (YesNo::Yes, YesNo::Yes) => &mut counts.true_yes,
            (YesNo::Yes, YesNo::No) => &mut counts.false_yes,
            (YesNo::No, YesNo::No) => &mut counts.true_no,
            (YesNo::No, YesNo::Yes) => &mut counts.false_no,
        } = 1.0;
        counts
    }

    /// Number of answers.
    pub fn total(&self) -> f64 {
        self.true_yes + self.false_yes + self.true_no + self.false_no
    }

    /// Share of right answers.
    pub fn accuracy(&self) -> f64 {
        share(self.true_yes + self.true_no, self.total())
    }

    /// Share of right ones among the answers that say yes.
    pub fn precision(&self) -> f64 {
        share(self.true_yes, self.true_yes + self.false_yes)
    }

    /// Share of answers that say yes where that is right.
    pub fn recall(&self) -> f64 {
        share(self.true_yes, self.true_yes + self.false_no)
    }

    /// Harmonic mean of precision and recall.
    pub fn f1(&self) -> f64 {
        share(2.0 * self.precision() * self.recall(), self.precision() + self.recall())
    }

    /// Share of answers that say yes.
    pub fn yes_ratio(&self) -> f64 {
        share(self.true_yes + self.false_yes, self.total())
    }
}

impl Add for YesNoCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            true_yes: self.true_yes + other.true_yes,
            false_yes: self.false_yes + other.false_yes,
            true_no: self.true_no + other.true_no,
            false_no: self.false_no + other.false_no,
        }
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_no_only_by_a_word_of_its_first_sentence() {
        for answer in ["No", "no.", "No, there is none", "there is not one. Yes.", "it is no dog"] {
            assert_eq!(YesNo::of_answer(answer), YesNo::No, "{answer}");
        }
        for answer in ["Yes.", "yes. not", "NO", "There isn't", "no!", "nothing", "", "a dog"] {
            assert_eq!(YesNo::of_answer(answer), YesNo::Yes, "{answer}");
        }
        assert!(YesNo::is_neither("NO") && YesNo::is_neither("") && YesNo::is_neither("eyes"));
        assert!(!YesNo::is_neither("Yes, it is") && !YesNo::is_neither("no"));
        assert_eq!([" Yes", "NO", "maybe"].map(YesNo::of_label), [Some(YesNo::Yes), Some(YesNo::No), None]);
    }

    #[test]
    fn shares_are_of_the_counts() {
        let counts = YesNoCounts { true_yes: 6.0, false_yes: 2.0, true_no: 8.0, false_no: 4.0 };
        assert_eq!((counts.accuracy(), counts.precision(), counts.recall()), (0.7, 0.75, 0.6));
        assert!((counts.f1() - 0.9 / 1.35).abs() < 1e-12 && counts.yes_ratio() == 0.4);
        let none = YesNoCounts::default();
        assert_eq!((none.accuracy(), none.precision(), none.f1(), none.yes_ratio()), (0.0, 0.0, 0.0, 0.0));
        let two = YesNoCounts::of(YesNo::Yes, YesNo::No) + YesNoCounts::of(YesNo::No, YesNo::Yes);
        assert_eq!((two.total(), two.false_yes, two.false_no), (2.0, 1.0, 1.0));
    }
}
