//! Evaluation on a public benchmark.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Args;
use haplovl::eval::benchmark::{Benchmark, Prediction, QuestionSet, Results, read_predictions, write_sheet};
use haplovl::pipeline::LoadedModel;
use serde_json::{Map, Value, json};

use crate::answers::{Answerer, Ask, Asked, ChoiceBy, Effort, engine_config};
use crate::outputs::{Outputs, place};
use crate::settings::settings;
use crate::{Arguments, cli, greedy, report, results};

/// Options of a benchmark.
#[derive(Debug, Args)]
pub struct BenchmarkOptions {
    /// Public benchmark: vqav2, okvqa, textvqa, gqa, scienceqa, ai2d, mmbench, mmstar, mmmu, seedbench, realworldqa,
    /// pope, mmvp, docvqa, chartqa, coco; or shapes, which needs no data
    #[arg(long, value_name = "NAME", conflicts_with = "questions")]
    benchmark: Option<String>,
    /// Folder of the benchmark's files, or one of them
    #[arg(long, value_name = "PATH", requires = "benchmark")]
    data: Option<PathBuf>,
    /// Ask the first N questions only; rotations of a question and pairs count once
    #[arg(long, value_name = "N", requires = "benchmark", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Ask what has no answer in --predictions yet, or failed
    #[arg(long, requires = "benchmark")]
    resume: bool,
    /// Folder for predictions.jsonl, results.json and report.html [default: runs/evaluate/NAME]
    #[arg(long, value_name = "DIR", requires = "benchmark")]
    out: Option<PathBuf>,
    /// How the model chooses among options: by the letter that it writes, or by the likelihood of their texts
    #[arg(long, default_value = "letter", value_name = "HOW", requires = "benchmark")]
    choice: ChoiceBy,
    /// Instruction behind each question, in place of the benchmark's usual one; may be empty
    #[arg(long, value_name = "TEXT", requires = "benchmark")]
    instruction: Option<String>,
    /// Score these predictions, of any tool, without a model
    #[arg(long, value_name = "FILE", requires = "benchmark", conflicts_with_all = ["predictions", "resume"])]
    score: Option<PathBuf>,
    /// With --score: leave out questions without a prediction instead of failing
    #[arg(long, requires = "score")]
    partial: bool,
    /// Write the answers as a result sheet of VLMEvalKit too
    #[arg(long, value_name = "FILE.tsv", requires = "benchmark")]
    sheet: Option<PathBuf>,
    /// Answers that report.html shows, the worst first; 0 for no report
    #[arg(long, default_value_t = 200, value_name = "N", requires = "benchmark",
          value_parser = clap::value_parser!(u64).range(0..=2000))]
    report: u64,
}

