//! Files of benchmarks, in the forms in which they are published.

use haplovl::eval::benchmark::{Prediction, QuestionSet, read_predictions, write_sheet};

use super::{base64_png, folder, open, png, shade};

fn ids(questions: &QuestionSet) -> Vec<&str> {
    questions.questions().iter().map(|question| question.id.as_str()).collect()
}

#[test]
fn a_table_of_vlmevalkit_holds_images_or_refers_to_those_of_other_rows() {
    let table = format!(
        "index\timage\tquestion\thint\tA\tB\tanswer\tcategory\tl2-category\n\
         1\t{}\twhich?\t\tred\t\"a \"\"blue\"\" one\"\tB\tcolour\tperception\n\
         2\t{}\thow many?\tlook\tone\ttwo\tA\tcounting\treasoning\n\
         1000001\t1\twhich?\t\t\"a \"\"blue\"\" one\"\tred\tA\tcolour\tperception\n",
        base64_png(10),
        base64_png(20)
    );
    let folder = folder(&[("MMBench_DEV_EN.tsv", &table)]);
    let questions = open("mmbench", folder.path()).unwrap();
    assert_eq!(ids(&questions), ["1", "2", "1000001"]);
    assert_eq!([0, 1, 2].map(|n| shade(&questions, n)), [10, 20, 10]);
    let [first, second, rotated] = questions.questions() else { unreachable!() };
    assert_eq!((first.options[1].as_str(), first.answers[0].as_str()), ("a \"blue\" one", "B"));
    assert_eq!((first.group.as_str(), rotated.group.as_str(), rotated.answers[0].as_str()), ("1", "1", "A"));
    assert_eq!((second.text.as_str(), second.categories.join(",")), ("look\nhow many?", "counting,reasoning".into()));
    let grouped = questions.by_image();
    assert_eq!(ids(&grouped), ["1", "1000001", "2"]);
    assert_eq!(ids(&grouped.limited(1)), ["1", "1000001"]);
}

#[test]
fn a_row_may_hold_a_list_of_images() {
    let table = format!(
        "index\timage\tquestion\tanswer\n1\t['{}', '{}']\tsame?\t\"['no', 'No']\"\n",
        base64_png(1),
        base64_png(2)
    );
    let folder = folder(&[("MMMU_DEV_VAL.tsv", &table)]);
    let questions = open("mmmu", folder.path()).unwrap();
    let question = &questions.questions()[0];
    assert_eq!((questions.decoded(question).unwrap().len(), question.answers.join(",")), (2, "no,No".into()));
}

#[test]
fn vqa_has_questions_and_annotations_in_two_files() {
    let questions = r#"{"info": {}, "questions": [{"image_id": 42, "question": "a cat?", "question_id": 420},
        {"image_id": 7, "question": "how many?", "question_id": 70}]}"#;
    let annotations = r#"{"annotations": [{"question_id": 70, "image_id": 7, "answer_type": "number", "question_type": "how many",
        "answers": [{"answer": "2", "answer_confidence": "yes", "answer_id": 1}, {"answer": "two", "answer_id": 2}]},
        {"question_id": 420, "image_id": 42, "answer_type": "yes/no", "answers": [{"answer": "yes", "answer_id": 1}]}]}"#;
    let folder = folder(&[("v2_x_questions.json", questions), ("v2_x_annotations.json", annotations)]);
    std::fs::create_dir(folder.path().join("val2014")).unwrap();
    std::fs::write(folder.path().join("val2014/COCO_val2014_000000000042.jpg"), png(9)).unwrap();
    let found = open("vqav2", folder.path()).unwrap();
    assert_eq!(ids(&found), ["420", "70"]);
    assert_eq!((found.questions()[1].answers.clone(), shade(&found, 0)), (vec!["2".to_owned(), "two".into()], 9));
    assert_eq!(found.questions()[0].categories, ["yes/no"]);
    let message = found.decoded(&found.questions()[1]).unwrap_err().to_string();
    assert!(message.contains("no image 7"), "{message}");
    std::fs::remove_file(folder.path().join("v2_x_questions.json")).unwrap();
    assert!(open("vqav2", folder.path()).unwrap_err().to_string().contains("no question of VQAv2"));
}

