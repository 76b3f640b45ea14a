//! Example: evaluates a model on a public benchmark, on your own questions, or on held-out scenes of shapes world.
//!
//! `cargo run --release --example evaluate -- --benchmark pope --data DIR`, `-- --questions test.jsonl`, or
//! `-- --scenes 2000`

mod answers;
mod benchmark;
#[path = "../common/checksum.rs"]
mod checksum;
#[path = "../common/cli.rs"]
mod cli;
mod compare;
#[path = "../common/download.rs"]
mod download;
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/model.rs"]
mod model;
mod modes;
mod outputs;
#[path = "../common/questions.rs"]
mod questions;
mod report;
mod results;
#[path = "../common/sampling.rs"]
mod sampling;
mod scenes;
#[path = "../common/settings.rs"]
mod settings;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgGroup, Parser};
use haplovl::config::GenerationConfig;
use haplovl::pipeline::LoadedModel;

use benchmark::BenchmarkOptions;
use model::ModelOptions;
use modes::Mode;
use questions::QuestionOptions;
use sampling::SamplingOptions;

/// Evaluates a model on a public benchmark (--benchmark), on a test set of questions (--questions), or on held-out scenes
/// of shapes world.
///
/// A benchmark is scored by its own metric, with bootstrap intervals; predictions, results and a report to look at are
/// written to a folder. --score scores the predictions of any tool, --compare tests whether two models differ.
///
/// A test set has records as in training; a table by kind and one by right answer give the share of exact matches, of
/// matches after normalisation (lower case; without articles and punctuation; number words as digits), and of the
/// baseline that always gives the most common right answer of the kind.
///
/// Shapes world: one question of every kind and a caption for each scene. A table of accuracy by kind of question stands
/// beside two baselines that do not see the image: "question alone" gives the most common answer to that form of question
/// among training scenes, "no image" is the same model without the image. Captions are counted as correct if they contain
/// no wrong statement, and as complete if they also name every object.
///
/// Answers are the most likely ones unless a sampling option is given.
#[derive(Debug, Parser)]
#[command(group(ArgGroup::new("asked").args(["benchmark", "questions"])))]
#[command(after_help = "Examples:\n  \
    evaluate --scenes 200\n  \
    evaluate --model DIR --benchmark pope --data data/pope --images data/coco/val2014 --out runs/pope\n  \
    evaluate --benchmark vqav2 --data data/vqa --score answers.jsonl\n  \
    evaluate --compare runs/a/results.json runs/b/results.json\n  \
    evaluate --model runs/own/export --questions test.jsonl --images photos --predictions predictions.jsonl\n  \
    evaluate --model runs/shapes/relate/export --scenes 2000 --json")]
struct Arguments {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    benchmark: BenchmarkOptions,
    #[command(flatten)]
    questions: QuestionOptions,
    /// Folder that image names are relative to [default: that of the questions]
    #[arg(long, value_name = "DIR", requires = "asked")]
    images: Option<PathBuf>,
    /// File of answers, one line of JSON each. For a benchmark in the form of LLaVA's answer files; for a test set: id,
    /// image, question, expected, answer, exact, normalised
    #[arg(long, value_name = "FILE", requires = "asked")]
    predictions: Option<PathBuf>,
    /// Compare the results.json of two models on the same benchmark
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with = "asked")]
    compare: Vec<PathBuf>,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// Number of scenes, also with --benchmark shapes
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    scenes: u64,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 64, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    side: u32,
    /// Questions per batch, at most 256 with --benchmark
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Number of wrong answers to print on stderr
    #[arg(long, default_value_t = 0, value_name = "N")]
    show: usize,
    /// Print one line of JSON instead of the table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        memory::keep();
        arguments.mode()?.check(&cli::given::<Arguments>())?;
        if !arguments.compare.is_empty() {
            return compare::run(&arguments.compare, arguments.sampling.seed, arguments.json);
        }
        arguments.sampling.check()?;
        if arguments.benchmark.is_given() {
            return arguments.benchmark.run(&arguments);
        }
        scenes::check(&arguments)?;
        let test_set = arguments.questions.open(arguments.images.as_deref(), arguments.predictions.as_deref())?;
        let model = arguments.model.load()?;
        let Some(test_set) = test_set else { return scenes::run(&arguments, &model) };
        let config = arguments.sampling.generation(greedy(&model))?;
        test_set.evaluate(&model, config, arguments.batch as usize, arguments.show, arguments.json)
    })
}

impl Arguments {
    fn mode(&self) -> Result<Mode> {
        Ok(match self.benchmark.benchmark()? {
            Some(benchmark) if self.benchmark.scores_a_file() => Mode::Score(benchmark.name),
            Some(benchmark) => Mode::Benchmark(benchmark.name),
            None if self.questions.is_given() => Mode::Questions,
            None if self.compare.is_empty() => Mode::Scenes,
            None => Mode::Compare,
        })
    }
}

/// The model's generation settings without sampling, so that scores are reproducible.
fn greedy(model: &LoadedModel) -> GenerationConfig {
    GenerationConfig { do_sample: false, ..model.generation().clone() }
}
