//! LLaVA's own lists of questions and answers, whose ids are others than those of the benchmarks.

use haplovl::eval::benchmark::{Prediction, QuestionSet, llava_answer, read_predictions};
use serde_json::{Value, json};

use super::{folder, open, png};

/// A line of an answer file as LLaVA writes it.
fn line(id: Value, prompt: &str, text: &str) -> String {
    json!({ "question_id": id, "prompt": prompt, "text": text, "answer_id": "x", "model_id": "m", "metadata": {} })
        .to_string()
}

fn answers(lines: &[String]) -> Vec<Prediction> {
    let folder = folder(&[("answers.jsonl", &lines.join("\n"))]);
    read_predictions(&folder.path().join("answers.jsonl")).unwrap()
}

/// The answers in the order of the questions.
fn matched(questions: &QuestionSet, predictions: &[Prediction]) -> Vec<Option<String>> {
    let found = questions.matched(predictions).unwrap();
    found.into_iter().map(|found| found.and_then(|found| found.answer.clone())).collect()
}

fn texts(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| (!text.is_empty()).then(|| (*text).to_owned())).collect()
}

/// A split of POPE with a question about each of these things.
fn split(things: &[&str]) -> String {
    let row = |(id, thing): (u32, &&str)| {
        let text = format!("Is there a {thing} in the image?");
        json!({ "question_id": id, "image": "COCO_val2014_000000000007.jpg", "text": text, "label": "yes" }).to_string()
    };
    Vec::from_iter((1..).zip(things).map(row)).join("\n")
}

fn pope_answers() -> Vec<Prediction> {
    let of = |id: u32, thing: &str, text: &str| {
        line(json!(id), &format!("Is there a {thing} in the image?\nAnswer the question using a single word."), text)
    };
    answers(&[
        of(1, "cat", "a1"),
        of(2, "dog", "a2"),
        of(10_000_001, "cat", "r1"),
        of(10_000_002, "bus", "r2"),
        of(20_000_001, "cat", "p1"),
        of(20_000_002, "car", "p2"),
    ])
}

#[test]
fn popes_ids_say_the_split() {
    let [adversarial, popular, random] = [split(&["cat", "dog"]), split(&["cat", "car"]), split(&["cat", "bus"])];
    let files = [
        ("coco_pope_adversarial.json", adversarial.as_str()),
        ("coco_pope_popular.json", &popular),
        ("coco_pope_random.json", &random),
    ];
    let all = folder(&files);
    let questions = open("pope", all.path()).unwrap();
    assert_eq!(matched(&questions, &pope_answers()), texts(&["a1", "a2", "p1", "p2", "r1", "r2"]));
    assert_eq!(questions.count_others(&pope_answers()), 0);
    for (file, expected) in files.into_iter().zip([["a1", "a2"], ["p1", "p2"], ["r1", "r2"]]) {
        let one = folder(&[file]);
        let questions = open("pope", one.path()).unwrap();
        assert_eq!(
            (matched(&questions, &pope_answers()), questions.count_others(&pope_answers())),
            (texts(&expected), 4)
        );
    }
}

#[test]
fn a_split_of_another_version_is_refused() {
    let [same, other] = [split(&["cat", "dog", "cow"]), split(&["fork", "cat", "bus"])];
    let folder = folder(&[("coco_pope_adversarial.json", &same), ("coco_pope_random.json", &other)]);
    let questions = open("pope", folder.path()).unwrap();
    let message = questions.matched(&pope_answers()).map(drop).unwrap_err().to_string();
    assert!(message.contains("in category random: `prompt` of random/1 is `Is there a cat"), "{message}");
}

#[test]
fn one_prompt_of_another_question_of_pope_is_refused() {
    // The splits share every other question, under the same number.
    let folder = folder(&[("coco_pope_random.json", &split(&["cat", "bus"]))]);
    let questions = open("pope", folder.path()).unwrap();
    let of = |thing: &str| format!("Is there a {thing} in the imange?");
    let adversarial = answers(&[line(json!(1), &of("cat"), "yes"), line(json!(2), &of("dog"), "yes")]);
    let message = questions.matched(&adversarial).map(drop).unwrap_err().to_string();
    assert!(message.contains("`prompt` of 2 is `Is there a dog in the imange?`"), "{message}");
    let random = answers(&[line(json!(1), &of("cat"), "yes"), line(json!(2), &of("bus"), "yes")]);
    assert_eq!(matched(&questions, &random), texts(&["yes", "yes"]));
}

