//! Example: evaluates a model on your own questions, or on held-out scenes of shapes world.
//!
//! `cargo run --release --example evaluate -- --questions test.jsonl`, or `-- --scenes 2000`

#[path = "common/cli.rs"]
mod cli;
#[path = "common/download.rs"]
mod download;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/model.rs"]
mod model;
#[path = "common/questions.rs"]
mod questions;
#[path = "common/sampling.rs"]
mod sampling;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use haplovl::config::GenerationConfig;
use haplovl::data::shapes::{CaptionScore, Question, Scene, ShapesConfig, Split, check_caption};
use haplovl::eval::{Accuracy, CommonestAnswers, Tally};
use haplovl::pipeline::{Captioner, LoadedModel, VisualQuestionAnswerer};
use haplovl::processor::Content;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use model::ModelOptions;
use questions::QuestionOptions;
use sampling::SamplingOptions;

/// Evaluates a model on a test set of questions (--questions), or on held-out scenes of shapes world.
///
/// A test set has records as in training; a table by kind and one by right answer give the share of exact matches, of
/// matches after normalisation (lower case; without articles and punctuation; number words as digits), and of the
/// baseline that always gives the most common right answer of the kind.
///
/// Shapes world: one question of every kind and a caption for each scene.
/// A table of accuracy by kind of question stands beside two baselines that do not see the image: "most common" always
/// gives the most common answer among training scenes, "no image" is the same model without the image. Captions are
/// counted as correct if they contain no wrong statement, and as complete if they also name every object.
///
/// Answers are the most likely ones unless a sampling option is given.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    evaluate --scenes 200\n  \
    evaluate --model runs/own/export --questions test.jsonl --images photos --predictions predictions.jsonl\n  \
    evaluate --model runs/shapes/relate/export --scenes 2000 --json")]
struct Arguments {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    questions: QuestionOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// Number of scenes
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    scenes: u64,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 64, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    side: u32,
    /// Questions per batch
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Number of wrong answers to print on stderr
    #[arg(long, default_value_t = 0, value_name = "N")]
    show: usize,
    /// Print one line of JSON instead of the table
    #[arg(long)]
    json: bool,
}

/// Largest size of all images together in bytes, since all are held in memory.
const MAX_BYTES: u64 = 4 << 30;

/// A scene with its image and questions.
struct Exam {
    scene: Scene,
    image: Content,
    questions: Vec<Question>,
}

impl Exam {
    fn of(split: Split, index: u64, side: u32) -> Self {
        let scene = split.scene(index, &ShapesConfig::default());
        let questions = scene.questions(&mut ChaCha8Rng::seed_from_u64(scene.seed));
        Self { image: scene.render(side).into(), questions, scene }
    }
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        let bytes = 3 * arguments.scenes * u64::from(arguments.side).pow(2);
        ensure!(
            bytes <= MAX_BYTES,
            "the images take {bytes} bytes, expected at most {MAX_BYTES}: lower --scenes or --side"
        );
        memory::keep();
        arguments.sampling.check()?;
        let test_set = arguments.questions.open()?;
        let model = arguments.model.load()?;
        let config = arguments.sampling.generation(greedy(&model))?;
        if let Some(test_set) = test_set {
            let Arguments { batch, show, json, .. } = arguments;
            return test_set.evaluate(&model, config, batch as usize, show, json);
        }
        let exams = (0..arguments.scenes).map(|index| Exam::of(Split::Test, index, arguments.side));
        let exams: Vec<Exam> = exams.collect();
        let questions: Vec<(&Exam, &Question)> =
            exams.iter().flat_map(|exam| exam.questions.iter().map(move |question| (exam, question))).collect();
        let bar = ProgressBar::new(2 * questions.len() as u64 + arguments.scenes);
        bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} answers, {eta} left")?);
        let batch = arguments.batch as usize;
        let seen = answer(&model, &config, &questions, batch, true, &bar)?;
        let blind = answer(&model, &config, &questions, batch, false, &bar)?;
        let captions = caption(&model, &config, &exams, batch, &bar)?;
        bar.finish_and_clear();
        let wrong = questions.iter().zip(&seen).filter(|((_, question), answer)| **answer != question.answer);
        for ((exam, question), answer) in wrong.take(arguments.show) {
            let Question { question, answer: right, .. } = question;
            cli::note(format_args!("scene {}: {question} {answer} (right: {right})", exam.scene.seed));
        }
        report(&questions, &[seen, blind], &captions, arguments.json)
    })
}