#[test]
fn gqa_and_scienceqa_have_their_questions_by_key() {
    let gqa = r#"{"05": {"question": "Is it?", "imageId": "n1", "answer": "no", "types": {"structural": "verify"}}}"#;
    let gqa_folder = folder(&[("testdev_balanced_questions.json", gqa)]);
    let questions = open("gqa", gqa_folder.path()).unwrap();
    let question = &questions.questions()[0];
    assert_eq!((question.id.as_str(), question.image.as_str(), question.answers[0].as_str()), ("05", "n1", "no"));
    assert_eq!(question.categories, ["verify"]);
    let science = r#"{"1": {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "h", "image": "image.png",
        "split": "test"}, "2": {"question": "?", "choices": ["x"], "answer": 0, "split": "train"}}"#;
    let science = folder(&[("problems.json", science)]);
    std::fs::create_dir_all(science.path().join("images/test/1")).unwrap();
    std::fs::write(science.path().join("images/test/1/image.png"), png(5)).unwrap();
    let questions = open("scienceqa", science.path()).unwrap();
    assert_eq!((ids(&questions), shade(&questions, 0), questions.left_out().0), (vec!["1"], 5, 1));
    assert_eq!(questions.questions()[0].answers, ["B"]);
}

#[test]
fn popes_splits_are_files_with_the_same_ids() {
    let lines =
        |label: &str| format!(r#"{{"question_id": 1, "image": "a.png", "text": "a cat?", "label": "{label}"}}"#);
    let (random, popular) = (lines("yes"), lines("no"));
    let folder = folder(&[("coco_pope_random.json", &random), ("coco_pope_popular.json", &popular)]);
    let questions = open("pope", folder.path()).unwrap();
    assert_eq!(ids(&questions), ["popular/1", "random/1"]);
    assert_eq!(questions.questions()[1].categories, ["random"]);
}

#[test]
fn mmvp_pairs_two_questions() {
    let table =
        "Index,Question,Options,Correct Answer\n1,Open?,(a) Open (b) Closed,(a)\n2,Open?,(a) Open (b) Closed,(b)\n";
    let folder = folder(&[("Questions.csv", table)]);
    std::fs::create_dir(folder.path().join("MMVP Images")).unwrap();
    std::fs::write(folder.path().join("MMVP Images/2.jpg"), png(3)).unwrap();
    let questions = open("mmvp", folder.path()).unwrap();
    assert_eq!(
        (questions.questions()[0].group.clone(), shade(&questions, 1)),
        (questions.questions()[1].group.clone(), 3)
    );
    assert_eq!(questions.questions()[1].answers, ["B"]);
}

#[test]
fn lists_of_records_in_an_object_are_read() {
    let text = r#"{"dataset_type": "val", "data": [{"questionId": 9, "question": "total?", "image": "documents/a.png",
        "answers": ["12", "12.00"]}]}"#;
    let folder = folder(&[("val_v1.0.json", text)]);
    let questions = open("docvqa", folder.path()).unwrap();
    assert_eq!((ids(&questions), questions.questions()[0].answers.len()), (vec!["9"], 2));
    let seed = r#"{"questions": [{"question_id": "1_0", "question": "?", "choice_a": "x", "choice_b": "y", "answer": "B",
        "data_type": "image", "data_id": "1.jpg"}, {"question_id": "2_0", "question": "?", "data_type": "video"}]}"#;
    let seed = super::folder(&[("SEED-Bench.json", seed)]);
    let questions = open("seedbench", seed.path()).unwrap();
    assert_eq!((ids(&questions), questions.left_out().0), (vec!["1_0"], 1));
    assert_eq!((questions.questions()[0].image.as_str(), questions.questions()[0].answers[0].as_str()), ("1.jpg", "B"));
}

#[test]
fn captions_are_gathered_by_image() {
    let text = r#"{"images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}, {"id": 3, "file_name": "c"}],
        "annotations": [{"image_id": 1, "id": 5, "caption": "a cat"}, {"image_id": 2, "id": 6, "caption": "a dog"},
        {"image_id": 1, "id": 7, "caption": "the cat"}]}"#;
    let folder = folder(&[("captions_val2014.json", text)]);
    let questions = open("coco", folder.path()).unwrap();
    assert_eq!((ids(&questions), questions.questions()[1].image.as_str()), (vec!["2", "1"], "a.jpg"));
    assert_eq!(questions.questions()[1].answers, ["a cat", "the cat"]);
}

