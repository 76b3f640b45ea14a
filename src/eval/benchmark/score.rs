//! Scores of a model's answers to the questions of a benchmark.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::Metric;
use super::predictions::Prediction;
use super::question::Question;
use super::question_set::QuestionSet;
use crate::eval::answers_match;
use crate::eval::metrics::{
    CaptionScores, Choice, Measure, YesNo, YesNoCounts, anls, exact_match, open_match, relaxed_match, score_captions,
    text_vqa_accuracy, vqa_accuracy,
};

/// Category of all questions together.
const OVERALL: &str = "overall";
/// Splits of POPE that are averaged.
const SPLITS: usize = 3;

/// Scores of all answers, and the measures of the benchmark.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Results {
    /// The score of each question that has a prediction.
    pub scores: Vec<QuestionScore>,
    /// Measures, the benchmark's main one first, then those of categories.
    pub rows: Vec<Row>,
    /// Scores of the units that the main measure is the mean of, by name: questions, pairs, rotations of a question, images.
    pub units: Vec<(String, f64)>,
    /// Numbers of answers that are wrong for a reason other than what they say, by reason.
    pub problems: BTreeMap<&'static str, usize>,
}

/// A measure of a category.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Row {
    /// The category, or `overall`.
    pub category: String,
    /// The measure.
    pub measure: Measure,
}

/// The score of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QuestionScore {
    /// Index of the question in its set.
    pub question: usize,
    /// The score: 1 for a right answer, 0 for a wrong one, or between; up to 10 for captions.
    pub score: f64,
    /// What the answer was read as, such as a letter.
    pub read_as: Option<String>,
    /// Why the answer could not be read.
    pub problem: Option<&'static str>,
}

impl Results {
    /// Scores the answers to questions, `predictions` in their order. Questions without a prediction or without a known
    /// right answer are left out, as are pairs and rotations that have predictions in part, and those of POPE whose right
    /// answer is neither yes nor no; those that the model failed at are wrong. Without a score there are no measures.
    pub fn of(questions: &QuestionSet, predictions: &[Option<&Prediction>]) -> Self {
        let metric = questions.benchmark().metric;
        let asked = || questions.questions().iter().zip(predictions);
        let without =
            asked().filter(|(_, prediction)| prediction.is_none()).map(|(question, _)| question.group.as_str());
        let incomplete = HashSet::<&str>::from_iter(without);
        let answered = asked().enumerate();
        let answered = answered.filter_map(|(at, (question, prediction))| Some((at, question, (*prediction)?)));
        let (answered, partial): (Vec<_>, Vec<_>) =
            answered.partition(|(_, question, _)| !incomplete.contains(question.group.as_str()));
        let answered = answered.into_iter();
        let (answered, unknown): (Vec<_>, Vec<_>) = answered.partition(|(_, question, _)| !question.answers.is_empty());
        let is_yes_or_no = |question: &Question| question.answers.first().is_some_and(|a| YesNo::of_label(a).is_some());
        let (answered, unclear): (Vec<_>, Vec<_>) =
            answered.into_iter().partition(|(_, question, _)| metric != Metric::YesNo || is_yes_or_no(question));
        let captions = if metric == Metric::Captions { caption_scores(&answered) } else { Vec::new() };
        let score = |(n, (at, question, prediction)): (usize, &(usize, &Question, &Prediction))| {
            let (score, read_as, problem) = match (captions.get(n), &prediction.answer) {
                (_, None) => (0.0, None, Some("no answer")),
                (Some(scores), Some(_)) => (scores.cider, None, None),
                (None, Some(answer)) => score_answer(metric, question, answer),
            };
            QuestionScore { question: *at, score, read_as, problem }
        };
        let scores = Vec::from_iter(answered.iter().enumerate().map(score));
        let mut problems = BTreeMap::new();
        if !unknown.is_empty() {
            problems.insert("no right answer is known, not scored", unknown.len());
        }
        if !partial.is_empty() {
            problems.insert("others of their pair or rotations have no prediction, not scored", partial.len());
        }
        if !unclear.is_empty() {
            problems.insert("the right answer is neither yes nor no, not scored", unclear.len());
        }
        scores.iter().filter_map(|score| score.problem).for_each(|problem| *problems.entry(problem).or_default() += 1);
        let scored = Scored { metric, questions: questions.questions(), scores: &scores };
        let (mut rows, units) = (Vec::new(), scored.units());
        if !scores.is_empty() {
            rows.extend(scored.main_rows(&captions));
            rows.extend(scored.category_rows());
        }
        Self { scores, rows, units, problems }
    }
}

fn caption_scores(answered: &[(usize, &Question, &Prediction)]) -> Vec<CaptionScores> {
    let caption = |(_, question, prediction): &(usize, &Question, &Prediction)| {
        (prediction.answer.clone().unwrap_or_default(), question.answers.clone())
    };
    score_captions(&Vec::from_iter(answered.iter().map(caption)))
}

