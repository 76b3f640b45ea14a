//! Categories that the scores of a benchmark are reported by.

use super::Benchmark;
use super::row::FieldsOf;

/// Names of SEED-Bench's dimensions from 1; files have a number.
const DIMENSIONS: [&str; 12] = [
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
];
/// Splits that MMMU's ids begin with.
const SPLITS: [&str; 3] = ["dev", "validation", "test"];

/// The categories of a question.
pub(super) fn categories(benchmark: &Benchmark, fields: &FieldsOf<'_>, id: &str) -> Vec<String> {
    let first = |names: &[&str]| fields.text(names);
    let (category, upper) = (first(&["category", "subfield", "answer_type"]), first(&["l2-category"]));
    let found = match benchmark.name {
        "chartqa" => vec![first(&["human_or_machine"]).map(origin).or_else(|| first(&["type", "split"]))],
        "docvqa" => return fields.texts(&["question_types", "category"]),
        "gqa" => vec![fields.inner("types", "structural").or(category), upper],
        "mmmu" => vec![category, upper, subject(id), first(&["split"])],
        "scienceqa" => vec![first(&["subject"]).or(category), upper, first(&["grade"])],
        "seedbench" => vec![category.or_else(|| first(&["question_type_id"]).map(dimension))],
        _ => vec![category.or_else(|| first(&["question_type"])), upper],
    };
    found.into_iter().flatten().collect()
}

/// Who wrote a question of ChartQA, which the Hub has as a number.
fn origin(code: String) -> String {
    match code.as_str() {
        "0" => "human".into(),
        "1" => "machine".into(),
        _ => code,
    }
}

fn dimension(number: String) -> String {
    let at = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    at.and_then(|at| DIMENSIONS.get(at)).map_or(number, |name| (*name).to_owned())
}

/// `Art_Theory` of `validation_Art_Theory_7`.
fn subject(id: &str) -> Option<String> {
    let (split, rest) = id.split_once('_')?;
    let (subject, number) = rest.rsplit_once('_')?;
    (SPLITS.contains(&split) && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| subject.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(benchmark: &str, row: Value) -> Vec<String> {
        let fields = FieldsOf::new(row.as_object().unwrap(), false);
        let id = row["id"].as_str().unwrap_or_default();
        categories(Benchmark::named(benchmark).unwrap(), &fields, id)
    }

    #[test]
    fn every_benchmark_has_its_own() {
        for (benchmark, row, expected) in [
            ("mmstar", json!({"category": "math", "l2_category": "geometry"}), vec!["math", "geometry"]),
            ("vqav2", json!({"answer_type": "number", "question_type": "how many"}), vec!["number"]),
            ("gqa", json!({"types": {"structural": "verify"}}), vec!["verify"]),
            ("chartqa", json!({"human_or_machine": 0}), vec!["human"]),
            ("chartqa", json!({"type": "augmented_test"}), vec!["augmented_test"]),
            ("docvqa", json!({"question_types": ["form", "layout"]}), vec!["form", "layout"]),
            (
                "mmmu",
                json!({"id": "validation_Art_Theory_7", "subfield": "Art", "question_type": "open"}),
                vec!["Art", "Art_Theory"],
            ),
            ("mmmu", json!({"id": "5", "category": "Music", "split": "dev"}), vec!["Music", "dev"]),
            (
                "scienceqa",
                json!({"subject": "social science", "grade": "grade2", "category": "Maps"}),
                vec!["social science", "grade2"],
            ),
            ("seedbench", json!({"question_type_id": 3}), vec!["Instance Attributes"]),
            ("seedbench", json!({"question_type_id": 99}), vec!["99"]),
        ] {
            assert_eq!(of(benchmark, row.clone()), expected, "{benchmark} {row}");
        }
    }
}
