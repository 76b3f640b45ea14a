//! The two-stage trainer.

pub mod checkpoint;
mod collate;
mod connector;
mod eval_samples;
mod export;
mod init;
pub mod metrics;
mod objectives;
pub mod plot;
pub mod progress;
mod recipe;
mod run;
mod stage;
pub mod tensorboard;
mod trainer;

pub use objectives::{Contrastive, Counts, Distillation, DistillationWeights, Language, Loss, NextToken, Objective};
pub use recipe::{
    ConnectorStart, DataConfig, DataLayout, DataSource, FloatType, Inherit, Recipe, RunConfig, Stage, UpdateConfig,
};
pub use run::{Evaluation, Facts, Run};
pub use trainer::{GradientReducer, SingleProcess, StepReport, Trainer, UpdateRule, on_large_stack};
