//! Evaluation: accuracy of answers, and divergence between the predictions of two models.

mod accuracy;
mod answers;
mod divergence;

pub use accuracy::{Accuracy, CommonestAnswers, Tally};
pub use answers::{answers_match, normalise_answer};
pub use divergence::Divergence;
