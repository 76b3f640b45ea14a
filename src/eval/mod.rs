//! Evaluation: benchmarks and their metrics, accuracy of answers, and divergence between the predictions of two models.

mod accuracy;
mod answer_scores;
mod answers;
pub mod benchmark;
mod divergence;
pub mod metrics;

pub use accuracy::{Accuracy, CommonestAnswers, Tally};
pub use answer_scores::{AnswerScore, AnswerScores};
pub use answers::{answers_match, commonest_answer, normalise_answer};
pub use divergence::Divergence;
