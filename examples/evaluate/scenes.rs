//! Evaluation on held-out scenes of shapes world, beside baselines that do not see the image.

use anyhow::{Result, ensure};
use haplovl::config::GenerationConfig;
use haplovl::data::shapes::{CaptionScore, Question, QuestionKind, Scene, ShapesConfig, Split, check_caption};
use haplovl::eval::{Accuracy, CommonestAnswers, Tally};
use haplovl::pipeline::{Captioner, LoadedModel, VisualQuestionAnswerer};
use haplovl::processor::Content;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{Arguments, cli, greedy};

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
        let questions = scene.test_questions(&QuestionKind::ALL);
        Self { image: scene.render(side).into(), questions, scene }
    }
}

/// Checks that the images of all scenes fit into memory.
pub fn check(arguments: &Arguments) -> Result<()> {
    let bytes = 3 * arguments.scenes * u64::from(arguments.side).pow(2);
    ensure!(
        bytes <= MAX_BYTES,
        "the images take {bytes} bytes, expected at most {MAX_BYTES}: lower --scenes or --side"
    );
    Ok(())
}

/// Evaluates the model on all scenes.
pub fn run(arguments: &Arguments, model: &LoadedModel) -> Result<()> {
    let config = arguments.sampling.generation(greedy(model))?;
    let exams = (0..arguments.scenes).map(|index| Exam::of(Split::Test, index, arguments.side));
    let exams: Vec<Exam> = exams.collect();
    let questions: Vec<(&Exam, &Question)> =
        exams.iter().flat_map(|exam| exam.questions.iter().map(move |question| (exam, question))).collect();
    let bar = ProgressBar::new(2 * questions.len() as u64 + arguments.scenes);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} answers, {eta} left")?);
    let batch = arguments.batch as usize;
    let seen = answer(model, &config, &questions, batch, true, &bar)?;
    let blind = answer(model, &config, &questions, batch, false, &bar)?;
    let captions = caption(model, &config, &exams, batch, &bar)?;
    bar.finish_and_clear();
    let wrong = questions.iter().zip(&seen).filter(|((_, question), answer)| **answer != question.answer);
    for ((exam, question), answer) in wrong.take(arguments.show) {
        let Question { question, answer: right, .. } = question;
        cli::note(format_args!("scene {}: {question} {answer} (right: {right})", exam.scene.seed));
    }
    report(&questions, &[seen, blind], &captions, arguments.json)
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

/// Accuracy of an answer to each question.
fn judge<'a>(questions: &[(&Exam, &Question)], answers: impl Iterator<Item = &'a str>) -> Accuracy {
    let mut accuracy = Accuracy::default();
    for ((_, question), answer) in questions.iter().zip(answers) {
        accuracy.add(question.kind, answer, &question.answer);
    }
    accuracy
}

fn report(
    questions: &[(&Exam, &Question)],
    [seen, blind]: &[Vec<String>; 2],
    captions: &[CaptionScore],
    as_json: bool,
) -> Result<()> {
    let of_model = |answers: &[String]| judge(questions, answers.iter().map(String::as_str));
    let (model, without) = (of_model(seen), of_model(blind));
    let by_form = CommonestAnswers::by_form(&ShapesConfig::default(), &QuestionKind::ALL);
    let common = judge(questions, questions.iter().map(|(_, question)| by_form.answer(question.form())));
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
    cli::print("| question | asked | right | question alone | no image |\n|---|---|---|---|---|")?;
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