#[test]
fn ids_that_the_questions_have_come_before_those_of_llava() {
    let row = |id: u32, category: &str| {
        json!({ "question_id": id, "image": "a.jpg", "text": "Is it?", "category": category, "label": "yes" })
            .to_string()
    };
    let rows = [row(1, "adversarial"), row(2, "adversarial"), row(10_000_001, "random"), row(10_000_002, "random")];
    let folder = folder(&[("list.jsonl", &rows.join("\n")), ("own.jsonl", &row(1, "own"))]);
    let of = |id: u32| line(json!(id), "Is it?", &id.to_string());
    let list = open("pope", &folder.path().join("list.jsonl")).unwrap().limited(3);
    let all = answers(&[of(1), of(2), of(10_000_001), of(10_000_002)]);
    assert_eq!(matched(&list, &all), texts(&["1", "2", "10000001"]));
    assert_eq!(list.count_others(&all), 1);
    let own = open("pope", &folder.path().join("own.jsonl")).unwrap();
    assert_eq!(matched(&own, &answers(&[of(1), of(10_000_001)])), texts(&["1"]));
}

const TEXT_VQA: &str = r#"{"data": [
    {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "what is the Time?", "answers": ["ten"]},
    {"question_id": 34603, "image_id": "003a8ae2ef43b901", "question": "what is the time next to it?", "answers": ["two"]},
    {"question_id": 34604, "image_id": "003a8ae2ef43b901", "question": "what is the time?", "answers": ["six"]},
    {"question_id": 34605, "image_id": "b9dc400eb20bad64", "question": "what is the time?", "answers": ["one"]}]}"#;

#[test]
fn an_image_and_the_prompt_say_the_question_of_text_vqa() {
    let folder = folder(&[("TextVQA_0.5.1_val.json", TEXT_VQA)]);
    let questions = open("textvqa", folder.path()).unwrap();
    let of = |image: &str, question: &str, text: &str| {
        let prompt =
            format!("{question}\nReference OCR token: A, what is the time?\nAnswer the question using a word.");
        line(json!(image), &prompt, text)
    };
    let [first, second] = ["003a8ae2ef43b901", "b9dc400eb20bad64"];
    let predictions = answers(&[
        of(second, "What is the time?", "d"),
        of(first, "What is the time next to it?", "b"),
        of(first, "What is the time?", "a"),
        of(first, "what is  the time?", "c"),
        of(first, "Who is it?", "none"),
        of("0123456789abcdef", "What is the time?", "none"),
    ]);
    assert_eq!(matched(&questions, &predictions), texts(&["a", "b", "c", "d"]));
    assert_eq!(questions.count_others(&predictions), 2);
    let without_prompts = [Prediction::new(first, "a".to_owned())];
    assert!(questions.matched(&without_prompts).map(drop).unwrap_err().to_string().contains("ids are like 003a"));
}

#[test]
fn the_question_as_it_is_written_comes_before_other_spellings() {
    let file = r#"{"data": [
        {"question_id": 1, "image_id": "aa", "question": "what is it?", "answers": ["x"]},
        {"question_id": 2, "image_id": "aa", "question": "What is it?", "answers": ["z"]},
        {"question_id": 3, "image_id": "train/7", "question": "what is it?", "answers": ["u"]},
        {"question_id": 4, "image_id": "val/7", "question": "what is it?", "answers": ["v"]}]}"#;
    let folder = folder(&[("TextVQA_0.5.1_val.json", file)]);
    let of = |image: &str, question: &str, text: &str| line(json!(image), question, text);
    let questions = open("textvqa", folder.path()).unwrap();
    let written = [of("aa", "What is it?", "z"), of("aa", "what is it?", "x"), of("7", "what is it?", "?")];
    assert_eq!(matched(&questions, &answers(&written)), texts(&["x", "z", "", ""]));
    let others = [of("aa", "WHAT is it?", "x"), of("aa", "what IS it?", "z")];
    assert_eq!(matched(&questions, &answers(&others)), texts(&["x", "z", "", ""]));
    assert_eq!(matched(&questions.limited(1), &answers(&written)), texts(&["x"]));
}

