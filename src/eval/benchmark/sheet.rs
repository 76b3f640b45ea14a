//! Result sheets of VLMEvalKit, as TSV.

use std::path::Path;

use csv::WriterBuilder;

use super::predictions::{FAILED, Prediction};
use super::question_set::QuestionSet;
use crate::weights::write_bytes_atomically;
use crate::{Error, Result};

/// Writes questions with their predictions as a result sheet: `index`, `question`, options, `answer`, `category` and
/// `prediction`. Questions without a prediction are left out; those that could not be answered have VLMEvalKit's text for
/// it, so that they stay wrong.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write_sheet(path: &Path, questions: &QuestionSet, predictions: &[Option<&Prediction>]) -> Result<()> {
    let width = questions.questions().iter().map(|question| question.options.len()).max().unwrap_or(0);
    let letters = ('A'..='Z').take(width).map(String::from);
    let header = ["index".into(), "question".into()].into_iter().chain(letters);
    let header = header.chain(["answer".into(), "category".into(), "prediction".into()]);
    let mut sheet = WriterBuilder::new().delimiter(b'\t').from_writer(Vec::new());
    let broken = |e: csv::Error| Error::io(path, e.into());
    sheet.write_record(Vec::from_iter(header)).map_err(broken)?;
    for (question, prediction) in questions.questions().iter().zip(predictions) {
        let Some(prediction) = prediction else { continue };
        let options = (0..width).map(|at| question.options.get(at).cloned().unwrap_or_default());
        let answers = match question.answers.as_slice() {
            [one] => one.clone(),
            several => serde_json::Value::from(several).to_string(),
        };
        let rest = [answers, question.categories.join(","), prediction.answer.clone().unwrap_or_else(|| FAILED.into())];
        let record = [question.id.clone(), question.text.clone()].into_iter().chain(options).chain(rest);
        sheet.write_record(Vec::from_iter(record)).map_err(broken)?;
    }
    let bytes = sheet.into_inner().map_err(|e| Error::io(path, std::io::Error::other(e.to_string())))?;
    write_bytes_atomically(path, &bytes)
}