/// The model's answers, with or without the images.
fn answer(
    model: &LoadedModel,
    config: &GenerationConfig,
    questions: &[(&Exam, &Question)],
    batch: usize,
    with_image: bool,
    bar: &ProgressBar,
) -> Result<Vec<String>> {
    let answerer = VisualQuestionAnswerer::new(model).with_generation(config.clone());
    let mut answers = Vec::with_capacity(questions.len());
    for questions in questions.chunks(batch) {
        let request =
            |(exam, question): &(&Exam, &Question)| (with_image.then(|| exam.image.clone()), question.question.clone());
        let given = answerer.ask_all(questions.iter().map(request))?;
        answers.extend(given.sequences.into_iter().map(|sequence| sequence.text));
        bar.inc(questions.len() as u64);
    }
    Ok(answers)
}

fn caption(
    model: &LoadedModel,
    config: &GenerationConfig,
    exams: &[Exam],
    batch: usize,
    bar: &ProgressBar,
) -> Result<Vec<CaptionScore>> {
    let captioner = Captioner::new(model).with_generation(config.clone());
    let mut scores = Vec::with_capacity(exams.len());
    for exams in exams.chunks(batch) {
        let captions = captioner.caption_all(exams.iter().map(|exam| exam.image.clone()))?;
        let score = |(exam, caption): (&Exam, _)| check_caption(&exam.scene, caption);
        scores.extend(exams.iter().zip(captions.sequences.iter().map(|s| s.text.as_str())).map(score));
        bar.inc(exams.len() as u64);
    }
    Ok(scores)
}

/// The model's generation settings without sampling, so that scores are reproducible.
fn greedy(model: &LoadedModel) -> GenerationConfig {
    GenerationConfig { do_sample: false, ..model.generation().clone() }
}

/// The most common answers among training scenes.
fn most_common() -> CommonestAnswers {
    let exams = (0..2000).map(|index| Exam::of(Split::Train, index, 16));
    CommonestAnswers::of(exams.flat_map(|exam| exam.questions).map(|question| (question.kind, question.answer)))
}

fn report(
    questions: &[(&Exam, &Question)],
    [seen, blind]: &[Vec<String>; 2],
    captions: &[CaptionScore],
    as_json: bool,
) -> Result<()> {
    let judge = |answers: &[String]| {
        let mut accuracy = Accuracy::default();
        for ((_, question), answer) in questions.iter().zip(answers) {
            accuracy.add(question.kind, answer, &question.answer);
        }
        accuracy
    };
    let (model, without) = (judge(seen), judge(blind));
    let common = most_common().accuracy(questions.iter().map(|(_, question)| (question.kind, &question.answer)));
    let mut tallies = [Tally::default(); 2];
    for score in captions {
        tallies[0].add(score.all_right());
        tallies[1].add(score.complete());
    }
    let [all_right, complete] = tallies;
    if as_json {
        let captions = json!({ "all_right": all_right, "complete": complete });
        return cli::print(
            json!({ "questions": model, "commonest": common, "no_picture": without, "captions": captions }),
        );
    }
    cli::print("| question | asked | right | most common | no image |\n|---|---|---|---|---|")?;
    let row = |kind: &str, [model, common, without]: [Tally; 3]| {
        let percent = |tally: Tally| format!("{:.1} %", 100.0 * tally.accuracy());
        let [right, common, without_image] = [model, common, without].map(percent);
        cli::print(format_args!("| {kind} | {} | {right} | {common} | {without_image} |", model.total))
    };
    let of = |accuracy: &Accuracy, kind: &str| accuracy.kinds().get(kind).copied().unwrap_or_default();
    for (kind, tally) in model.kinds() {
        row(kind, [*tally, of(&common, kind), of(&without, kind)])?;
    }
    row("all", [model.overall(), common.overall(), without.overall()])?;
    for (what, tally) in [("that say nothing wrong", all_right), ("that also name every object", complete)] {
        let percent = 100.0 * tally.accuracy();
        cli::print(format_args!("\ncaptions {what}: {} of {}, {percent:.1} %", tally.right, tally.total))?;
    }
    Ok(())
}