#[test]
fn questions_of_several_lines_are_found_in_prompts() {
    let row = |hint: &str, question: &str| {
        json!({ "question_id": "a", "image": "a.png", "hint": hint, "question": question, "answers": ["x"] })
            .to_string()
    };
    let rows = [row("Look.", "what is\nit?"), row("Look.", "what is\nnext to it?"), row("Listen.", "what is\nit?")];
    let folder = folder(&[("q.jsonl", &rows.join("\n"))]);
    let questions = open("textvqa", &folder.path().join("q.jsonl")).unwrap();
    let prompts = questions.questions().iter().map(|asked| asked.prompt(questions.benchmark().metric, None));
    let lines = Vec::from_iter(prompts.zip(["1", "2", "3"]).map(|(prompt, text)| line(json!("a"), &prompt, text)));
    assert_eq!(matched(&questions, &answers(&lines)), texts(&["1", "2", "3"]));
}

#[test]
fn ids_are_images_in_text_vqa_alone() {
    let file = r#"{"question_id": 2971450, "image_id": 297145, "question": "What is this?", "answers": ["dog"]}"#;
    let folder = folder(&[("q.jsonl", file)]);
    let questions = open("okvqa", &folder.path().join("q.jsonl")).unwrap();
    let of = |id: u32, text: &str| line(json!(id), "What is this?", text);
    let predictions = answers(&[of(297_145, "cat"), of(2_971_450, "dog")]);
    assert_eq!((matched(&questions, &predictions), questions.count_others(&predictions)), (texts(&["dog"]), 1));
}

/// LLaVA's list of questions about the images above.
fn llavas_list() -> String {
    let row = |(image, question): &(&str, &str)| {
        let text = format!("{question}\nReference OCR token: A\nAnswer the question using a word.");
        json!({ "question_id": image, "image": format!("{image}.jpg"), "text": text, "category": "default" })
            .to_string()
    };
    let rows = [
        ("003a8ae2ef43b901", "What is the Time?"),
        ("003a8ae2ef43b901", "what is the time next to it?"),
        ("b9dc400eb20bad64", "what is the time?"),
    ];
    Vec::from_iter(rows.iter().map(row)).join("\n")
}

#[test]
fn answers_to_questions_that_share_an_id_are_scored_by_the_benchmarks_file() {
    let folder = folder(&[("llava_textvqa_val_v051_ocr.jsonl", &llavas_list()), ("val.json", TEXT_VQA)]);
    let list = open("textvqa", &folder.path().join("llava_textvqa_val_v051_ocr.jsonl")).unwrap();
    let ids = Vec::from_iter(list.questions().iter().map(|question| question.id.as_str()));
    assert_eq!(ids, ["003a8ae2ef43b901/1", "003a8ae2ef43b901/2", "b9dc400eb20bad64"]);
    assert_eq!(list.with_shared_ids(), 2);
    let answer = |question: &haplovl::eval::benchmark::Question| {
        let prompt = question.prompt(list.benchmark().metric, None);
        Value::from(llava_answer(question, &prompt, &question.id, "m", json!({}))).to_string()
    };
    let predictions = answers(&Vec::from_iter(list.questions().iter().map(answer)));
    assert_eq!(matched(&list, &predictions), texts(&ids));
    let ids_written = Vec::from_iter(predictions.iter().map(|found| found.id.as_str()));
    assert_eq!(ids_written, ["003a8ae2ef43b901", "003a8ae2ef43b901", "b9dc400eb20bad64"]);
    let failed = json!({ "question_id": "003a8ae2ef43b901", "prompt": predictions[1].prompt, "error": "no image" });
    let found = answers(&[failed.to_string()]);
    let found =
        Vec::from_iter(list.matched(&found).unwrap().into_iter().map(|found| found.and_then(|f| f.error.clone())));
    assert_eq!(found, [None, Some("no image".to_owned()), None]);
    let published = open("textvqa", &folder.path().join("val.json")).unwrap();
    assert_eq!(matched(&published, &predictions), texts(&[ids[0], ids[1], "", ids[2]]));
}

#[test]
fn ids_are_shared_by_different_questions_about_one_image_alone() {
    let row = |image: &str, text: &str| json!({ "question_id": "a", "image": image, "text": text }).to_string();
    for rows in [[row("a.jpg", "x?"), row("a.jpg", "x?")], [row("b.jpg", "x?"), row("b.jpg", "y?")]] {
        let folder = folder(&[("q.jsonl", &rows.join("\n"))]);
        let message = open("textvqa", &folder.path().join("q.jsonl")).unwrap_err().to_string();
        assert!(message.contains("two questions have the id"), "{message}");
    }
}

