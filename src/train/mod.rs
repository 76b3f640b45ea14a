//! The two-stage trainer.

pub mod checkpoint;
mod contrastive;
mod distillation;
mod export;
mod language;
pub mod metrics;
mod next_token;
mod objective;
pub mod plot;
pub mod progress;
mod recipe;
mod run;
mod samples;
mod stage;
pub mod tensorboard;
mod trainer;

pub use contrastive::Contrastive;
pub use distillation::{Distillation, DistillationWeights};
pub use language::Language;
pub use next_token::NextToken;
pub use objective::{Counts, Loss, Objective};
pub use recipe::{ComputeDtype, DataConfig, DataLayout, DataSource, Inherit, Recipe, RunConfig, Stage, UpdateConfig};
pub use run::{Facts, Run};
pub use trainer::{GradientReducer, SingleProcess, StepReport, Trainer, UpdateRule, on_large_stack};
