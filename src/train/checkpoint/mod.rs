//! Training checkpoints: folders that are whole, or refused.
//!
//! `step-00000050/` holds `parameters.safetensors`, `optimizer.safetensors` and `state.json`, which states the size and
//! checksum of the other two. A checkpoint is written under another name, flushed to the disk, and renamed at last, so
//! that a process may be killed at any moment: what bears the name of a step is complete. Whatever damages it later is
//! noticed when it is opened.

mod manager;
mod manifest;
mod reader;

pub use manager::{CheckpointManager, Contents, Latest};
pub use reader::Checkpoint;
