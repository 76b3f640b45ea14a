//! The optimizer, its schedule, and gradient clipping.
//!
//! Everything here works on parameters by *name*: [`Gradients`] are collected from a backward pass, measured by
//! [`global_norm`], and applied by [`AdamW`] with the clip and the loss normalisation folded into the step.

mod adamw;
mod clip;
mod gradients;
mod groups;
mod schedule;
mod slices;

pub use adamw::{AdamW, AdamWConfig};
pub use clip::{clip_scale, global_norm};
pub use gradients::Gradients;
pub use groups::{ParamGroup, glob_matches};
pub use schedule::{Decay, Schedule};
