//! Texts of a record that has no list of turns: captions, questions with answers, plain text.

use std::borrow::Cow;

use super::super::{BadSample, IMAGE_MARKER, SampleResult, Turn};
use super::names::{self, Field};
use super::turns::Dialogue;
use super::value::{Row, Value, list_in};
use super::{RecordReader, brief};
use crate::processor::Role;

/// Fields of a record that hold text.
struct Texts<'r> {
    question: Option<Field<'r>>,
    answer: Option<Field<'r>>,
    text: Option<Field<'r>>,
}

impl RecordReader {
    /// Reads the conversation of a record with these numbers of images and videos, or else its question, answer or
    /// caption.
    pub(super) fn read_texts(&self, row: &Row, dialogue: &mut Dialogue<'_>, media: (usize, usize)) -> SampleResult<()> {
        let system = if self.columns.names_text() { Vec::new() } else { names::set(row, names::SYSTEM) };
        if let Some(system) = system.first() {
            dialogue.add(Role::System, system.value)?;
        }
        if let Some(conversation) = self.conversation(row)? {
            return dialogue.add_all(conversation.value, conversation.name);
        }
        let Texts { question, answer, text } = self.texts(row)?;
        let reply = match (answer, text) {
            (Some(answer), Some(text)) => names::one(&[answer, text], "text")?,
            (answer, text) => answer.or(text),
        };
        let Some(reply) = reply else { return Err(no_text(row, question)) };
        match question {
            Some(question) => {
                if !self.columns.names_text() {
                    add_history(dialogue, row)?;
                }
                ask(dialogue, question, context(row, question), answer_of(reply)?)
            }
            None => {
                caption(dialogue, captions(reply)?, media);
                Ok(())
            }
        }
    }

    fn conversation<'r>(&self, row: &'r Row) -> SampleResult<Option<Field<'r>>> {
        if self.columns.names_text() {
            return Ok(self.columns.conversations.as_ref().and_then(|column| names::column(row, column)));
        }
        let mut fields = names::set(row, names::CONVERSATION);
        // The same names are used for texts.
        fields.retain(|field| match field.value {
            Value::List(values) => values.iter().any(|value| matches!(value, Value::Object(_))),
            Value::Text(text) => text.trim_start().starts_with('['),
            _ => !field.name.eq_ignore_ascii_case("texts"),
        });
        names::one(&fields, "conversations")
    }

    fn texts<'r>(&self, row: &'r Row) -> SampleResult<Texts<'r>> {
        let columns = &self.columns;
        let field = |column: &Option<String>, names, kind| match column {
            Some(column) => Ok(names::column(row, column)),
            None if columns.names_text() => Ok(None),
            None => names::one(&names::set(row, names), kind),
        };
        let text = field(&columns.text, names::TEXT, "text")?;
        let label = match columns.names_text() || text.is_some() {
            true => None,
            false => names::set(row, names::LABEL).into_iter().find(|field| is_text(field.value)),
        };
        let question = match &columns.question {
            Some(column) => names::column(row, column),
            None if columns.text.is_some() && columns.answer.is_none() => None,
            None => match names::one(&names::set(row, names::QUESTION), "question")? {
                Some(question) => Some(question),
                None => names::set(row, names::CONTEXT).first().copied(),
            },
        };
        Ok(Texts { question, answer: field(&columns.answer, names::ANSWER, "answer")?, text: text.or(label) })
    }
}

/// Whether a class is given by name, not by number.
fn is_text(value: &Value) -> bool {
    match value {
        Value::Text(_) => true,
        Value::List(values) => values.iter().all(|value| matches!(value, Value::Text(_))),
        _ => false,
    }
}

/// Adds a question, with the text that an instruction is about, and its answer.
fn ask(
    dialogue: &mut Dialogue<'_>,
    question: Field<'_>,
    context: Option<&str>,
    answer: Cow<'_, str>,
) -> SampleResult<()> {
    let in_field = |e: BadSample| e.about(&format!("field `{}`", brief(question.name)));
    dialogue.add(Role::User, question.value).map_err(in_field)?;
    if let (Some(context), Some(turn)) = (context, dialogue.turns.last_mut()) {
        turn.text += "\n";
        turn.text += context;
    }
    dialogue.turns.push(Turn::assistant(answer));
    Ok(())
}

