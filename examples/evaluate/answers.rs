//! The answers of a model to the questions of a benchmark.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::{Result, ensure};
use haplovl::config::GenerationConfig;
use haplovl::eval::benchmark::{Question, QuestionSet, llava_answer};
use haplovl::generation::Answer;
use haplovl::pipeline::batch::ResultFile;
use haplovl::pipeline::{Engine, EngineConfig, Handle, LoadedModel, OptionScorer, Request};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::benchmark::{ChoiceBy, Effort};
use crate::cli;

/// A model and how it answers.
pub struct Answerer<'a> {
    pub model: &'a LoadedModel,
    pub generation: &'a GenerationConfig,
    pub batch: usize,
}

/// Questions under way, and the file of their answers.
pub struct Asked<'a> {
    questions: &'a QuestionSet,
    file: ResultFile,
    instruction: Option<&'a str>,
    model_name: &'a str,
}

/// A question that the engine answers.
struct Waiting<'q> {
    question: &'q Question,
    prompt: String,
    handle: haplovl::Result<Handle>,
}

impl<'a> Asked<'a> {
    /// Opens the file of answers, before the model is loaded.
    pub fn open(
        questions: &'a QuestionSet,
        path: &Path,
        resume: bool,
        instruction: Option<&'a str>,
        model_name: &'a str,
    ) -> Result<Self> {
        ensure!(
            resume || !path.exists(),
            "{}: exists already: add --resume to continue it, or name another file as --predictions",
            path.display()
        );
        let file = if resume { ResultFile::resume(path)? } else { ResultFile::create(path)? };
        Ok(Self { questions, file, instruction, model_name })
    }

    /// Answers all questions that have no answer in the file.
    pub fn answer(&mut self, by: &Answerer<'_>, choice: ChoiceBy) -> Result<Effort> {
        let total = self.questions.questions().len();
        let bar = ProgressBar::new(total as u64);
        bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} answers, {per_sec}, {eta} left")?);
        let resumed = self.skip_done()?;
        // Answers of an earlier run say nothing about the time left.
        bar.set_position(resumed as u64);
        bar.reset_eta();
        let is_choice = self.questions.benchmark().metric.is_choice();
        let new_tokens = match choice {
            ChoiceBy::Likelihood if is_choice => self.choose(by, resumed, &bar)?,
            _ => self.generate(by, resumed, &bar)?,
        };
        bar.finish_and_clear();
        if self.file.failed() > 0 {
            let (failed, lines) = (self.file.failed(), self.file.lines());
            cli::note(format_args!("note: {failed} of {lines} questions failed and count as wrong; see their `error`"));
        }
        Ok(Effort { new_tokens, resumed, ..Effort::default() })
    }

    /// Number of questions whose answers an earlier run left.
    fn skip_done(&mut self) -> Result<usize> {
        let mut done = 0;
        for question in self.questions.questions() {
            let about = self.line(question, &self.prompt(question), "", json!({}));
            let is_about = |name: &String| matches!(name.as_str(), "question_id" | "prompt" | "model_id");
            if !self.file.has(&about.into_iter().filter(|(name, _)| is_about(name)).collect())? {
                break;
            }
            done += 1;
        }
        Ok(done)
    }

    fn prompt(&self, question: &Question) -> String {
        question.prompt(self.questions.benchmark().metric, self.instruction)
    }

    fn line(&self, question: &Question, prompt: &str, text: &str, metadata: Value) -> Map<String, Value> {
        llava_answer(&question.id, prompt, text, self.model_name, metadata)
    }

    /// Generates answers with an engine, so that questions behind each other share the prefill of their image.
    fn generate(&mut self, by: &Answerer<'_>, first: usize, bar: &ProgressBar) -> Result<usize> {
        let config = EngineConfig::default().with_max_batch(by.batch).with_queue(by.batch);
        let engine = Engine::new(by.model.clone(), config)?;
        let (mut waiting, mut new_tokens) = (VecDeque::new(), 0);
        for (number, question) in self.questions.questions().iter().enumerate().skip(first) {
            if waiting.len() >= 2 * by.batch {
                new_tokens += self.finish(waiting.pop_front(), bar)?;
            }
            let prompt = self.prompt(question);
            let handle = self.submit(&engine, by, question, &prompt, number as u64);
            waiting.push_back(Waiting { question, prompt, handle });
        }
        while !waiting.is_empty() {
            new_tokens += self.finish(waiting.pop_front(), bar)?;
        }
        Ok(new_tokens)
    }

    fn submit(
        &self,
        engine: &Engine,
        by: &Answerer<'_>,
        question: &Question,
        prompt: &str,
        stream: u64,
    ) -> haplovl::Result<Handle> {
        let conversation = self.questions.conversation(question, prompt, by.model.processor())?;
        let request = Request::new(conversation, by.generation.clone()).with_random_stream(stream);
        Ok(engine.submit(request)?)
    }

    /// Waits for an answer and writes it.
    fn finish(&mut self, waiting: Option<Waiting<'_>>, bar: &ProgressBar) -> Result<usize> {
        let Some(Waiting { question, prompt, handle }) = waiting else { return Ok(0) };
        let answer = handle.and_then(Handle::answer);
        let (text, new_tokens, metadata) = match &answer {
            Ok(answer) => (answer.text(), answer.sequence.tokens.len(), metadata(answer)),
            Err(_) => ("", 0, json!({})),
        };
        let line = self.line(question, &prompt, text, metadata);
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

    /// Chooses the option that is most likely as an answer to the question alone. Open questions are answered with the
    /// empty text, which is wrong.
    fn choose(&mut self, by: &Answerer<'_>, first: usize, bar: &ProgressBar) -> Result<usize> {
        let mut scorer = OptionScorer::new(by.model);
        for question in self.questions.questions().iter().skip(first) {
            let conversation = self.questions.conversation(question, &question.text, by.model.processor());
            // A letter without an option is not chosen.
            let options = question.options.iter().zip('A'..='Z').filter(|(option, _)| !option.is_empty());
            let (options, letters): (Vec<_>, Vec<_>) = options.unzip();
            let scored = conversation.and_then(|asked| scorer.log_likelihoods(&asked, &options));
            let likelihoods = scored.as_deref().unwrap_or_default();
            let best = likelihoods.iter().zip(letters).max_by(|a, b| a.0.total_cmp(b.0));
            let text = best.map_or(String::new(), |(_, letter): (_, char)| letter.to_string());
            let metadata = json!({ "log_likelihoods": likelihoods });
            let line = self.line(question, &self.prompt(question), &text, metadata);
            self.write(question, line, scored.err(), bar)?;
        }
        Ok(0)
    }
}

fn metadata(answer: &Answer) -> Value {
    let timings = &answer.timings;
    json!({
        "new_tokens": timings.new_tokens, "prompt_tokens": timings.prompt_tokens,
        "cached_tokens": timings.cached_tokens, "finish_reason": answer.sequence.finish_reason.to_string(),
    })
}
