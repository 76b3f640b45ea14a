//! The answers of a model to the questions of a benchmark.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use clap::ValueEnum;
use haplovl::config::GenerationConfig;
use haplovl::eval::benchmark::{Prediction, Question, QuestionSet, llava_answer};
use haplovl::generation::Answer;
use haplovl::pipeline::batch::ResultFile;
use haplovl::pipeline::{Engine, EngineConfig, Handle, LoadedModel, OptionScorer, Request};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::cli;

/// How the model chooses among options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ChoiceBy {
    /// The letter that it writes
    Letter,
    /// The option whose text it finds most likely
    Likelihood,
}

/// What a run took.
#[derive(Debug, Default, Clone, Copy)]
pub struct Effort {
    pub seconds: f64,
    pub new_tokens: usize,
    /// Answers that an earlier run left.
    pub resumed: usize,
}

impl ChoiceBy {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Letter => "letter",
            Self::Likelihood => "likelihood",
        }
    }
}

/// A model and how it answers.
pub struct Answerer<'a> {
    pub model: &'a LoadedModel,
    pub generation: &'a GenerationConfig,
    pub batch: usize,
}

/// What answers are asked for with.
#[derive(Clone)]
pub struct Ask<'a> {
    pub instruction: Option<&'a str>,
    pub choice: ChoiceBy,
    pub model_name: &'a str,
    /// What answers depend on beside the prompt, kept with each of them: the model, and options that are not at their
    /// defaults.
    pub settings: Map<String, Value>,
}

/// Questions under way, and the file of their answers.
pub struct Asked<'a> {
    questions: &'a QuestionSet,
    ask: Ask<'a>,
    file: ResultFile,
    /// Whether the file has an answer, by question.
    done: Vec<bool>,
}

/// A question that the engine answers.
struct Waiting<'q> {
    question: &'q Question,
    handle: haplovl::Result<Handle>,
}

impl<'a> Asked<'a> {
    /// Opens the file of answers, before the model is loaded, and reads those of an earlier run.
    ///
    /// # Errors
    /// If the file exists and is not to be continued, or holds other answers.
    pub fn open(questions: &'a QuestionSet, ask: Ask<'a>, path: &Path, resume: bool) -> Result<Self> {
        ensure!(
            resume || !ResultFile::is_begun(path),
            "{}: exists already: add --resume to continue it, or name another file as --predictions",
            path.display()
        );
        let file = if resume { ResultFile::resume(path)? } else { ResultFile::create(path)? };
        let mut asked = Self { questions, ask, file, done: vec![false; questions.questions().len()] };
        asked.read_earlier(path)?;
        Ok(asked)
    }

    /// Marks the questions that an earlier run answered; those that it failed at are asked again.
    fn read_earlier(&mut self, path: &Path) -> Result<()> {
        let (mut predictions, mut others) = (Vec::new(), Vec::new());
        while let Some(result) = self.file.next_earlier()? {
            predictions.push(earlier_prediction(&result));
            others.push(self.other_settings(&result));
        }
        let positions = self.questions.positions(&predictions);
        for (line, ((result, at), other)) in (1..).zip(predictions.iter().zip(positions).zip(others)) {
            let differs =
                |what: String| anyhow!("{}: line {line} {what}: name another file as --predictions", path.display());
            let Some((at, question)) = at.and_then(|at| Some((at, self.questions.questions().get(at)?))) else {
                return Err(differs("answers none of the questions (is --limit smaller than before?)".into()));
            };
            // It is asked again, whatever it was asked with.
            if result.answer.is_none() {
                continue;
            }
            if result.prompt.as_deref() != Some(&*self.prompt(question)) {
                return Err(differs("has another `prompt`".into()));
            }
            if let Some(other) = other {
                return Err(differs(other));
            }
            match self.done.get_mut(at) {
                Some(done) if *done => return Err(differs("answers a question again".into())),
                Some(done) => *done = true,
                None => {}
            }
        }
        Ok(())
    }

    /// How the settings of an earlier result differ from those of this run.
    fn other_settings(&self, result: &Map<String, Value>) -> Option<String> {
        match result.get("metadata").and_then(|metadata| metadata["settings"].as_object()) {
            Some(settings) => Some(format!("was answered with {}", difference(settings, &self.ask.settings)?)),
            None => Some("has no `metadata.settings` to say what it was answered with".into()),
        }
    }

