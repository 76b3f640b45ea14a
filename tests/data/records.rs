//! LLaVA records, caption pairs and image folders, valid and invalid.

use std::fs;
use std::path::{Path, PathBuf};

use haplovl::Error;
use haplovl::data::{
    BadSample, Concat, Dataset, ImageFolder, ImageSource, Record, RecordFile, RecordIndex, Turn, open,
};
use haplovl::processor::Role;
use tempfile::TempDir;

use crate::common::tiny_processor;

/// A folder with `a.png`, `b.png` and a record file of this content.
fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for image in ["a.png", "b.png"] {
        image::RgbImage::new(2, 2).save(folder.path().join(image)).unwrap();
    }
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn get(record: &str) -> Result<Record, BadSample> {
    let (_folder, path) = file("one.jsonl", record);
    open(&path, None).unwrap().get(0)
}

fn image_names(conversation: &Record) -> Vec<String> {
    let name = |image: &ImageSource| match image {
        ImageSource::File(path) => path.file_name().unwrap().to_string_lossy().into_owned(),
        _ => panic!("expected a file"),
    };
    conversation.images.iter().map(name).collect()
}

#[test]
fn llava_records_of_every_format_are_read() {
    let one = get(r#"{"id": "7", "image": "a.png", "conversations": [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]}"#
        .replace('\n', " ").as_str()).unwrap();
    assert_eq!(one.id, "7");
    assert_eq!(image_names(&one), ["a.png"]);
    assert_eq!(one.turns.iter().map(|t| t.role).collect::<Vec<_>>(), [Role::System, Role::User, Role::Assistant]);
    assert_eq!(one.turns[2], Turn::assistant("A cat."));

    let several = get(r#"{"id": 3, "image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "Both."}]}"#).unwrap();
    assert_eq!((several.id.as_str(), image_names(&several).len()), ("3", 2));

    let text = get(r#"{"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "extra": {"a": [1]}}"#).unwrap();
    assert_eq!(text.turns, [Turn::user("Hi"), Turn::assistant("Hello")]);
    assert!(text.images.is_empty());

    let bare = get(r#"{"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "Compare."}, {"from": "gpt", "value": "Alike."}]}"#).unwrap();
    assert_eq!(bare.turns[0].text, "<image>\n<image>\nCompare.");
}

#[test]
fn caption_pairs_and_plain_text_are_read() {
    for field in ["caption", "text"] {
        let pair = get(&format!(r#"{{"image": "b.png", "{field}": "a dog"}}"#)).unwrap();
        assert_eq!(pair.turns, [Turn::user("<image>"), Turn::assistant("a dog")]);
    }
    assert_eq!(get(r#"{"text": "once upon a time"}"#).unwrap().turns, [Turn::assistant("once upon a time")]);
    assert_eq!(get(r#"{"image": null, "text": "x"}"#).unwrap().images, []);
}

#[test]
fn errors_of_bad_records_name_the_problem() {
    let message = |record: &str| get(record).expect_err(record).to_string();
    assert!(matches!(get("{\"id\": 1,"), Err(BadSample::BrokenRecord(_))));
    assert!(matches!(get("not json"), Err(BadSample::BrokenRecord(_))));
    assert!(matches!(get("{} {}"), Err(BadSample::BrokenRecord(_))));
    assert!(matches!(get(r#"{"image": 5, "text": "x"}"#), Err(BadSample::BrokenRecord(_))));
    assert!(matches!(get("{\"text\": \"\u{0}\"}"), Err(BadSample::BrokenRecord(_))));
    assert!(matches!(get(r#"{"conversations": [{"from": "nobody", "value": ""}]}"#), Err(BadSample::BrokenRecord(_))));
    assert!(message(r#"{"image": "c.png", "text": "x"}"#).contains("c.png: check the image folder"));
    assert!(message(r#"{"image": "a.png", "x": 1}"#).starts_with("no text in the fields image, x: expected"));
    assert!(matches!(get(r#"{"conversations": []}"#), Err(BadSample::NoText { .. })));
    assert!(matches!(get(r#"{"conversations": [{"from": "human", "value": "Hi"}]}"#), Err(BadSample::NoTurns)));
    assert!(matches!(get(r#"{"conversations": [{"from": "gpt", "value": "  "}]}"#), Err(BadSample::NoTurns)));
    let two = r#"{"image": "a.png", "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}]}"#;
    assert_eq!(message(two), "2 `<image>` markers for 1 images: expected one each");
    // There is no user turn for the marker.
    let mute = r#"{"image": "a.png", "conversations": [{"from": "gpt", "value": "x"}]}"#;
    assert!(matches!(get(mute), Err(BadSample::ImageMarkers { markers: 0, images: 1 })));
}

/// Texts of all records, or the error.
fn texts(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, String> {
    let (_folder, path) = file(name, content);
    let records = open(&path, None).map_err(|e| e.to_string())?;
    let text = |i| match records.get(i) {
        Ok(conversation) => conversation.turns[0].text.clone(),
        Err(reason) => format!("bad: {reason}"),
    };
    Ok((0..records.len()).map(text).collect())
}

#[test]
fn arrays_and_lines_are_detected_and_split_correctly() {
    let all = Ok(vec!["a".to_string(), "]},{[ \" \\".into(), "c".into()]);
    let records = [r#"{"text":"a"}"#, r#"{"text":"]},{[ \" \\","x":[[{}]]}"#, r#"{"text":"c"}"#];
    assert_eq!(texts("array.json", format!("[{}]", records.join(","))), all);
    assert_eq!(texts("spread.json", format!("\u{feff} [\n {} \n]\n\n", records.join("\n ,\n "))), all);
    assert_eq!(texts("lines.jsonl", records.join("\n")), all);
    assert_eq!(texts("windows.jsonl", format!("\r\n{}\r\n\r\n", records.join("\r\n\n"))), all);
}

#[test]
fn a_broken_record_does_not_affect_others() {
    let lines = texts("lines.jsonl", "{\"text\":\"a\"}\n{\"text\":\n{\"text\":\"c\"}\n").unwrap();
    assert!(lines[0] == "a" && lines[1].starts_with("bad: broken record") && lines[2] == "c", "{lines:?}");
    let array = texts("array.json", r#"[{"text":"a"}, {"text" "b"}, oops, 5, {"text":"c"}]"#).unwrap();
    assert!(array.len() == 5 && array[0] == "a" && array[4] == "c", "{array:?}");
    assert!(array[1..4].iter().all(|text| text.starts_with("bad: broken record")), "{array:?}");
}

#[test]
fn files_that_are_not_a_data_set_are_rejected() {
    for empty in ["", " \n \n", "[]", "[ \n]"] {
        assert!(texts("empty.json", empty).unwrap_err().contains("contains no record"), "{empty:?}");
    }
    for cut in [r#"[{"text":"a"},{"te"#, r#"[{"text":"a"}"#, r#"[{"text":"a"},"#, r#"["#] {
        let message = texts("cut.json", cut).unwrap_err();
        assert!(message.contains("without its closing bracket") && message.contains("truncated"), "{message}");
    }
    assert!(texts("more.json", r#"[{"text":"a"}] {"text":"b"}"#).unwrap_err().contains("continues at byte 15"));
    assert!(matches!(RecordIndex::open("/no/such.json"), Err(Error::Io { .. })));
}

#[test]
fn an_overlong_record_is_rejected() {
    let long = format!("{{\"text\":\"{}\"}}\n{{\"text\":\"b\"}}", "x".repeat(17 << 20));
    let (_folder, path) = file("long.jsonl", long);
    let records = RecordFile::open(&path, "").unwrap();
    assert!(matches!(records.get(0), Err(BadSample::HugeRecord { .. })));
    assert_eq!(records.get(1).unwrap().turns, [Turn::assistant("b")]);
    assert!(records.get(2).unwrap_err().to_string().contains("index 2 is out of range"));
}

#[test]
fn all_records_of_a_large_file_are_found() {
    let lines: String = (0..50_000).map(|i| format!("{{\"id\":{i},\"text\":\"{}\"}}\n", "é".repeat(i % 50))).collect();
    let (_folder, path) = file("many.jsonl", lines);
    let records = RecordFile::open(&path, "").unwrap();
    assert_eq!(records.len(), 50_000);
    for i in [1, 777, 49_999] {
        assert_eq!(records.get(i).unwrap().id, i.to_string());
    }
    assert!(records.describe(776).ends_with("many.jsonl record 777"));
}

#[test]
fn a_folder_of_images_and_texts_is_read() {
    let (folder, _) = file("a.txt", " a cat \n");
    let pictures = ImageFolder::open(folder.path()).unwrap();
    assert_eq!(pictures.len(), 2);
    let first = pictures.get(0).unwrap();
    assert_eq!((first.id.as_str(), &first.turns[1]), ("a", &Turn::assistant("a cat")));
    assert!(matches!(pictures.get(1), Err(BadSample::MissingText(path)) if path.ends_with("b.txt")));
    assert!(open(folder.path(), None).unwrap().describe(1).ends_with("b.png"));

    let empty = tempfile::tempdir().unwrap();
    assert!(ImageFolder::open(empty.path()).unwrap_err().to_string().contains("contains no image"));
}

#[test]
fn parts_are_concatenated_in_order() {
    let (_one, first) = file("one.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}");
    let (_two, second) = file("two.jsonl", "{\"text\":\"c\"}");
    let all = Concat::new(vec![open(&first, None).unwrap(), open(&second, Some(Path::new("."))).unwrap()]);
    let text = |i| all.get(i).unwrap().turns[0].text.clone();
    assert_eq!((all.len(), text(0), text(1), text(2)), (3, "a".into(), "b".into(), "c".into()));
    assert!(all.describe(2).ends_with("two.jsonl record 1"));
    assert!(all.get(3).is_err());
}

#[test]
fn images_are_inserted_at_their_markers() {
    let record = r#"{"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "Black."}, {"from": "human", "value": "And <image>?"}, {"from": "gpt", "value": "Too."}]}"#;
    let (folder, path) = file("two.jsonl", record);
    let record = open(&path, None).unwrap().get(0).unwrap();
    let conversation = record.conversation(&tiny_processor()).unwrap();
    let images: Vec<_> = conversation.messages.iter().map(|message| message.images().count()).collect();
    assert_eq!(images, [1, 0, 1, 0]);
    assert_eq!(conversation.messages[2].texts().collect::<Vec<_>>(), ["And <image>?"]);

    fs::write(folder.path().join("b.png"), b"no picture").unwrap();
    let reason = record.conversation(&tiny_processor()).unwrap_err();
    assert!(matches!(&reason, BadSample::Failed(Error::Image { .. })), "{reason}");
    assert!(reason.to_string().contains("b.png"), "{reason}");
}
