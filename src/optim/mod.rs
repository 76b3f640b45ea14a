//! The optimizer, its schedule, and gradient clipping.
//!
//! All functions identify parameters by *name*: [`Gradients`] are collected from a backward pass, measured by
//! [`global_norm`], and applied by [`AdamW`] with the clip and the loss normalisation folded into the step.

mod adamw;
mod config;
mod grad_clip;
mod gradients;
mod groups;
mod param_state;
mod schedule;
mod shards;

pub use adamw::AdamW;
pub use config::AdamWConfig;
pub use grad_clip::{clip_scale, global_norm, squared_norm};
pub use gradients::Gradients;
pub use groups::{ParamGroup, glob_matches, trainable, undecayed_groups};
pub use schedule::{Decay, Schedule};
pub use shards::Shards;
