//! The two-stage trainer.

pub mod checkpoint;
mod connector;
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
mod shown;
mod stage;
mod start;
pub mod tensorboard;
mod trainer;

pub use contrastive::Contrastive;
pub use distillation::{Distillation, DistillationWeights};
pub use language::Language;
pub use next_token::NextToken;
pub use objective::{Counts, Loss, Objective};
pub use recipe::{
    ConnectorStart, DataConfig, DataLayout, DataSource, FloatType, Inherit, Recipe, RunConfig, Stage, UpdateConfig,
};
pub use run::{Evaluation, Facts, Run};
pub use trainer::{GradientReducer, SingleProcess, StepReport, Trainer, UpdateRule, on_large_stack};
