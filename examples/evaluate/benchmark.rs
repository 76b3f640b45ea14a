//! Evaluation on a public benchmark.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use haplovl::eval::benchmark::{Benchmark, Prediction, QuestionSet, Results, read_predictions, write_sheet};
use haplovl::pipeline::LoadedModel;
use serde_json::{Value, json};

use crate::answers::{Answerer, Asked};
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
    /// Continue after the answers that --predictions holds already
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

impl BenchmarkOptions {
    /// Whether a benchmark is asked for.
    pub fn is_given(&self) -> bool {
        self.benchmark.is_some()
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

    /// Makes the folders of all results before hours go into them.
    fn make_folders(&self, arguments: &Arguments, out: Option<&Path>) -> Result<()> {
        let files = [&arguments.predictions, &self.sheet].into_iter().flatten().filter_map(|file| file.parent());
        for folder in out.into_iter().chain(files) {
            std::fs::create_dir_all(folder).map_err(|e| anyhow::anyhow!("making {}: {e}", folder.display()))?;
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
        self.make_folders(arguments, self.out.as_deref())?;
        let is_data = self.data.as_ref().is_some_and(|data| same_file(data, file));
        ensure!(!is_data, "{}: is --data, the file of the questions: name the predictions", file.display());
        let predictions = read_predictions(file)?;
        let matched = questions.matched(&predictions)?;
        let missing = matched.iter().filter(|prediction| prediction.is_none()).count();
        let total = matched.len();
        ensure!(
            missing == 0 || self.partial,
            "{}: {missing} of {total} questions have no prediction: add --partial to score the others alone",
            file.display()
        );
        let others = questions.count_others(&predictions);
        if missing + others > 0 {
            cli::note(format_args!("note: {missing} questions have no prediction, {others} predictions no question"));
        }
        let about = json!({ "predictions": file, "model": null });
        let results = self.finish(arguments, questions, &matched, about, Effort::default(), self.out.as_deref())?;
        let seed = arguments.sampling.seed;
        match &self.out {
            Some(out) => self.write_report(questions, &matched, &results, (None, seed), out),
            None => Ok(()),
        }
    }

    fn evaluate(&self, arguments: &Arguments, questions: &QuestionSet) -> Result<()> {
        let out = self.out.clone().unwrap_or_else(|| Path::new("runs/evaluate").join(questions.benchmark().name));
        self.make_folders(arguments, Some(&out))?;
        let file = arguments.predictions.clone().unwrap_or_else(|| out.join("predictions.jsonl"));
        let model_name = arguments.model.source().to_string();
        let mut asked = Asked::open(questions, &file, self.resume, self.instruction.as_deref(), &model_name)?;
        if questions.questions().iter().all(|question| question.answers.is_empty()) {
            cli::note("note: no right answer is known, so that the answers are written and not scored");
        }
        let model = arguments.model.load()?;
        let generation = arguments.sampling.generation(greedy(&model))?;
        let start = Instant::now();
        let answerer = Answerer { model: &model, generation: &generation, batch: arguments.batch as usize };
        let mut effort = asked.answer(&answerer, self.choice)?;
        effort.seconds = start.elapsed().as_secs_f64();
        let predictions = read_predictions(&file)?;
        let matched = questions.matched(&predictions)?;
        let about = json!({ "predictions": file, "model": model_name, "generation": generation });
        let results = self.finish(arguments, questions, &matched, about, effort, Some(&out))?;
        self.write_report(questions, &matched, &results, (Some(&model), arguments.sampling.seed), &out)
    }

    /// Scores, prints and writes results.
    fn finish(
        &self,
        arguments: &Arguments,
        questions: &QuestionSet,
        predictions: &[Option<&Prediction>],
        about: Value,
        effort: Effort,
        out: Option<&Path>,
    ) -> Result<Results> {
        let results = Results::of(questions, predictions);
        if let Some(sheet) = &self.sheet {
            write_sheet(sheet, questions, predictions)?;
        }
        ensure!(
            self.score.is_none() || !results.scores.is_empty(),
            "no question can be scored ({}): --data needs a file with the right answers",
            Vec::from_iter(results.problems.iter().map(|(problem, count)| format!("{count}: {problem}"))).join(", ")
        );
        let mut config = json!({
            "data": self.data, "images": arguments.images, "limit": self.limit, "batch": arguments.batch,
            "choice": format!("{:?}", self.choice).to_lowercase(), "instruction": self.instruction,
        });
        for (name, value) in about.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        let summary = results::Summary { questions, results: &results, config, effort, seed: arguments.sampling.seed };
        let json = summary.to_json();
        if let Some(out) = out {
            results::write(&out.join("results.json"), &json)?;
        }
        if arguments.json {
            cli::print(results::without_units(json))?
        } else {
            summary.print(&json)?
        }
        self.show_wrong(questions, predictions, &results, arguments.show);
        Ok(results)
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

    fn write_report(
        &self,
        questions: &QuestionSet,
        predictions: &[Option<&Prediction>],
        results: &Results,
        (model, seed): (Option<&LoadedModel>, u64),
        out: &Path,
    ) -> Result<()> {
        if self.report == 0 {
            return Ok(());
        }
        let path = out.join("report.html");
        let instruction = self.instruction.as_deref();
        let report = report::Report { questions, predictions, results, instruction, seed };
        report.write(&path, self.report as usize, model)?;
        cli::note(format_args!("report: {}", path.display()));
        Ok(())
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
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
    if count > 0 {
        let named = cli::escaped(&named.join("; "));
        cli::note(format_args!("note: {count} records are no questions and left out ({named})"));
    }
}