impl BenchmarkOptions {
    /// The benchmark, if one is asked for.
    pub fn benchmark(&self) -> Result<Option<&'static Benchmark>> {
        Ok(self.benchmark.as_deref().map(Benchmark::named).transpose()?)
    }

    /// Whether a benchmark is asked for.
    pub fn is_given(&self) -> bool {
        self.benchmark.is_some()
    }

    /// Whether predictions are scored, without a model.
    pub fn scores_a_file(&self) -> bool {
        self.score.is_some()
    }

    /// Evaluates a model, or scores predictions.
    pub fn run(&self, arguments: &Arguments) -> Result<()> {
        let questions = self.questions(arguments)?;
        note_left_out(&questions);
        match &self.score {
            Some(file) => self.score_file(arguments, &questions, file),
            None => self.evaluate(arguments, &questions),
        }
    }

    /// Refuses options without an effect on these questions.
    fn check(&self, questions: &QuestionSet) -> Result<()> {
        let (title, all) = (questions.benchmark().title, questions.questions());
        let has_options = all.iter().any(|question| !question.options.is_empty());
        ensure!(
            self.choice == ChoiceBy::Letter || has_options,
            "--choice likelihood: the questions of {title} have no options to choose from: leave it out"
        );
        let prompts = all.iter().filter(|question| question.is_prompt).count();
        ensure!(
            self.instruction.is_none() || prompts < all.len(),
            "--instruction has no effect: the questions in the file are whole prompts"
        );
        if self.instruction.is_some() && prompts > 0 {
            cli::note(format_args!("note: {prompts} questions are whole prompts, without --instruction"));
        }
        let open = all.iter().filter(|question| question.options.is_empty()).count();
        if self.choice == ChoiceBy::Likelihood && open > 0 {
            cli::note(format_args!("note: {open} questions have no options, and their answers are generated"));
        }
        Ok(())
    }

    fn questions(&self, arguments: &Arguments) -> Result<QuestionSet> {
        let benchmark = Benchmark::named(self.benchmark.as_deref().unwrap_or_default())?;
        let set = match &self.data {
            _ if benchmark.name == "shapes" => QuestionSet::shapes(arguments.scenes, arguments.side)?,
            Some(data) => QuestionSet::open(benchmark, data, arguments.images.as_deref())?,
            None => bail!("--benchmark {} needs --data: the folder of its files ({})", benchmark.name, benchmark.files),
        };
        let limit = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(set.limited(limit).by_image())
    }

    fn score_file(&self, arguments: &Arguments, questions: &QuestionSet, file: &Path) -> Result<()> {
        let is_data = self.data.as_ref().is_some_and(|data| place(data) == place(file));
        ensure!(!is_data, "{}: is --data, the file of the questions: name the predictions", file.display());
        let (folder, sheet) = (self.out.clone(), self.sheet.clone());
        let outputs = Outputs { folder, predictions: file.to_path_buf(), is_written: false, sheet };
        outputs.prepare(questions.paths())?;
        let predictions = read_predictions(file)?;
        let matched = questions.matched(&predictions)?;
        let missing = matched.iter().filter(|prediction| prediction.is_none()).count();
        let total = matched.len();
        ensure!(
            missing == 0 || self.partial,
            "{}: {missing} of {total} questions have no prediction: add --partial to score the others alone",
            file.display()
        );
        let (others, prompts) = (questions.count_others(&predictions), questions.count_other_prompts(&matched));
        if prompts > 0 {
            cli::note(format_args!("note: {prompts} predictions have a `prompt` without their question in it"));
        }
        if missing + others > 0 {
            cli::note(format_args!("note: {missing} questions have no prediction, {others} predictions no question"));
        }
        let run =
            Scored { questions, predictions: &matched, outputs: &outputs, model: None, effort: Effort::default() };
        self.finish(arguments, &run, json!({ "model": null }))
    }

    fn evaluate(&self, arguments: &Arguments, questions: &QuestionSet) -> Result<()> {
        self.check(questions)?;
        engine_config(arguments.batch as usize)?;
        let outputs = self.outputs(arguments, questions);
        outputs.prepare(questions.paths())?;
        let file = &outputs.predictions;
        let model_name = arguments.model.source().to_string();
        let settings = self.settings(arguments, questions)?;
        let ask = Ask {
            instruction: self.instruction.as_deref(),
            choice: self.choice,
            model_name: &model_name,
            settings: settings.clone(),
        };
        let mut asked = Asked::open(questions, ask, file, self.resume)?;
        if questions.questions().iter().all(|question| question.answers.is_empty()) {
            cli::note("note: no right answer is known, so that the answers are written and not scored");
        }
        let model = arguments.model.load()?;
        let generation = arguments.sampling.generation(greedy(&model))?;
        let start = Instant::now();
        let answerer = Answerer { model: &model, generation: &generation, batch: arguments.batch as usize };
        let mut effort = asked.answer(&answerer)?;
        effort.seconds = start.elapsed().as_secs_f64();
        let predictions = read_predictions(file)?;
        let matched = questions.matched(&predictions)?;
        let adapter = arguments.model.adapter().map(Path::to_string_lossy);
        let about = json!({
            "model": model_name, "adapter": adapter, "device": format!("{:?}", model.model().device().location()),
            "batch": arguments.batch, "choice": self.choice.name(),
            "generation": generation, "settings": settings,
        });
        let run = Scored { questions, predictions: &matched, outputs: &outputs, model: Some(&model), effort };
        // A closed stdout hides no failed question.
        let finished = self.finish(arguments, &run, about);
        finished.or_else(|error| if error.is::<cli::ReaderGone>() { Ok(()) } else { Err(error) })?;
        let (failed, total) = (matched.iter().filter(|given| is_failed(given)).count(), matched.len());
        ensure!(
            failed == 0,
            "{failed} of {total} questions failed and count as wrong: see `error` in {}, and ask them again by --resume",
            file.display()
        );
        Ok(())
    }

    /// The files that a model's evaluation writes.
    fn outputs(&self, arguments: &Arguments, questions: &QuestionSet) -> Outputs {
        let out = self.out.clone().unwrap_or_else(|| Path::new("runs/evaluate").join(questions.benchmark().name));
        let predictions = arguments.predictions.clone().unwrap_or_else(|| out.join("predictions.jsonl"));
        Outputs { folder: Some(out), predictions, is_written: true, sheet: self.sheet.clone() }
    }

    /// What answers depend on beside their prompts, without what is left at its default.
    fn settings(&self, arguments: &Arguments, questions: &QuestionSet) -> Result<Map<String, Value>> {
        let mut settings = settings(&arguments.model, &arguments.sampling, false)?;
        if self.choice != ChoiceBy::Letter {
            settings.insert("choice".into(), self.choice.name().into());
        }
        if questions.benchmark().name == "shapes" {
            settings.insert("side".into(), arguments.side.into());
        }
        Ok(settings)
    }

    /// Scores answers, writes all files, and prints the results.
    fn finish(&self, arguments: &Arguments, run: &Scored<'_>, about: Value) -> Result<()> {
        let Scored { questions, predictions, outputs, effort, model } = run;
        let results = Results::of(questions, predictions);
        ensure!(
            self.score.is_none() || !results.scores.is_empty(),
            "no question can be scored ({}): give --data the right answers, and predictions of whole pairs or rotations",
            Vec::from_iter(results.problems.iter().map(|(problem, count)| format!("{count}: {problem}"))).join(", ")
        );
        if let Some(sheet) = &outputs.sheet {
            write_sheet(sheet, questions, predictions)?;
        }
        let config = self.config(arguments, run, about);
        let (seed, effort) = (arguments.sampling.seed, *effort);
        let summary = results::Summary { questions, results: &results, config: config.clone(), effort, seed };
        let json = summary.to_json();
        if let Some(path) = outputs.results() {
            results::write(&path, &json)?;
        }
        if let Some(path) = outputs.report().filter(|_| self.report > 0) {
            let instruction = self.instruction.as_deref();
            let report =
                report::Report { questions, predictions, results: &results, instruction, seed, config: &config };
            report.write(&path, self.report as usize, *model)?;
            cli::note(format_args!("report: {}", path.display()));
        } else if let Some(path) = outputs.report().filter(|path| path.exists()) {
            cli::note(format_args!("note: {} is of an earlier run", path.display()));
        }
        if arguments.json {
            cli::print(results::without_units(json))?
        } else {
            summary.print(&json)?
        }
        self.show_wrong(questions, predictions, &results, arguments.show);
        Ok(())
    }

    /// What was evaluated, in results.json and report.html; `about` is what is known of the model.
    fn config(&self, arguments: &Arguments, run: &Scored<'_>, about: Value) -> Value {
        let text = |path: Option<&PathBuf>| path.map(|path| path.to_string_lossy().into_owned());
        let is_shapes = run.questions.benchmark().name == "shapes";
        let mut config = json!({
            "data": text(self.data.as_ref()), "images": text(arguments.images.as_ref()), "limit": self.limit,
            "scenes": is_shapes.then_some(arguments.scenes), "side": is_shapes.then_some(arguments.side),
            "instruction": self.instruction, "predictions": place(&run.outputs.predictions).to_string_lossy(),
        });
        for (name, value) in about.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        config
    }

    /// Prints the first wrong answers on stderr.
    fn show_wrong(&self, questions: &QuestionSet, given: &[Option<&Prediction>], results: &Results, count: usize) {
        for score in results.scores.iter().filter(|score| score.score == 0.0).take(count) {
            let Some(question) = questions.questions().get(score.question) else { continue };
            let answer = given.get(score.question).copied().flatten().and_then(|given| given.answer.as_deref());
            let line = format!(
                "{}: {} {} (right: {})",
                question.id,
                question.text,
                answer.unwrap_or("(no answer)"),
                question.answers.first().map_or("unknown", String::as_str)
            );
            cli::note(cli::escaped(&line.replace('\n', " ")));
        }
    }
}

