//! Evaluation on a test set of one's own.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use haplovl::config::GenerationConfig;
use haplovl::eval::{Accuracy, AnswerScores, CommonestAnswers, Tally};
use haplovl::pipeline::LoadedModel;
use haplovl::pipeline::batch::{BatchRunner, QuestionFile, Request, ResultFile, TestQuestion};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::cli;

/// Number of right answers that the table by answer lists.
const ANSWERS_SHOWN: usize = 15;
/// Kind of questions whose record says none.
const NO_KIND: &str = "question";

/// Options of a test set.
#[derive(Debug, Args)]
pub struct QuestionOptions {
    /// Test set: a file of records as in training. Each turn of the assistant is a right answer; `question` with
    /// `answer`, or with a list `answers`, is read too, and `text` with `label` and `question_id`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenes", "side"])]
    questions: Option<PathBuf>,
}

/// A test set that is opened, and the file of its predictions.
pub struct TestSet {
    file: QuestionFile,
    predictions: Option<ResultFile>,
}

/// A question under way, or a record that cannot be used.
struct Asked {
    record: usize,
    /// `None` if the record cannot be used.
    question: Option<Box<TestQuestion>>,
}

/// Scores, and what the baseline needs.
#[derive(Default)]
struct Report {
    scores: AnswerScores,
    /// Kind and first right answer of each question.
    right: Vec<(String, String)>,
    bad_records: usize,
    shown_wrong: usize,
}

impl QuestionOptions {
    /// Whether a test set is given.
    pub fn is_given(&self) -> bool {
        self.questions.is_some()
    }

    /// Opens the test set, if one is given, before the model is loaded.
    pub fn open(&self, images: Option<&Path>, predictions: Option<&Path>) -> Result<Option<TestSet>> {
        let Some(path) = &self.questions else { return Ok(None) };
        let file = QuestionFile::open(path, images)?;
        let predictions = predictions.map(ResultFile::create).transpose()?;
        Ok(Some(TestSet { file, predictions }))
    }
}

impl TestSet {
    /// Asks the model all questions, and prints the scores; the first `show` wrong answers go to stderr.
    pub fn evaluate(
        mut self,
        model: &LoadedModel,
        generation: GenerationConfig,
        batch: usize,
        show: usize,
        as_json: bool,
    ) -> Result<()> {
        let bar = ProgressBar::new(self.file.len() as u64);
        bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} records, {eta} left")?);
        let mut report = Report { shown_wrong: show, ..Report::default() };
        let runner = BatchRunner::new(model).with_generation(generation).with_batch_size(batch);
        let file = &self.file;
        for (asked, answer) in runner.run((0..file.len()).flat_map(|record| requests(file, record)))? {
            bar.set_position(asked.record as u64 + 1);
            let line = bar.suspend(|| report.count(file, asked, answer.map(|answer| answer.text)));
            if let Some(predictions) = &mut self.predictions {
                predictions.write(&line)?;
            }
        }
        bar.finish_and_clear();
        report.print(as_json)
    }
}

/// The requests of a record: its questions, or the reason why it cannot be used.
fn requests(file: &QuestionFile, record: usize) -> Vec<(Asked, Request)> {
    match file.questions(record) {
        Ok(questions) => questions
            .into_iter()
            .map(|question| {
                let request = question.request();
                (Asked { record, question: Some(Box::new(question)) }, request)
            })
            .collect(),
        Err(error) => vec![(Asked { record, question: None }, Request::new(|_| Err(error)))],
    }
}

impl Report {
    /// Counts an answer and returns its line for the predictions.
    fn count(
        &mut self,
        file: &QuestionFile,
        Asked { record, question }: Asked,
        answer: haplovl::Result<String>,
    ) -> Map<String, Value> {
        let mut line = question.as_deref().map(fields).unwrap_or_default();
        match (answer, question) {
            (Ok(answer), Some(question)) => self.score(&question, answer.trim(), &mut line),
            (Ok(_), None) => {}
            (Err(error), _) => {
                let name = file.describe(record);
                self.bad_records += 1;
                cli::note_error(&anyhow::anyhow!("{name}: {error}"));
                line.insert("record".into(), name.into());
                line.insert("error".into(), error.to_string().into());
            }
        }
        line
    }

