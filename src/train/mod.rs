//! The two-stage trainer.

pub mod checkpoint;
pub mod metrics;
pub mod plot;
pub mod progress;
pub mod tensorboard;