#[test]
fn conversations_of_science_qa_are_questions() {
    let list = json!([
        { "id": "4", "conversations": [
            { "from": "human", "value": "Which is red?\nA. sky\nB. blood" }, { "from": "gpt", "value": "B" }] },
        { "id": "5", "image": "5/image.png", "conversations": [
            { "from": "human", "value": "<image>\nContext: Look.\nWhich is it?\nA. cat\nB. dog" }, { "from": "gpt", "value": "A" }] },
        { "id": "6", "conversations": [{ "from": "human", "value": "Which?" }] },
        { "id": "7", "conversations": [{ "role": "user", "content": "Which?" }, { "from": "gpt", "value": "A" }] },
        { "id": "8", "question": "Which?", "choices": ["x", "y"], "answer": 1, "conversations": [{ "role": "user" }] },
        { "id": "9", "conversations": [
            { "from": "human", "value": "Which?\nA. cat\nB. dog" }, { "from": "gpt", "value": "The answer is B." }] },
    ]);
    let folder = folder(&[("llava_test_CQM-A.json", &list.to_string()), ("images/test/5/README", "")]);
    std::fs::write(folder.path().join("images/test/5/image.png"), png(7)).unwrap();
    let questions = open("scienceqa", &folder.path().join("llava_test_CQM-A.json")).unwrap();
    let (count, named) = questions.left_out();
    assert!(count == 2 && named[0].contains("has 1 turns in `conversations`"), "{named:?}");
    assert!(named[1].contains("without a text as `value`"), "{named:?}");
    let right = |at: usize| questions.questions()[at].answers.join(",");
    assert_eq!([right(1), right(2), right(3)], ["A", "B", "B"]);
    let prompt = |at: usize| questions.questions()[at].prompt(questions.benchmark().metric, None);
    let instruction = questions.benchmark().metric.instruction();
    assert_eq!(prompt(0), format!("Which is red?\nA. sky\nB. blood\n{instruction}"));
    assert_eq!(prompt(1), format!("Context: Look.\nWhich is it?\nA. cat\nB. dog\n{instruction}"));
    assert_eq!(questions.without_image(), 3);
    let written = llava_answer(&questions.questions()[0], "", "", "m", json!({}));
    assert_eq!(written["question_id"], json!("4"));
    assert_eq!(questions.decoded(&questions.questions()[1]).unwrap().len(), 1);
}

#[test]
fn karpathys_test_split_is_read() {
    let image = |split: &str, id: u32| {
        json!({ "filepath": "val2014", "filename": format!("COCO_val2014_{id:012}.jpg"), "imgid": 0, "split": split, "cocoid": id,
                "sentences": [{ "tokens": ["a", "cat"], "raw": "A cat.", "imgid": 0, "sentid": 1 }, { "raw": "The cat." }] })
    };
    let flickr = json!({ "filename": "1007.jpg", "split": "test", "sentences": [{ "raw": "A dog." }] });
    let file = json!({ "images": [image("restval", 3), image("test", 42), flickr], "dataset": "coco" }).to_string();
    let folder = folder(&[("dataset_coco.json", &file)]);
    let questions = open("coco", folder.path()).unwrap();
    let found = Vec::from_iter(questions.questions().iter().map(|asked| (asked.id.as_str(), asked.answers.join("|"))));
    assert_eq!(found, [("42", "A cat.|The cat.".to_owned()), ("1007", "A dog.".into())]);
    let broken = super::folder(&[("dataset_coco.json", r#"{"images": [{"filename": "a.jpg"}], "dataset": "coco"}"#)]);
    let message = open("coco", broken.path()).unwrap_err().to_string();
    assert!(message.contains("missing field `split`"), "{message}");
    let (count, named) = questions.left_out();
    assert!(count == 1 && named[0].ends_with("000000000003.jpg: is of another split than test"), "{named:?}");
    let named =
        [Prediction::new("42", "x".to_owned()), Prediction::new("COCO_val2014_000000000042.jpg", "x".to_owned())];
    assert_eq!(matched(&questions, &named), texts(&["x", ""]));
}