/// Adds the exchanges before a question, which are pairs of texts.
fn add_history(dialogue: &mut Dialogue<'_>, row: &Row) -> SampleResult<()> {
    let history = names::set(row, names::HISTORY);
    let Some(Field { value: Value::List(exchanges), .. }) = history.first() else { return Ok(()) };
    for exchange in exchanges {
        let Value::List(pair) = exchange else { return dialogue.add_all(history[0].value, "history") };
        let [asked, replied] = pair.as_slice() else {
            let message =
                format!("field `history` has a list of {}, expected pairs of question and answer", pair.len());
            return Err(BadSample::BrokenRecord(message));
        };
        dialogue.add(Role::User, asked)?;
        dialogue.add(Role::Assistant, replied)?;
    }
    Ok(())
}

/// The `input` that an `instruction` is about.
fn context<'r>(row: &'r Row, question: Field<'_>) -> Option<&'r str> {
    match names::set(row, names::CONTEXT).first()?.value {
        Value::Text(text) if question.name.eq_ignore_ascii_case("instruction") => Some(text),
        _ => None,
    }
}

/// Adds captions: a user's turn with the images and videos, if there are any, and the first caption; each further
/// caption after an empty turn, so that the roles alternate.
fn caption(dialogue: &mut Dialogue<'_>, captions: Vec<String>, (images, videos): (usize, usize)) {
    for (n, caption) in captions.into_iter().enumerate() {
        match n {
            0 if images + videos == 0 => {}
            0 => dialogue.turns.push(Turn::user(vec![IMAGE_MARKER; images].join("\n"))),
            _ => dialogue.turns.push(Turn::user("")),
        }
        dialogue.turns.push(Turn::assistant(caption));
    }
}

fn captions(field: Field<'_>) -> SampleResult<Vec<String>> {
    match field.value {
        Value::List(values) => values.iter().filter(|value| value.is_set()).map(|value| text(value, field)).collect(),
        // A table has a list as the text of its JSON; a single answer may be such a text itself.
        Value::Text(one) if field.name.ends_with('s') => {
            match list_in(one).map_err(|e| e.about(&format!("field `{}`", brief(field.name))))? {
                Some(list) => captions(Field { value: &list, ..field }),
                None => Ok(vec![one.clone()]),
            }
        }
        value => Ok(vec![text(value, field)?]),
    }
}

/// The answer, the most frequent one of several.
fn answer_of(field: Field<'_>) -> SampleResult<Cow<'static, str>> {
    let answers = captions(field)?;
    let count = |answer: &String| answers.iter().filter(|other| *other == answer).count();
    // The first of those that are equally frequent.
    let best = answers.iter().take(64).rev().max_by_key(|answer| count(answer));
    Ok(Cow::Owned(best.cloned().unwrap_or_default()))
}

fn text(value: &Value, field: Field<'_>) -> SampleResult<String> {
    let inner = match value {
        Value::Object(fields) => {
            names::set(fields, &["answer", "text", "caption", "value", "raw"]).first().map(|f| f.value)
        }
        value => Some(value),
    };
    inner.and_then(Value::to_text).ok_or_else(|| {
        let message = format!("field `{}` holds {}, expected text", brief(field.name), value.shown());
        BadSample::BrokenRecord(message)
    })
}

fn no_text(row: &Row, question: Option<Field<'_>>) -> BadSample {
    if let Some(question) = question {
        let name = brief(question.name);
        let message = format!("question `{name}` has no answer: add `answer`, or name columns of text in `columns`");
        return BadSample::BrokenRecord(message);
    }
    if row.is_empty() {
        return BadSample::BrokenRecord("has no fields".into());
    }
    let keys: Vec<_> = row.iter().map(|(key, _)| key.as_str()).collect();
    BadSample::NoText { keys: brief(&keys.join(", ")) }
}
