//! Answers of an interrupted run are continued, and others refused.
#![cfg(feature = "builtin")]

use std::path::Path;

use clap::Parser;
use haplovl::config::GenerationConfig;
use haplovl::eval::benchmark::{QuestionSet, read_predictions};
use haplovl::pipeline::{LoadOptions, LoadedModel, ModelSource};
use serde_json::{Map, Value, json};

use super::answers::{Answerer, Ask, Asked, ChoiceBy, Effort};
use super::batch::{self, BatchOptions};
use super::{folder, open, png};

const CHOICE: ChoiceBy = ChoiceBy::Letter;

fn ask(settings: &Value) -> Ask<'_> {
    let settings = settings.as_object().cloned().unwrap_or_default();
    Ask { instruction: None, choice: CHOICE, model_name: "builtin", settings }
}

fn answer(questions: &QuestionSet, settings: &Value, path: &Path, resume: bool) -> anyhow::Result<Effort> {
    let mut asked = Asked::open(questions, ask(settings), path, resume)?;
    let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default())?;
    asked.answer(&Answerer { model: &model, generation: &GenerationConfig::default(), batch: 4 })
}

fn texts(path: &Path) -> Vec<(String, Option<String>)> {
    Vec::from_iter(read_predictions(path).unwrap().into_iter().map(|found| (found.id, found.answer)))
}

#[test]
fn a_resumed_run_asks_what_is_left_and_what_failed() {
    let row = |id: u32| json!({ "question_id": id, "image": format!("{id}.png"), "question": "what color is it?" });
    let rows = Vec::from_iter((1..=3).map(|id| row(id).to_string())).join("\n");
    let folder = folder(&[("q.jsonl", &rows)]);
    for id in ["1", "3"] {
        std::fs::write(folder.path().join(format!("{id}.png")), png(200)).unwrap();
    }
    let questions = open("gqa", &folder.path().join("q.jsonl")).unwrap();
    let [whole, cut] = ["whole.jsonl", "cut.jsonl"].map(|name| folder.path().join(name));
    let none = json!({});
    let effort = answer(&questions, &none, &whole, false).unwrap();
    assert!(effort.resumed == 0 && effort.new_tokens >= 2, "{effort:?}");
    let first = texts(&whole);
    assert_eq!(first.iter().filter(|(_, text)| text.is_none()).map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["2"]);
    assert!(answer(&questions, &none, &whole, false).unwrap_err().to_string().contains("add --resume"));

    // Cut within the last line; the image that lacked is there now.
    let text = std::fs::read_to_string(&whole).unwrap();
    std::fs::write(&cut, &text[..text.len() - 20]).unwrap();
    std::fs::write(folder.path().join("2.png"), png(90)).unwrap();
    assert_eq!(answer(&questions, &none, &cut, true).unwrap().resumed, 1);
    let predictions = read_predictions(&cut).unwrap();
    let answers = Vec::from_iter(questions.matched(&predictions).unwrap().into_iter().flatten());
    assert!(answers.iter().all(|answer| answer.answer.is_some()));
    assert_eq!((answers.len(), &answers[2].answer), (3, &first[2].1));

    // Another order of the lines, as of a smaller limit, is none of another run.
    let mut lines = Vec::from_iter(text.lines());
    lines.reverse();
    std::fs::write(&cut, lines.join("\n") + "\n").unwrap();
    assert_eq!(answer(&questions, &none, &cut, true).unwrap().resumed, 2);
}

#[test]
fn questions_that_share_an_id_are_resumed_by_their_prompts() {
    let row = |text: &str| json!({ "question_id": "scene", "image": "scene.png", "text": text }).to_string();
    let texts = ["what color is it?\nOne word.", "how many are there?\nOne word.", "is it red?\nOne word."];
    let folder = folder(&[("q.jsonl", &texts.map(row).join("\n"))]);
    std::fs::write(folder.path().join("scene.png"), png(200)).unwrap();
    let questions = open("textvqa", &folder.path().join("q.jsonl")).unwrap();
    let path = folder.path().join("a.jsonl");
    answer(&questions, &json!({}), &path, false).unwrap();
    let whole = std::fs::read_to_string(&path).unwrap();
    let lines = Vec::from_iter(whole.lines());
    for (line, text) in lines.iter().zip(texts) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["question_id"], &line["prompt"]), (&json!("scene"), &json!(text)));
    }
    std::fs::write(&path, format!("{}\n{}\n", lines[2], lines[0])).unwrap();
    assert_eq!(answer(&questions, &json!({}), &path, true).unwrap().resumed, 2);
    let answered = read_predictions(&path).unwrap();
    assert!(questions.matched(&answered).unwrap().iter().all(Option::is_some));
    assert_eq!(answered[2].prompt.as_deref(), Some(texts[1]));
}