#[test]
fn llavas_lines_are_whole_prompts() {
    let lines = r#"{"question_id": 5, "image": "a.png", "text": "Is it?\nAnswer yes or no.", "category": "adversarial", "label": "no"}"#;
    let folder = folder(&[("llava_pope_test.jsonl", lines)]);
    let questions = open("pope", &folder.path().join("llava_pope_test.jsonl")).unwrap();
    let question = &questions.questions()[0];
    assert_eq!(question.prompt(questions.benchmark().metric, None), "Is it?\nAnswer yes or no.");
    assert_eq!((question.answers[0].as_str(), question.categories[0].as_str()), ("no", "adversarial"));
}

#[test]
fn captions_are_known_by_the_numbers_of_their_images() {
    let rows = r#"{"filename": "COCO_val2014_000000000042.jpg", "sentences": ["a cat"], "cocoid": 42}
        {"filename": "COCO_val2014_000000000042.jpg", "caption": "the cat"}
        {"image": "val2014/COCO_val2014_000000000007.jpg", "caption": ["a dog"]}"#;
    let folder = folder(&[("captions.jsonl", rows), ("val2014/README", "")]);
    std::fs::write(folder.path().join("val2014/COCO_val2014_000000000042.jpg"), png(5)).unwrap();
    let questions = open("coco", &folder.path().join("captions.jsonl")).unwrap();
    assert_eq!((ids(&questions), shade(&questions, 0), questions.without_image()), (vec!["42", "7"], 5, 0));
    let named =
        [Prediction::new("COCO_val2014_000000000042.jpg", "a".to_owned()), Prediction::new("7", "b".to_owned())];
    assert!(questions.matched(&named).unwrap().iter().all(Option::is_some));
    assert_eq!(
        (questions.count_others(&named), questions.questions()[0].answers.join(",")),
        (0, "a cat,the cat".into())
    );
}

#[test]
fn the_hubs_gqa_has_its_images_in_other_rows() {
    let rows = format!(
        "{{\"id\": \"n1\", \"image\": \"{}\"}}\n{{\"id\": \"q1\", \"imageId\": \"n1\", \"question\": \"?\", \"answer\": \"no\"}}\n",
        base64_png(33)
    );
    let folder = folder(&[("q.jsonl", &rows)]);
    let questions = open("gqa", &folder.path().join("q.jsonl")).unwrap();
    assert_eq!((ids(&questions), shade(&questions, 0), questions.left_out().0), (vec!["q1"], 33, 0));
    // An image that no question names is a row without a question.
    let stray = format!("{rows}{{\"id\": \"n2\", \"image\": \"{}\"}}\n", base64_png(33));
    std::fs::write(folder.path().join("q.jsonl"), stray).unwrap();
    let questions = open("gqa", &folder.path().join("q.jsonl")).unwrap();
    let (count, named) = questions.left_out();
    assert!(count == 1 && named[0].contains("record 3: has no question"), "{named:?}");
}

#[cfg(feature = "parquet")]
#[test]
fn the_hubs_parquet_holds_images() {
    for schema in ["optional group image { optional binary bytes; }", "optional binary image;"] {
        holds_images(schema, if schema.contains("group") { 2 } else { 1 });
    }
}

#[cfg(feature = "parquet")]
fn holds_images(image: &str, level: i16) {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    let schema = format!(
        "message m {{ optional binary question (UTF8); {image}
        optional binary answer (UTF8); optional binary question_id (UTF8); }}"
    );
    let folder = folder(&[("data/README", "")]);
    let file = std::fs::File::create(folder.path().join("data/test-00000-of-00001.parquet")).unwrap();
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (value, level) in [(b"a cat?".to_vec(), 1), (png(77), level), (b"no".to_vec(), 1), (b"q1".to_vec(), 1)] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from(value)], Some(&[level]), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    let questions = open("gqa", folder.path()).unwrap();
    assert_eq!((ids(&questions), shade(&questions, 0)), (vec!["q1"], 77));
    assert_eq!(questions.questions()[0].answers, ["no"]);
}

#[test]
fn broken_rows_are_counted_and_named() {
    let lines = "{\"question\": \"a?\", \"answer\": \"b\", \"id\": 1}\nnonsense\n{\"answer\": \"x\"}\n";
    let folder = folder(&[("questions.jsonl", lines)]);
    let questions = open("gqa", &folder.path().join("questions.jsonl")).unwrap();
    let (count, named) = questions.left_out();
    assert_eq!((questions.questions().len(), count), (1, 2));
    assert!(named[0].contains("record 2") && named[1].contains("has no question"), "{named:?}");
    let twice = "{\"question\": \"a?\", \"id\": 1}\n{\"question\": \"b?\", \"id\": 1}\n";
    let twice = super::folder(&[("q.jsonl", twice)]);
    let message = open("gqa", &twice.path().join("q.jsonl")).unwrap_err().to_string();
    assert!(message.contains("two questions have the id"), "{message}");
}

