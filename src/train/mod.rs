//! Training: recipes, the training loop and its observers, objectives, checkpoints.
//!
//! A [`Recipe`] describes a run, [`Run`] builds and trains it, [`TrainObserver`]s watch it.
//!
//! ```no_run
//! use haplovl::train::{Outcome, Recipe, Run};
//!
//! let recipe = Recipe::read("recipes/shapes/quick.toml", &["update.steps=100".into()])?;
//! let mut run = Run::new(recipe, candle_core::Device::Cpu)?.with_default_observers();
//! if let Outcome::Finished { export } = run.train(false)? {
//!     println!("the model is in {}", export.display());
//! }
//! # Ok::<(), haplovl::Error>(())
//! ```

mod adapted;
mod buckets;
pub mod checkpoint;
mod collate;
mod connector;
mod data_facts;
mod dataset;
mod evaluation;
mod export;
mod facts;
mod finished;
mod init;
mod large_stack;
mod memory;
pub mod metrics;
mod objectives;
mod observer;
pub mod observers;
mod outcome;
mod parameter_groups;
pub mod plot;
mod recipe;
mod reduction;
mod resume;
mod run;
mod run_folder;
mod run_length;
mod scaling;
mod stage;
pub mod tensorboard;
mod trainer;
mod training_loop;
mod vocabulary;

pub use data_facts::{DataFacts, SourceFacts};
pub use evaluation::{EvalSample, Evaluation};
pub use facts::Facts;
pub use finished::FinishedRun;
pub use large_stack::on_large_stack;
pub use objectives::{
    Contrastive, Counts, Distillation, DistillationWeights, Language, Loss, NextToken, Objective, labelled_tail,
    next_token_counts, next_token_loss,
};
pub use observer::{Measures, RunStart, SkippedSample, TrainObserver};
pub use outcome::{DataReport, Outcome};
pub use recipe::{
    AdapterConfig, ConnectorStart, DataConfig, DataLayout, DataSource, FloatType, InitFrom, Recipe, RunConfig, Stage,
    Targets, TokenizerConfig, TrainSource, UpdateConfig,
};
pub use resume::CheckpointChoice;
pub use run::Run;
pub use scaling::Scaling;
pub(crate) use stage::open_llm;
pub use trainer::{StepReport, Trainer, UpdateRule};
pub(crate) use vocabulary::adopt_processor;
