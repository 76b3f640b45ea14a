//! Metrics of public benchmarks, as their own scorers define them.
//!
//! Each function scores one answer; [`Measure`] puts the scores of a test set together, with bootstrap intervals, and
//! [`compare`] tests whether two models differ.
//!
//! | benchmark | metric |
//! |---|---|
//! | VQAv2, OK-VQA | [`vqa_accuracy`] |
//! | TextVQA | [`text_vqa_accuracy`] |
//! | GQA | [`exact_match`] |
//! | ScienceQA, AI2D, MMBench, MMStar, MMMU, SEED-Bench, RealWorldQA, MMVP | [`Choice::find`] |
//! | MMMU, open questions | [`open_match`] |
//! | POPE | [`YesNo::of_answer`], [`YesNoCounts`] |
//! | DocVQA | [`anls`] |
//! | ChartQA | [`relaxed_match`] |
//! | COCO captions | [`score_captions`] |
//!
//! ```
//! use haplovl::eval::metrics::{anls, relaxed_match, vqa_accuracy};
//!
//! let ten = ["yes", "yes", "yes", "no", "no", "no", "no", "no", "no", "maybe"];
//! assert_eq!(vqa_accuracy("Yes.", &ten), 0.9);
//! assert_eq!(anls("Pari", &["Paris"]), 0.8);
//! assert!(relaxed_match("10.4", "10") && !relaxed_match("10.6", "10"));
//! ```

mod anls;
mod bleu;
mod captions;
mod choice;
mod cider;
mod compare;
mod contractions;
mod exact_match;
mod measure;
mod ngrams;
mod open_answer;
mod ptb_tokenizer;
mod python_text;
mod relaxed;
mod rouge;
mod vqa;
mod yes_no;

pub use anls::anls;
pub use bleu::{BleuCounts, bleu};
pub use captions::{CaptionScores, score_captions};
pub use choice::{Choice, MAX_OPTIONS};
pub use cider::CiderScorer;
pub use compare::{Comparison, Test, compare};
pub use exact_match::exact_match;
pub use measure::{Interval, Measure};
pub use open_answer::open_match;
pub use ptb_tokenizer::{tokenize_caption, tokenize_captions};
pub use relaxed::relaxed_match;
pub use rouge::rouge_l;
pub use vqa::{normalise_text_vqa_answer, normalise_vqa_answer, text_vqa_accuracy, vqa_accuracy};
pub use yes_no::{YesNo, YesNoCounts};