#[test]
fn result_sheets_are_read_back() {
    let lines = "{\"question\": \"a\\tb \\\"c\\\"?\", \"answer\": \"B\", \"id\": 1, \"options\": [\"x\", \"y\"]}\n\
                 {\"question\": \"d?\", \"answer\": \"A\", \"id\": 2, \"options\": [\"x\", \"y\"]}\n";
    let folder = folder(&[("q.jsonl", lines)]);
    let questions = open("mmstar", &folder.path().join("q.jsonl")).unwrap();
    let predictions = [Prediction::new("2", "A\n\"so\"".to_owned()), Prediction::new("1", None)];
    let path = folder.path().join("sheet.tsv");
    write_sheet(&path, &questions, &questions.matched(&predictions).unwrap()).unwrap();
    let read = read_predictions(&path).unwrap();
    assert_eq!(read, [predictions[1].clone(), predictions[0].clone()]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("index\tquestion\tA\tB\tanswer\tcategory\tprediction\n"), "{text}");
}

#[test]
fn predictions_must_agree_and_belong() {
    let folder = folder(&[("q.jsonl", "{\"question\": \"a?\", \"answer\": \"b\", \"id\": 1}\n")]);
    let questions = open("gqa", &folder.path().join("q.jsonl")).unwrap();
    let of = |texts: &[(&str, &str)]| {
        Vec::from_iter(texts.iter().map(|(id, text)| Prediction::new(*id, (*text).to_owned())))
    };
    let twice = questions.matched(&of(&[("1", "b"), ("1", "c")])).map(drop).unwrap_err().to_string();
    assert!(twice.contains("question 1 twice"), "{twice}");
    assert_eq!(questions.matched(&of(&[("1", "b"), ("1", "b"), ("7", "x")])).unwrap().len(), 1);
    // A question that failed and was asked again.
    let again = [Prediction::new("1", None), Prediction::new("1", "b".to_owned()), Prediction::new("1", None)];
    let matched = questions.matched(&again).unwrap();
    assert_eq!(matched[0].and_then(|found| found.answer.as_deref()), Some("b"));
    let none = questions.matched(&of(&[("x", "b")])).map(drop).unwrap_err().to_string();
    assert!(none.contains("ids are like x, expected like 1"), "{none}");
}

#[test]
fn predictions_of_another_file_with_the_same_numbers_are_refused() {
    let questions = "{\"question\": \"Is there a cat?\", \"label\": \"no\", \"question_id\": 1}\n\
                     {\"question\": \"Is there a dog?\", \"label\": \"yes\", \"question_id\": 2}\n";
    let of = |prompts: [&str; 2]| {
        let line = |(id, prompt)| format!("{{\"question_id\": {id}, \"prompt\": \"{prompt}\", \"text\": \"yes\"}}\n");
        let answers = String::from_iter((1..).zip(prompts).map(line));
        let folder = folder(&[("q.jsonl", questions), ("answers.jsonl", &answers)]);
        let set = open("gqa", &folder.path().join("q.jsonl")).unwrap();
        let predictions = read_predictions(&folder.path().join("answers.jsonl")).unwrap();
        set.matched(&predictions).map(|found| found.iter().flatten().count()).map_err(|error| error.to_string())
    };
    assert_eq!(of(["is there a  cat?\\nAnswer yes or no.", "Another wording"]), Ok(2));
    let message = of(["Is there a car?", "Is there a bus?"]).unwrap_err();
    assert!(
        message.contains("`prompt` of 1 is `Is there a car?`, expected `Is there a cat?` in it (2 such)"),
        "{message}"
    );
}

#[test]
fn what_is_wrong_in_a_file_of_annotations_is_said() {
    let questions = r#"{"questions": [{"image_id": 42, "question": "how many?", "question_id": 420}]}"#;
    let annotations = r#"{"annotations": [{"question_id": 420, "answers": [{"answer": 5, "answer_id": 1}]}]}"#;
    let folder = folder(&[("v2_x_questions.json", questions), ("v2_x_annotations.json", annotations)]);
    let message = open("vqav2", folder.path()).unwrap_err().to_string();
    assert!(message.contains("v2_x_annotations.json") && message.contains("expected a string"), "{message}");
}