    /// Answers all questions that have no answer in the file.
    pub fn answer(&mut self, by: &Answerer<'_>) -> Result<Effort> {
        let bar = ProgressBar::new(self.done.len() as u64);
        bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} answers, {per_sec}, {eta} left")?);
        let resumed = self.done.iter().filter(|done| **done).count();
        // Answers of an earlier run say nothing about the time left.
        bar.set_position(resumed as u64);
        bar.reset_eta();
        let left = self.questions.questions().iter().zip(&self.done).filter(|(_, done)| !**done);
        let left = left.map(|(question, _)| question);
        let (chosen, written): (Vec<_>, Vec<_>) =
            left.partition(|question| self.ask.choice == ChoiceBy::Likelihood && !question.options.is_empty());
        self.choose(by, &chosen, &bar)?;
        let new_tokens = self.generate(by, &written, &bar)?;
        bar.finish_and_clear();
        Ok(Effort { new_tokens, resumed, ..Effort::default() })
    }

    fn prompt(&self, question: &Question) -> String {
        question.prompt(self.questions.benchmark().metric, self.ask.instruction)
    }

    fn line(&self, question: &Question, text: &str, mut metadata: Value) -> Map<String, Value> {
        metadata["settings"] = json!(self.ask.settings);
        llava_answer(question, &self.prompt(question), text, self.ask.model_name, metadata)
    }

    /// Generates answers with an engine, so that questions behind each other share the prefill of their image.
    fn generate(&mut self, by: &Answerer<'_>, questions: &[&Question], bar: &ProgressBar) -> Result<usize> {
        let engine = Engine::new(by.model.clone(), engine_config(by.batch)?)?;
        let (mut waiting, mut new_tokens) = (VecDeque::new(), 0);
        for question in questions {
            if waiting.len() >= 2 * by.batch {
                new_tokens += self.finish(waiting.pop_front(), bar)?;
            }
            let handle = self.submit(&engine, by, question);
            waiting.push_back(Waiting { question, handle });
        }
        while !waiting.is_empty() {
            new_tokens += self.finish(waiting.pop_front(), bar)?;
        }
        Ok(new_tokens)
    }

    fn submit(&self, engine: &Engine, by: &Answerer<'_>, question: &Question) -> haplovl::Result<Handle> {
        let prompt = self.prompt(question);
        let conversation = self.questions.conversation(question, &prompt, by.model.processor())?;
        // Of the question alone, so that what is sampled does not depend on which others are asked.
        let stream = crc32fast::hash(question.id.as_bytes());
        let request = Request::new(conversation, by.generation.clone()).with_random_stream(stream.into());
        Ok(engine.submit(request)?)
    }

    /// Waits for an answer and writes it.
    fn finish(&mut self, waiting: Option<Waiting<'_>>, bar: &ProgressBar) -> Result<usize> {
        let Some(Waiting { question, handle }) = waiting else { return Ok(0) };
        let answer = handle.and_then(Handle::answer);
        let (text, new_tokens, metadata) = match &answer {
            Ok(answer) => (answer.text(), answer.sequence.tokens.len(), metadata(answer)),
            Err(_) => ("", 0, json!({})),
        };
        let line = self.line(question, text, metadata);
        self.write(question, line, answer.err(), bar)?;
        Ok(new_tokens)
    }

    fn write(
        &mut self,
        question: &Question,
        mut line: Map<String, Value>,
        error: Option<haplovl::Error>,
        bar: &ProgressBar,
    ) -> Result<()> {
        if let Some(error) = error {
            line.remove("text");
            line.insert("error".into(), error.to_string().into());
            bar.suspend(|| cli::note_error(&anyhow::anyhow!("question {}: {error}", question.id)));
        }
        self.file.write(&line)?;
        bar.inc(1);
        Ok(())
    }

    /// Chooses the option that is most likely as an answer to the question alone.
    fn choose(&mut self, by: &Answerer<'_>, questions: &[&Question], bar: &ProgressBar) -> Result<()> {
        let mut scorer = OptionScorer::new(by.model);
        for question in questions {
            let conversation = self.questions.conversation(question, &question.text, by.model.processor());
            // A letter without an option is not chosen.
            let options = question.options.iter().zip('A'..='Z').filter(|(option, _)| !option.is_empty());
            let (options, letters): (Vec<_>, Vec<_>) = options.unzip();
            let scored = conversation.and_then(|asked| scorer.log_likelihoods(&asked, &options));
            let likelihoods = scored.as_deref().unwrap_or_default();
            let best = likelihoods.iter().zip(letters).max_by(|a, b| a.0.total_cmp(b.0));
            let text = best.map_or(String::new(), |(_, letter): (_, char)| letter.to_string());
            let line = self.line(question, &text, json!({ "log_likelihoods": likelihoods }));
            self.write(question, line, scored.err(), bar)?;
        }
        Ok(())
    }
}

/// Configuration of an engine for so many questions at once.
///
/// # Errors
/// If these are too many.
pub fn engine_config(batch: usize) -> Result<EngineConfig> {
    let config = EngineConfig::default().with_max_batch(batch).with_queue(batch);
    config.validate().map_err(|e| anyhow!("--batch {batch}: {e}"))?;
    Ok(config)
}

/// The first setting in which the answers of an earlier run differ from those of this one.
fn difference(then: &Map<String, Value>, now: &Map<String, Value>) -> Option<String> {
    let name = then.keys().chain(now.keys()).find(|name| then.get(*name) != now.get(*name))?;
    let of = |settings: &Map<String, Value>| settings.get(name).map_or("the default".into(), Value::to_string);
    Some(format!("`{name}` {}, not {}", of(then), of(now)))
}

/// An earlier result without what is not needed to tell its question.
fn earlier_prediction(result: &Map<String, Value>) -> Prediction {
    let id = result.get("question_id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
    let answer = if result.contains_key("error") { None } else { Some(String::new()) };
    let mut prediction = Prediction::new(id.unwrap_or_default(), answer);
    prediction.prompt = result.get("prompt").and_then(Value::as_str).map(str::to_owned);
    prediction
}

fn metadata(answer: &Answer) -> Value {
    let timings = &answer.timings;
    json!({
        "new_tokens": timings.new_tokens, "prompt_tokens": timings.prompt_tokens,
        "cached_tokens": timings.cached_tokens, "finish_reason": answer.sequence.finish_reason.to_string(),
    })
}
