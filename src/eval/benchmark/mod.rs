//! Public benchmarks: their files, their questions, and the scores of a model's answers.
//!
//! ```no_run
//! use haplovl::eval::benchmark::{Benchmark, QuestionSet, Results, read_predictions};
//!
//! # fn main() -> haplovl::Result<()> {
//! let questions = QuestionSet::open(Benchmark::named("pope")?, "data/pope".as_ref(), None)?;
//! let predictions = read_predictions("answers.jsonl".as_ref())?;
//! let results = Results::of(&questions, &questions.matched(&predictions)?);
//! for row in &results.rows {
//!     println!("{} {}: {:.4}", row.category, row.measure.name(), row.measure.value());
//! }
//! # Ok(())
//! # }
//! ```

mod categories;
mod circular;
mod containers;
mod files;
mod matching;
mod predictions;
mod python_list;
mod question;
mod question_set;
mod row;
mod score;
mod sheet;

pub use predictions::{Prediction, llava_answer, read_predictions};
pub use question::Question;
pub use question_set::QuestionSet;
pub use score::{QuestionScore, Results, Row};
pub use sheet::write_sheet;

use crate::{Error, Result};

/// A public benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Benchmark {
    /// Name on the command line.
    pub name: &'static str,
    /// Name in tables.
    pub title: &'static str,
    /// How answers are scored.
    pub metric: Metric,
    /// Files as they are published, beside VLMEvalKit's TSV and the Hub's Parquet.
    pub files: &'static str,
    /// Where they are published.
    pub published: &'static str,
}

/// How answers are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metric {
    /// [`vqa_accuracy`](super::metrics::vqa_accuracy).
    VqaAccuracy,
    /// [`text_vqa_accuracy`](super::metrics::text_vqa_accuracy).
    TextVqaAccuracy,
    /// [`exact_match`](super::metrics::exact_match).
    ExactMatch,
    /// Match after [`normalise_answer`](super::normalise_answer).
    AnswersMatch,
    /// The letter of an option, see [`Choice`](super::metrics::Choice).
    Choice,
    /// The letter of an option; a question counts only if it is right for every rotation of the options.
    CircularChoice,
    /// The letter of an option; a pair of questions counts only if both are right.
    ChoicePairs,
    /// Yes or no, see [`YesNoCounts`](super::metrics::YesNoCounts).
    YesNo,
    /// [`anls`](super::metrics::anls).
    Anls,
    /// [`relaxed_match`](super::metrics::relaxed_match).
    RelaxedAccuracy,
    /// CIDEr-D, BLEU and ROUGE-L, see [`score_captions`](super::metrics::score_captions).
    Captions,
}

/// A benchmark's row of the table.
const fn of(
    name: &'static str,
    title: &'static str,
    metric: Metric,
    files: &'static str,
    published: &'static str,
) -> Benchmark {
    Benchmark { name, title, metric, files, published }
}

impl Benchmark {
    /// All benchmarks.
    pub const ALL: [Self; 17] = [
        of("vqav2", "VQAv2", Metric::VqaAccuracy, "v2_*_questions.json and v2_*_annotations.json", "visualqa.org"),
        of("okvqa", "OK-VQA", Metric::VqaAccuracy, "*_questions.json and *_annotations.json", "okvqa.allenai.org"),
        of("textvqa", "TextVQA", Metric::TextVqaAccuracy, "TextVQA_0.5.1_val.json", "textvqa.org"),
        of("gqa", "GQA", Metric::ExactMatch, "testdev_balanced_questions.json", "the GQA page of cs.stanford.edu"),
        of("scienceqa", "ScienceQA", Metric::Choice, "problems.json", "scienceqa.github.io"),
        of("ai2d", "AI2D", Metric::Choice, "AI2D_TEST.tsv", "the diagrams page of allenai.org"),
        of("mmbench", "MMBench", Metric::CircularChoice, "MMBench_DEV_EN.tsv", "github.com/open-compass/MMBench"),
        of("mmstar", "MMStar", Metric::Choice, "MMStar.tsv", "mmstar-benchmark.github.io"),
        of("mmmu", "MMMU", Metric::Choice, "MMMU_DEV_VAL.tsv", "mmmu-benchmark.github.io"),
        of("seedbench", "SEED-Bench", Metric::Choice, "SEED-Bench.json", "github.com/AILab-CVC/SEED-Bench"),
        of("realworldqa", "RealWorldQA", Metric::Choice, "RealWorldQA.tsv", "x.ai"),
        of("pope", "POPE", Metric::YesNo, "coco_pope_{random,popular,adversarial}.json", "github.com/RUCAIBox/POPE"),
        of("mmvp", "MMVP", Metric::ChoicePairs, "Questions.csv", "the MMVP data set of its authors"),
        of("docvqa", "DocVQA", Metric::Anls, "val_v1.0_withQT.json", "docvqa.org"),
        of(
            "chartqa",
            "ChartQA",
            Metric::RelaxedAccuracy,
            "test_human.json and test_augmented.json",
            "github.com/vis-nlp/ChartQA",
        ),
        of("coco", "COCO captions", Metric::Captions, "captions_val2014.json", "cocodataset.org"),
        of("shapes", "shapes world", Metric::AnswersMatch, "no file", "this crate"),
    ];

    /// The benchmark of this name, in any case.
    ///
    /// # Errors
    /// [`Error::Config`] that lists all names.
    pub fn named(name: &str) -> Result<&'static Self> {
        let found = Self::ALL.iter().find(|benchmark| benchmark.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names = Vec::from_iter(Self::ALL.iter().map(|benchmark| benchmark.name)).join(", ");
            Error::config("benchmark", format!("is `{name}`, expected one of {names}"))
        })
    }
}

impl Metric {
    /// What is asked of the model behind a question, so that its answers have the form that is scored.
    pub fn instruction(self) -> &'static str {
        match self {
            Self::Choice | Self::CircularChoice | Self::ChoicePairs => {
                "Answer with the option's letter from the given choices directly."
            }
            Self::AnswersMatch | Self::Captions => "",
            _ => "Answer the question using a single word or phrase.",
        }
    }

    /// Whether a question has options.
    pub fn is_choice(self) -> bool {
        matches!(self, Self::Choice | Self::CircularChoice | Self::ChoicePairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmarks_are_found_by_name() {
        assert_eq!(Benchmark::named("POPE").unwrap().metric, Metric::YesNo);
        let message = Benchmark::named("popes").unwrap_err().to_string();
        assert!(message.contains("`popes`, expected one of vqav2") && message.contains("shapes"), "{message}");
    }
}