    fn score(&mut self, question: &TestQuestion, answer: &str, line: &mut Map<String, Value>) {
        let kind = question.kind.as_deref().unwrap_or(NO_KIND);
        let score = self.scores.add(kind, answer, &question.answers);
        let right = question.answers.first().cloned().unwrap_or_default();
        if !score.normalised && self.shown_wrong > 0 {
            self.shown_wrong -= 1;
            cli::note(format_args!("{}: {} {answer} (right: {right})", question.image, question.question));
        }
        self.right.push((kind.to_owned(), right));
        line.insert("answer".into(), answer.into());
        line.insert("exact".into(), score.exact.into());
        line.insert("normalised".into(), score.normalised.into());
        if let Some(vqa) = score.vqa {
            line.insert("vqa".into(), vqa.into());
        }
    }

    /// The accuracy of always giving the most common right answer of each kind.
    fn most_common(&self) -> Accuracy {
        let answers = || self.right.iter().map(|(kind, answer)| (kind, answer));
        CommonestAnswers::of(answers()).accuracy(answers())
    }

    fn print(&self, as_json: bool) -> Result<()> {
        ensure!(!self.right.is_empty(), "no question could be asked: {} records cannot be used", self.bad_records);
        let common = self.most_common();
        let Self { scores, bad_records, .. } = self;
        if as_json {
            return cli::print(json!({
                "questions": self.right.len(), "bad_records": bad_records, "exact": scores.exact,
                "normalised": scores.normalised, "vqa": scores.vqa(), "most_common": common,
                "exact_by_answer": scores.exact_by_answer, "normalised_by_answer": scores.normalised_by_answer,
            }));
        }
        cli::print("| kind | asked | exact | normalised | most common |\n|---|---|---|---|---|")?;
        for kind in scores.normalised.kinds().keys() {
            row(kind, [&scores.exact, &scores.normalised, &common].map(|accuracy| of(accuracy, kind)))?;
        }
        if scores.normalised.kinds().len() > 1 {
            row("all", [&scores.exact, &scores.normalised, &common].map(Accuracy::overall))?;
        }
        self.print_answers()?;
        if let Some(vqa) = scores.vqa() {
            cli::print(format_args!("\nVQA score (a third of the right answers that match): {:.1} %", 100.0 * vqa))?;
        }
        if *bad_records > 0 {
            cli::print(format_args!("\n{bad_records} records cannot be used and are left out"))?;
        }
        Ok(())
    }

    /// Prints the most frequent right answers, and all others together.
    fn print_answers(&self) -> Result<()> {
        let (exact, normalised) = (&self.scores.exact_by_answer, &self.scores.normalised_by_answer);
        cli::print("\n| right answer | asked | exact | normalised |\n|---|---|---|---|")?;
        let shown = self.scores.most_frequent(ANSWERS_SHOWN);
        for answer in &shown {
            let name: String = answer.chars().take(60).collect();
            row(&name, [exact, normalised].map(|tallies| tallies.get(*answer).copied().unwrap_or_default()))?;
        }
        let rest = |tallies: &std::collections::BTreeMap<String, Tally>| {
            let others = tallies.iter().filter(|(answer, _)| !shown.contains(&answer.as_str()));
            others.fold(Tally::default(), |sum, (_, tally)| Tally {
                right: sum.right + tally.right,
                total: sum.total + tally.total,
            })
        };
        let others = [rest(exact), rest(normalised)];
        if others[0].total > 0 { row(&format!("{} others", normalised.len() - shown.len()), others) } else { Ok(()) }
    }
}

/// The fields of a prediction that are known before the answer.
fn fields(question: &TestQuestion) -> Map<String, Value> {
    let expected = match question.answers.as_slice() {
        [one] => json!(one),
        several => json!(several),
    };
    let known = [("id", question.id.clone()), ("image", question.image.clone()), ("kind", json!(question.kind))];
    let known = known.into_iter().filter(|(_, value)| !value.is_null());
    let asked = [("question", json!(question.question)), ("expected", expected)];
    known.chain(asked).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn of(accuracy: &Accuracy, kind: &str) -> Tally {
    accuracy.kinds().get(kind).copied().unwrap_or_default()
}

/// Prints a row of a table: a name, the number of questions, and shares in percent.
fn row<const N: usize>(name: &str, tallies: [Tally; N]) -> Result<()> {
    let asked = tallies.first().map_or(0, |tally| tally.total);
    let shares = tallies.map(|tally| format!("{:.1} %", 100.0 * tally.accuracy()));
    // A bar would end the cell, and a control character could change the terminal.
    let name = name.replace('|', "/").escape_debug().to_string();
    cli::print(format_args!("| {name} | {asked} | {} |", shares.join(" | ")))
}
