//! Batch inference with the built-in model: order, failed requests, batches of different lengths.

#![cfg(feature = "builtin")]
#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use haplovl::config::GenerationConfig;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::generation::{CancelToken, FinishReason, GeneratedSequence};
use haplovl::options::DeviceChoice;
use haplovl::pipeline::batch::{BatchRunner, ImageList, Input, InputFile, Request};
use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel, ModelSource, VisualQuestionAnswerer};
use haplovl::processor::{Content, Conversation, Message, RgbImage};

const PROMPT: &str = "describe the image.";

fn model() -> LoadedModel {
    LoadedModel::load(&ModelSource::Builtin, LoadOptions::default().with_device(DeviceChoice::Cpu)).unwrap()
}

fn scene(index: u64) -> RgbImage {
    Split::Test.scene(index, &ShapesConfig::default()).render(64)
}

/// A folder with scenes 0 to 4 as `0.png` to `4.png`, of which number 2 is damaged.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..5 {
        scene(index).save(folder.path().join(format!("{index}.png"))).unwrap();
    }
    let damaged = folder.path().join("2.png");
    let bytes = std::fs::read(&damaged).unwrap();
    std::fs::write(damaged, &bytes[..bytes.len() / 2]).unwrap();
    folder
}

fn short(model: &LoadedModel) -> GenerationConfig {
    GenerationConfig { max_new_tokens: Some(10), ..model.generation().clone() }
}

/// The texts of all answers; `None` for an error.
fn texts<T>(answers: impl IntoIterator<Item = (T, haplovl::Result<GeneratedSequence>)>) -> Vec<Option<String>> {
    answers.into_iter().map(|(_, answer)| answer.ok().map(|answer| answer.text)).collect()
}

#[test]
fn every_good_image_of_a_folder_is_captioned_in_order() {
    let (model, folder) = (model(), folder());
    let captioner = Captioner::new(&model).with_prompt(PROMPT).with_generation(short(&model));
    let alone = |index: u64| Some(captioner.caption(scene(index)).unwrap().sequence.text);
    let expected = [alone(0), alone(1), None, alone(3), alone(4)];
    let images = ImageList::find([folder.path()]).unwrap().images;
    for batch_size in [1, 2, 8] {
        let requests = images.iter().map(|path| (path.clone(), Input::image(path).request(PROMPT)));
        let runner = BatchRunner::new(&model).with_generation(short(&model)).with_batch_size(batch_size);
        let answers = Vec::from_iter(runner.run(requests).unwrap());
        assert!(answers.iter().map(|(path, _)| path).eq(&images), "the order is another one");
        let error = answers[2].1.as_ref().unwrap_err().to_string();
        assert!(error.contains("2.png") && error.contains("damaged or truncated"), "{error}");
        assert_eq!(texts(answers), expected, "batches of {batch_size}");
    }
}

#[test]
fn rows_that_end_early_leave_the_others_unchanged() {
    let model = model();
    let answerer = VisualQuestionAnswerer::new(&model);
    // Answers of one word, and captions of many.
    let asked = |index: u64| if index.is_multiple_of(3) { PROMPT } else { "how many objects are there?" };
    let alone = |index| Some(answerer.ask([scene(index).into()], asked(index)).unwrap().sequence.text);
    let requests = (0..7).map(|index| (index, Input::pixels("scene", scene(index)).request(asked(index))));
    let together = texts(BatchRunner::new(&model).run(requests).unwrap());
    assert_eq!(together, Vec::from_iter((0..7).map(alone)));
}

#[test]
fn only_a_few_batches_of_images_are_in_memory() {
    let model = model();
    let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let requests = (0..40).map(|index| {
        let (alive, most) = (Arc::clone(&alive), Arc::clone(&most));
        let request = Request::new(move |_| {
            most.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Ok(Conversation::from(Message::user([Content::from(scene(index)), PROMPT.into()])))
        });
        (index, request)
    });
    let config = GenerationConfig { max_new_tokens: Some(1), ..model.generation().clone() };
    let runner = BatchRunner::new(&model).with_generation(config).with_batch_size(3);
    for (number, (index, answer)) in runner.run(requests).unwrap().enumerate() {
        answer.unwrap();
        assert_eq!(number as u64, index);
        alive.fetch_sub(1, Ordering::SeqCst);
    }
    assert!(most.load(Ordering::SeqCst) <= 3 * 3, "{most:?} images were prepared at a time");
}

