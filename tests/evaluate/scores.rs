//! Scores of benchmarks, from files to measures.

use haplovl::eval::benchmark::{Prediction, QuestionSet, Results};

use super::{folder, open};

fn results(benchmark: &str, questions: &str, answers: &[(&str, Option<&str>)]) -> Results {
    let folder = folder(&[("q.jsonl", questions)]);
    let set: QuestionSet = open(benchmark, &folder.path().join("q.jsonl")).unwrap();
    let predictions = answers.iter().map(|(id, answer)| Prediction::new(*id, answer.map(str::to_owned)));
    let predictions = Vec::from_iter(predictions);
    Results::of(&set, &set.matched(&predictions).unwrap())
}

fn measure(results: &Results, category: &str, name: &str) -> f64 {
    let row = results.rows.iter().find(|row| row.category == category && row.measure.name() == name);
    row.expect(name).measure.value()
}

#[test]
fn vqa_is_the_mean_over_questions_and_by_type() {
    let questions = r#"{"question_id": 1, "question": "?", "answer_type": "number", "answers": ["2", "two", "3", "2"]}
        {"question_id": 2, "question": "?", "answer_type": "other", "answers": ["red", "blue", "red", "red"]}"#;
    let found = results("vqav2", questions, &[("1", Some("Two.")), ("2", Some("green"))]);
    // Three of four said 2: two others for each of them, three for the fourth.
    let first = (3.0 * 2.0 / 3.0 + 1.0) / 4.0;
    assert!((measure(&found, "overall", "VQA accuracy") - first / 2.0).abs() < 1e-12);
    assert!((measure(&found, "number", "VQA accuracy") - first).abs() < 1e-12);
    assert_eq!((found.units.len(), found.units[1].1), (2, 0.0));
}

#[test]
fn circular_evaluation_counts_questions_that_are_right_every_time() {
    let questions = r#"{"index": 1, "question": "?", "A": "x", "B": "y", "answer": "A", "category": "c"}
        {"index": 2, "question": "?", "A": "x", "B": "y", "answer": "B", "category": "c"}"#;
    // The rotations are added: 1000001 has B for its answer, 1000002 has A.
    let answers = [("1", Some("A")), ("1000001", Some("A")), ("2", Some("B")), ("1000002", Some("A. y"))];
    let found = results("mmbench", questions, &answers);
    assert_eq!(measure(&found, "overall", "circular accuracy"), 0.5);
    assert_eq!((measure(&found, "overall", "accuracy"), measure(&found, "c", "circular accuracy")), (0.75, 0.5));
    assert_eq!(found.units, [("1".to_owned(), 0.0), ("2".to_owned(), 1.0)]);
}

#[test]
fn unread_answers_are_wrong_for_a_named_reason() {
    let row = |id: u32| {
        format!("{{\"index\": {id}, \"question\": \"?\", \"A\": \"cat\", \"B\": \"dog\", \"answer\": \"A\"}}\n")
    };
    let questions = String::from_iter((1..=5).map(row));
    let answers = [("1", Some("A")), ("2", Some("A or B")), ("3", Some("horse")), ("4", None), ("5", Some(""))];
    let found = results("mmstar", &questions, &answers);
    assert_eq!(measure(&found, "overall", "accuracy"), 0.2);
    let problems = Vec::from_iter(found.problems.iter().map(|(problem, count)| (*problem, *count)));
    assert_eq!(problems, [("no answer", 1), ("no option named", 2), ("several options named", 1)]);
}