type AnswerScore = (f64, Option<String>, Option<&'static str>);

fn score_answer(metric: Metric, question: &Question, answer: &str) -> AnswerScore {
    let right = &question.answers;
    let any = |matches: fn(&str, &str) -> bool| f64::from(right.iter().any(|right| matches(answer, right)));
    let score = match metric {
        Metric::VqaAccuracy => vqa_accuracy(answer, right),
        Metric::TextVqaAccuracy => text_vqa_accuracy(answer, right),
        Metric::ExactMatch => any(exact_match),
        Metric::Anls => anls(answer, right),
        Metric::RelaxedAccuracy => any(relaxed_match),
        Metric::YesNo => return score_yes_no(answer, right),
        _ if !question.options.is_empty() => return score_choice(question, answer),
        _ if metric.is_choice() => return score_letter_or_text(question, answer),
        _ => any(answers_match),
    };
    (score, None, None)
}

fn score_choice(question: &Question, answer: &str) -> AnswerScore {
    let choice = Choice::find(answer, &question.options);
    let is_right =
        choice.letter().is_some_and(|letter| question.answers.iter().any(|right| right.chars().eq([letter])));
    let problem = match choice {
        Choice::Letter(_) => None,
        Choice::Ambiguous => Some("several options named"),
        Choice::Nothing => Some("no option named"),
    };
    (f64::from(is_right), Some(choice.to_string()), problem)
}

/// A question whose options are in its text has a letter for its answer, an open one a text.
fn score_letter_or_text(question: &Question, answer: &str) -> AnswerScore {
    if !question.has_letter_for_answer() {
        return (f64::from(open_match(answer, &question.answers)), None, None);
    }
    // Without texts of the options only letters are looked for.
    let letters = question.answers.iter().flat_map(|right| right.bytes());
    let last = letters.map(|letter| usize::from(letter.saturating_sub(b'A')) + 1).max().unwrap_or(0);
    let options = vec![String::new(); last.max(8)];
    score_choice(&Question { options, ..question.clone() }, answer)
}

fn score_yes_no(answer: &str, right: &[String]) -> AnswerScore {
    let given = YesNo::of_answer(answer);
    let is_right = right.first().and_then(|right| YesNo::of_label(right)) == Some(given);
    let problem = YesNo::is_neither(answer).then_some("neither yes nor no, taken for yes");
    let read_as = if given == YesNo::Yes { "yes" } else { "no" };
    (f64::from(is_right), Some(read_as.into()), problem)
}

/// The scores of a test set with their questions.
struct Scored<'s> {
    metric: Metric,
    questions: &'s [Question],
    scores: &'s [QuestionScore],
}

impl<'s> Scored<'s> {
    fn pairs(&self) -> impl Iterator<Item = (&'s Question, &'s QuestionScore)> {
        let questions = self.questions;
        self.scores.iter().filter_map(move |score| Some((questions.get(score.question)?, score)))
    }

    /// Scores of what counts as a unit: a group counts if all of its questions are right.
    fn units(&self) -> Vec<(String, f64)> {
        grouped(self.pairs())
    }

    fn main_rows(&self, captions: &[CaptionScores]) -> Vec<Row> {
        let mean = |name: &str| vec![Measure::mean(name, "question", self.scores.iter().map(|score| score.score))];
        let measures = match self.metric {
            Metric::Captions => CaptionScores::measures(captions),
            Metric::YesNo => self.yes_no_measures(),
            Metric::CircularChoice | Metric::ChoicePairs => {
                vec![self.group_measure(self.units()), self.single_measure()]
            }
            metric => mean(name_of(metric)),
        };
        measures.into_iter().map(|measure| Row { category: OVERALL.into(), measure }).collect()
    }

    fn group_measure(&self, units: Vec<(String, f64)>) -> Measure {
        let unit = if self.metric == Metric::ChoicePairs { "pair" } else { "question" };
        Measure::mean(name_of(self.metric), unit, units.into_iter().map(|(_, score)| score))
    }

    /// Accuracy of the single questions of all groups, which are resampled together.
    fn single_measure(&self) -> Measure {
        let mut groups: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
        for (question, score) in self.pairs() {
            let [sum, count] = groups.entry(&question.group).or_default();
            (*sum, *count) = (*sum + score.score, *count + 1.0);
        }
        let unit = if self.metric == Metric::ChoicePairs { "pair" } else { "question" };
        let mean = |sums: &[f64]| if sums[1] > 0.0 { sums[0] / sums[1] } else { 0.0 };
        Measure::new("accuracy", unit, groups.into_values(), mean)
    }

