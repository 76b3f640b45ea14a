//! The optimizer, its schedule, and gradient clipping.
//!
//! Everything here works on parameters by *name*: [`Gradients`] are collected from a backward pass, measured by
//! [`global_norm`], and applied by [`AdamW`] with the clip and the loss normalisation folded into the step.

mod adamw;
mod clip;
mod config;
mod gradients;
mod groups;
mod schedule;
pub(crate) mod slices;
mod slot;

pub use adamw::AdamW;
pub use clip::{clip_scale, global_norm};
pub use config::AdamWConfig;
pub use gradients::Gradients;
pub use groups::{ParamGroup, glob_matches, trainable, undecayed_groups};
pub use schedule::{Decay, Schedule};
