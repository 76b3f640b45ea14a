//! Training checkpoints: folders that are verified before use.
//!
//! `step-00000050/` holds `parameters.safetensors`, `optimizer.safetensors` and `state.json`, which states the size and
//! checksum of the other two. A run on several ranks has one `optimizer-00001-of-00004.safetensors` for each, with the state
//! of the parameters that the rank owns; any number of ranks can resume from it. A checkpoint is written to a temporary folder, synced to disk, and then renamed, so that
//! the process may be killed at any moment: a folder with the name of a step is complete. Later damage is detected when
//! the checkpoint is opened.

mod manager;
mod manifest;
mod reader;

pub use manager::{CheckpointManager, Contents, Latest};
pub use reader::Checkpoint;
