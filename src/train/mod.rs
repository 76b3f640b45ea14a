//! The two-stage trainer.

pub mod checkpoint;
mod contrastive;
mod distillation;
mod language;
pub mod metrics;
mod next_token;
mod objective;
pub mod plot;
pub mod progress;
pub mod tensorboard;
mod trainer;

pub use contrastive::Contrastive;
pub use distillation::{Distillation, DistillationWeights};
pub use language::Language;
pub use next_token::NextToken;
pub use objective::{Counts, Loss, Objective};
pub use trainer::{GradientReducer, SingleProcess, StepReport, Trainer, UpdateRule, on_large_stack};