    fn category_rows(&self) -> Vec<Row> {
        let mut categories: BTreeMap<&str, Vec<(&Question, &QuestionScore)>> = BTreeMap::new();
        for (question, score) in self.pairs() {
            for category in question.category_names() {
                categories.entry(category).or_default().push((question, score));
            }
        }
        let rows = categories.into_iter().flat_map(|(category, pairs)| {
            let measures = match self.metric {
                Metric::YesNo => yes_no_of(counts_of(pairs.into_iter())),
                _ => vec![self.group_measure(grouped(pairs.into_iter()))],
            };
            let name = if category == OVERALL { format!("{category} (category)") } else { category.to_owned() };
            measures.into_iter().map(move |measure| Row { category: name.clone(), measure })
        });
        rows.collect()
    }

    /// POPE's measures over all questions, and their means over its splits.
    fn yes_no_measures(&self) -> Vec<Measure> {
        let splits = Vec::from_iter(BTreeSet::from_iter(self.pairs().flat_map(|(q, _)| q.category_names())));
        let mut measures = yes_no_of(counts_of(self.pairs()));
        if splits.len() != SPLITS {
            return measures;
        }
        let statistics = self.pairs().filter_map(|(question, score)| {
            let counts = counts(question, score)?;
            let mut all = [0.0; 4 * SPLITS];
            for (at, _) in
                splits.iter().enumerate().filter(|(_, split)| question.category_names().any(|own| own == **split))
            {
                all[4 * at..4 * at + 4].copy_from_slice(&counts);
            }
            Some(all)
        });
        let statistics = Vec::from_iter(statistics);
        let f1 = |sums: &[f64]| mean_of_splits(sums, YesNoCounts::f1);
        let accuracy = |sums: &[f64]| mean_of_splits(sums, YesNoCounts::accuracy);
        measures.push(Measure::new("F1, mean of splits", "question", statistics.iter().copied(), f1));
        measures.push(Measure::new("accuracy, mean of splits", "question", statistics.iter().copied(), accuracy));
        measures
    }
}

fn mean_of_splits(sums: &[f64], of: fn(&YesNoCounts) -> f64) -> f64 {
    sums.chunks(4).map(|split| of(&yes_no_counts(split))).sum::<f64>() / SPLITS as f64
}

fn grouped<'q>(pairs: impl Iterator<Item = (&'q Question, &'q QuestionScore)>) -> Vec<(String, f64)> {
    let (mut order, mut lowest) = (Vec::new(), BTreeMap::new());
    for (question, score) in pairs {
        let found = lowest.entry(question.group.as_str()).or_insert_with(|| {
            order.push(question.group.clone());
            f64::INFINITY
        });
        *found = found.min(score.score);
    }
    order
        .into_iter()
        .map(|group| {
            let score = lowest[group.as_str()];
            (group, score)
        })
        .collect()
}

/// Counts of one answer as statistics; `None` for a question whose right answer is neither.
fn counts(question: &Question, score: &QuestionScore) -> Option<[f64; 4]> {
    let right = YesNo::of_label(question.answers.first()?)?;
    let given = if score.read_as.as_deref() == Some("no") { YesNo::No } else { YesNo::Yes };
    // A question that the model failed at is wrong.
    let wrong = if right == YesNo::Yes { YesNo::No } else { YesNo::Yes };
    let counts = YesNoCounts::of(if score.read_as.is_some() { given } else { wrong }, right);
    Some([counts.true_yes, counts.false_yes, counts.true_no, counts.false_no])
}

fn counts_of<'q>(pairs: impl Iterator<Item = (&'q Question, &'q QuestionScore)>) -> Vec<[f64; 4]> {
    pairs.filter_map(|(question, score)| counts(question, score)).collect()
}

fn yes_no_counts(sums: &[f64]) -> YesNoCounts {
    let at = |index: usize| sums.get(index).copied().unwrap_or(0.0);
    YesNoCounts { true_yes: at(0), false_yes: at(1), true_no: at(2), false_no: at(3) }
}

fn yes_no_of(counts: Vec<[f64; 4]>) -> Vec<Measure> {
    type Value = fn(&[f64]) -> f64;
    let measures: [(&str, Value); 5] = [
        ("accuracy", |sums| yes_no_counts(sums).accuracy()),
        ("precision", |sums| yes_no_counts(sums).precision()),
        ("recall", |sums| yes_no_counts(sums).recall()),
        ("F1", |sums| yes_no_counts(sums).f1()),
        ("yes ratio", |sums| yes_no_counts(sums).yes_ratio()),
    ];
    measures.map(|(name, value)| Measure::new(name, "question", counts.iter().copied(), value)).into()
}

fn name_of(metric: Metric) -> &'static str {
    match metric {
        Metric::VqaAccuracy | Metric::TextVqaAccuracy => "VQA accuracy",
        Metric::CircularChoice => "circular accuracy",
        Metric::ChoicePairs => "pair accuracy",
        Metric::Anls => "ANLS",
        Metric::RelaxedAccuracy => "relaxed accuracy",
        Metric::Captions => "CIDEr-D",
        _ => "accuracy",
    }
}