#[test]
fn pope_has_measures_by_split_and_their_means() {
    let mut questions = String::new();
    let mut answers = Vec::new();
    for (split, given) in [("random", ["yes", "yes", "no", "no"]), ("popular", ["yes"; 4]), ("adversarial", ["no"; 4])]
    {
        for (n, (right, given)) in ["yes", "no", "yes", "no"].iter().zip(given).enumerate() {
            questions += &format!(
                "{{\"question_id\": \"{split}{n}\", \"question\": \"?\", \"label\": \"{right}\", \"category\": \"{split}\"}}\n"
            );
            answers.push((format!("{split}{n}"), given));
        }
    }
    let answers = Vec::from_iter(answers.iter().map(|(id, given)| (id.as_str(), Some(*given))));
    let found = results("pope", &questions, &answers);
    assert_eq!((measure(&found, "random", "precision"), measure(&found, "random", "recall")), (0.5, 0.5));
    assert!((measure(&found, "popular", "F1") - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!((measure(&found, "popular", "yes ratio"), measure(&found, "adversarial", "F1")), (1.0, 0.0));
    assert!((measure(&found, "overall", "F1, mean of splits") - (0.5 + 2.0 / 3.0) / 3.0).abs() < 1e-12);
    assert_eq!(measure(&found, "overall", "accuracy, mean of splits"), 0.5);
}

#[test]
fn mmvp_counts_pairs() {
    let questions = r#"{"index": 1, "question": "?", "options": "(a) x (b) y", "answer": "(a)"}
        {"index": 2, "question": "?", "options": "(a) x (b) y", "answer": "(b)"}
        {"index": 3, "question": "?", "options": "(a) x (b) y", "answer": "(a)"}
        {"index": 4, "question": "?", "options": "(a) x (b) y", "answer": "(b)"}"#;
    let found =
        results("mmvp", questions, &[("1", Some("(a)")), ("2", Some("(b)")), ("3", Some("A")), ("4", Some("x"))]);
    assert_eq!((measure(&found, "overall", "pair accuracy"), measure(&found, "overall", "accuracy")), (0.5, 0.75));
}

#[test]
fn documents_charts_and_captions_have_graded_scores() {
    let doc = r#"{"questionId": 1, "question": "?", "answers": ["Paris", "paris, france"]}"#;
    assert_eq!(measure(&results("docvqa", doc, &[("1", Some("Pari"))]), "overall", "ANLS"), 0.8);
    let chart = r#"{"index": 1, "query": "?", "label": ["100"]}"#;
    assert_eq!(measure(&results("chartqa", chart, &[("1", Some("104"))]), "overall", "relaxed accuracy"), 1.0);
    let captions = r#"{"image_id": 1, "index": 1, "question": "", "answer": ["a red cat", "the cat"]}
        {"image_id": 2, "index": 2, "question": "", "answer": ["a blue dog runs fast"]}"#;
    let found = results("coco", captions, &[("1", Some("A red cat.")), ("2", Some("a blue dog runs fast"))]);
    assert!(measure(&found, "overall", "BLEU-1") > 0.99 && measure(&found, "overall", "CIDEr-D") > 5.0);
    assert_eq!(found.scores[1].score, found.units[1].1);
}

#[test]
fn questions_without_a_prediction_are_left_out() {
    let questions =
        "{\"question\": \"a?\", \"answer\": \"b\", \"id\": 1}\n{\"question\": \"c?\", \"answer\": \"d\", \"id\": 2}\n";
    let found = results("gqa", questions, &[("2", Some("D."))]);
    assert_eq!((found.scores.len(), found.scores[0].question, measure(&found, "overall", "accuracy")), (1, 1, 1.0));
}

#[test]
fn rotations_and_pairs_that_are_answered_in_part_are_left_out() {
    let questions = r#"{"index": 1, "question": "?", "A": "x", "B": "y", "answer": "A"}
        {"index": 2, "question": "?", "A": "x", "B": "y", "answer": "B"}"#;
    let found = results("mmbench", questions, &[("1", Some("A")), ("2", Some("B")), ("1000002", Some("B"))]);
    assert_eq!((measure(&found, "overall", "circular accuracy"), found.units.len()), (0.0, 1));
    assert_eq!(found.problems["others of their pair or rotations have no prediction, not scored"], 1);
}

#[test]
fn a_category_may_be_called_overall_and_nothing_scored_has_no_measure() {
    let questions = "{\"question\": \"a?\", \"answer\": \"b\", \"id\": 1, \"category\": \"overall\"}";
    let found = results("mmstar", questions, &[("1", Some("b"))]);
    let categories = Vec::from_iter(found.rows.iter().map(|row| row.category.as_str()));
    assert_eq!(categories, ["overall", "overall (category)"]);
    assert!(results("gqa", "{\"question\": \"a?\", \"id\": 1}", &[("1", Some("b"))]).rows.is_empty());
}

#[test]
fn questions_without_a_right_answer_are_counted_and_not_scored() {
    let questions = "{\"question\": \"a?\", \"id\": 1}\n{\"question\": \"c?\", \"answer\": \"d\", \"id\": 2}\n";
    let found = results("gqa", questions, &[("1", Some("x")), ("2", Some("d"))]);
    assert_eq!((found.scores.len(), measure(&found, "overall", "accuracy")), (1, 1.0));
    assert_eq!(found.problems["no right answer is known, not scored"], 1);
}

#[test]
fn labels_that_are_neither_yes_nor_no_are_counted_and_not_scored() {
    let questions = r#"{"question_id": 1, "question": "?", "label": "yes"}
        {"question_id": 2, "question": "?", "label": "maybe"}"#;
    let found = results("pope", questions, &[("1", Some("yes")), ("2", Some("yes"))]);
    assert_eq!((found.scores.len(), measure(&found, "overall", "accuracy")), (1, 1.0));
    assert_eq!(found.problems["the right answer is neither yes nor no, not scored"], 1);
}

#[test]
fn a_single_letter_may_be_an_open_answer() {
    let questions = r#"{"id": 1, "question": "?", "question_type": "open", "answer": "A"}
        {"id": 2, "question": "?", "question_type": "multiple-choice", "answer": "A"}
        {"id": 3, "question": "?", "answer": "Z"}"#;
    let given = "It is red. The answer is A. Then I saw 1,200.";
    let found = results("mmmu", questions, &[("1", Some(given)), ("2", Some(given)), ("3", Some("The answer is: Z"))]);
    assert_eq!(Vec::from_iter(found.scores.iter().map(|score| score.score)), [0.0, 1.0, 1.0]);
}

#[test]
fn a_model_that_names_the_letter_in_a_sentence_is_right_for_every_rotation() {
    let questions = r#"{"index": 1, "question": "?", "A": "x", "B": "y", "C": "z", "answer": "B"}"#;
    let sentence = |letter: &str| format!("The correct option is {letter}.");
    let [first, second, third] = ["B", "C", "A"].map(sentence);
    let answers = [("1", Some(&*first)), ("1000001", Some(&*second)), ("2000001", Some(&*third))];
    assert_eq!(measure(&results("mmbench", questions, &answers), "overall", "circular accuracy"), 1.0);
}