#[test]
fn answers_of_other_settings_questions_and_models_are_refused() {
    let row = json!({ "question_id": 1, "image": "1.png", "question": "what color is it?" }).to_string();
    let folder = folder(&[("q.jsonl", &row)]);
    std::fs::write(folder.path().join("1.png"), png(200)).unwrap();
    let questions = open("gqa", &folder.path().join("q.jsonl")).unwrap();
    let path = folder.path().join("a.jsonl");
    let settings = json!({ "quantize": "q8_0" });
    answer(&questions, &settings, &path, false).unwrap();
    let line: Map<String, Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let refused = |settings: &Value, change: &dyn Fn(&mut Map<String, Value>)| {
        let mut line = line.clone();
        change(&mut line);
        std::fs::write(&path, format!("{}\n", json!(line))).unwrap();
        Asked::open(&questions, ask(settings), &path, true).map(drop).unwrap_err().to_string()
    };
    let message = refused(&json!({}), &|_| ());
    assert!(message.contains("was answered with `quantize` \"q8_0\", not the default"), "{message}");
    let message = refused(&json!({ "quantize": "q8_0", "side": 32 }), &|_| ());
    assert!(message.contains("`side` the default, not 32"), "{message}");
    let set = |name: &'static str, value: Value| {
        move |line: &mut Map<String, Value>| drop(line.insert(name.into(), value.clone()))
    };
    let message = refused(&settings, &set("metadata", json!({})));
    assert!(message.contains("line 1 has no `metadata.settings`"), "{message}");
    let message = refused(&settings, &set("prompt", json!("why?")));
    assert!(message.contains("line 1 has another `prompt`"), "{message}");
    let message = refused(&settings, &set("question_id", json!(7)));
    assert!(message.contains("answers none of the questions"), "{message}");
}

/// Options of `caption` and `vqa` that name inputs and results.
#[derive(Parser)]
struct Inputs {
    #[command(flatten)]
    options: BatchOptions,
}

/// Answers a list of images as `vqa --input` does.
fn answer_list(folder: &Path, output: &str, seed: u64, more: &[&str]) -> anyhow::Result<()> {
    let (input, output) = (folder.join("list.txt"), folder.join(output));
    let named = ["vqa", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap(), "--batch", "2"];
    let Inputs { options } = Inputs::parse_from(named.iter().chain(more));
    let settings = || Ok(json!({ "seed": seed }).as_object().cloned().unwrap_or_default());
    let run = options.open(batch::Asked { field: "question", text: "what color is it?" }, false, settings)?;
    let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default())?;
    let sampled = GenerationConfig { do_sample: true, temperature: Some(1.5), seed, ..GenerationConfig::default() };
    run.answer(&model, sampled)
}

#[test]
fn inputs_that_failed_are_asked_again_in_their_places() {
    let names = Vec::from_iter((1..=6).map(|n| format!("{n}.png")));
    let folder = folder(&[("list.txt", &names.join("\n"))]);
    let draw =
        |name: &str| std::fs::write(folder.path().join(name), png(40 * name.as_bytes()[0].wrapping_sub(b'0'))).unwrap();
    ["1.png", "4.png", "6.png"].into_iter().for_each(draw);
    let message = answer_list(folder.path(), "a.jsonl", 5, &[]).unwrap_err().to_string();
    assert!(message.starts_with("3 of 6 inputs failed"), "{message}");
    // Cut within the last line.
    let path = folder.path().join("a.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 5]).unwrap();
    ["2.png", "3.png"].into_iter().for_each(draw);
    let message = answer_list(folder.path(), "a.jsonl", 5, &["--resume"]).unwrap_err().to_string();
    assert!(message.starts_with("1 of 6 inputs failed"), "{message}");
    draw("5.png");
    answer_list(folder.path(), "a.jsonl", 5, &["--resume"]).unwrap();
    answer_list(folder.path(), "whole.jsonl", 5, &[]).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("a.jsonl"), read("whole.jsonl"));
    let message = answer_list(folder.path(), "a.jsonl", 6, &["--resume"]).unwrap_err().to_string();
    assert!(message.contains("in `settings`, `seed` is 5, not 6"), "{message}");
}