/// Answers to questions, and where what they are worth is written.
struct Scored<'a> {
    questions: &'a QuestionSet,
    predictions: &'a [Option<&'a Prediction>],
    outputs: &'a Outputs,
    model: Option<&'a LoadedModel>,
    effort: Effort,
}

fn is_failed(prediction: &Option<&Prediction>) -> bool {
    prediction.is_none_or(|prediction| prediction.answer.is_none())
}

fn note_left_out(questions: &QuestionSet) {
    let (count, named) = questions.left_out();
    if let [first, others @ ..] = questions.paths() {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        let (count, title) = (questions.questions().len(), questions.benchmark().title);
        cli::note(cli::escaped(&format!("{count} questions of {title} from {}{more}", first.display())));
    }
    let bare = questions.without_image();
    if bare > 0 {
        cli::note(format_args!("note: {bare} of {} questions have no image", questions.questions().len()));
    }
    let shared = questions.with_shared_ids();
    if shared > 0 {
        cli::note(format_args!(
            "note: {shared} questions share their ids with others, and are told apart by their prompts"
        ));
    }
    if count > 0 {
        let named: String = cli::escaped(&named.join("; ")).chars().take(200).collect();
        cli::note(format_args!("note: {count} records are no questions and left out ({named})"));
    }
}