#[test]
fn samples_do_not_depend_on_batches_or_on_where_a_run_begins() {
    let model = model();
    let config = GenerationConfig { do_sample: true, temperature: Some(3.0), seed: 7, ..short(&model) };
    let run = |first: u64, batch_size| {
        let requests = (first..5).map(|index| (index, Input::pixels("scene", scene(0)).request(PROMPT)));
        let runner = BatchRunner::new(&model).with_generation(config.clone());
        texts(runner.with_batch_size(batch_size).with_first_stream(first).run(requests).unwrap())
    };
    let whole = run(0, 5);
    assert_ne!(whole[0], whole[1], "every image has the same sample");
    assert_eq!((run(0, 2), run(3, 1)), (whole.clone(), whole[3..].to_vec()));
}

#[test]
fn panics_and_long_prompts_are_errors_of_their_request() {
    let model = model();
    let ask = |text: String| Conversation::from(Message::user([text.into()])).into();
    let requests = [
        ("long", ask("the ".repeat(5000))),
        ("panic", Request::new(|_| panic!("a decoder's fault"))),
        ("good", ask("what is this?".into())),
    ];
    let answers = Vec::from_iter(BatchRunner::new(&model).with_generation(short(&model)).run(requests).unwrap());
    let ok = |at: usize| (answers[at].0, answers[at].1.is_ok());
    assert_eq!([ok(0), ok(1), ok(2)], [("long", false), ("panic", false), ("good", true)]);
    let none: [(&str, Request); 0] = [];
    assert_eq!(BatchRunner::new(&model).run(none).unwrap().count(), 0);
}

#[test]
fn cancelled_runs_end_with_what_there_is() {
    let model = model();
    let cancel = CancelToken::default();
    cancel.cancel();
    let requests = (0..3).map(|index| (index, Input::pixels("scene", scene(index)).request(PROMPT)));
    let answers = BatchRunner::new(&model).with_cancel(cancel).run(requests).unwrap();
    assert!(answers.map(|(_, answer)| answer.unwrap().finish_reason).eq([const { FinishReason::Cancelled }; 3]));
}

#[test]
fn records_bring_their_own_questions() {
    let (model, folder) = (model(), folder());
    let file = folder.path().join("questions.jsonl");
    let lines = [
        r#"{"id": 1, "image": "0.png", "question": "how many objects are there?"}"#,
        r#"{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\nhow many objects are there?"},
            {"from": "gpt", "value": "two"}, {"from": "human", "value": "and then?"}]}"#,
        r#"{"image": "0.png"}"#,
        r#"{"image": "missing.png"}"#,
        // Nothing to ask, and nothing to ask about.
        r#"{"id": 7}"#,
        "nonsense",
        r#"{"question_id": 1, "image": "0.png", "text": "how many objects are there?"}"#,
    ];
    std::fs::write(&file, lines.map(|line| line.replace('\n', " ")).join("\n")).unwrap();
    let answerer = VisualQuestionAnswerer::new(&model).with_generation(short(&model));
    let alone = |question| Some(answerer.ask([scene(0).into()], question).unwrap().sequence.text);
    let counted = alone("how many objects are there?");
    let inputs = InputFile::open(&file, None).unwrap();
    let requests = inputs.map(|input| (input.name(), input.request(PROMPT)));
    let answers = BatchRunner::new(&model).with_generation(short(&model)).run(requests).unwrap();
    assert_eq!(texts(answers), [counted.clone(), counted.clone(), alone(PROMPT), None, None, None, counted]);
    // Images out of the folder are refused, as in training.
    let outside = Input::record(br#"{"image": "../0.png"}"#, Path::new("folder")).request(PROMPT);
    let (_, answer) = BatchRunner::new(&model).run([((), outside)]).unwrap().next().unwrap();
    assert!(answer.unwrap_err().to_string().contains("outside of the image folder"));
}

#[test]
fn videos_are_files_or_folders_of_frames() {
    let (model, frames) = (model(), tempfile::tempdir().unwrap());
    (0..3).for_each(|index| scene(index).save(frames.path().join(format!("{index}.png"))).unwrap());
    let captioner = Captioner::new(&model).with_prompt(PROMPT).with_generation(short(&model));
    let expected = captioner.caption(Vec::from_iter((0..3).map(scene))).unwrap().sequence.text;
    let folder = frames.path();
    let line = format!(r#"{{"video": "{}", "prompt": "{PROMPT}"}}"#, folder.file_name().unwrap().display());
    let inputs = [Input::video(folder), Input::record(line.as_bytes(), folder.parent().unwrap()), Input::video("none")];
    assert_eq!(inputs[0].name(), folder.display().to_string());
    let requests = inputs.map(|input| ((), input.request(PROMPT)));
    let answers = BatchRunner::new(&model).with_generation(short(&model)).run(requests).unwrap();
    assert_eq!(texts(answers), [Some(expected.clone()), Some(expected), None]);
}
