//! Batches: what a processor or data loader produces and a model consumes. They hold token ids, images and videos, and
//! the layout of samples.

mod chunks;
mod layout;
mod multimodal_batch;
mod sequence;
mod visual;

pub use layout::{Sample, SequenceLayout};
pub use multimodal_batch::MultimodalBatch;
pub use sequence::Sequence;
pub use visual::Visual;

use crate::Error;
use crate::config::VisionConfig;

/// Label of a position that does not count in the loss; candle's gathers skip this value.
pub const IGNORE_INDEX: u32 = u32::MAX;

/// Side on which the shorter rows of a batch are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaddingSide {
    /// Before the tokens, as generation needs.
    Left,
    /// After the tokens, as in training.
    Right,
}

/// Model parameters that batching needs.
#[derive(Debug, Clone, Copy)]
pub struct BatchSpec<'a> {
    /// Tiles and patches.
    pub vision: &'a VisionConfig,
    /// Placeholder id of images.
    pub image_token: u32,
    /// Placeholder id of videos.
    pub video_token: u32,
    /// Longest allowed row.
    pub max_len: usize,
}

impl<'a> BatchSpec<'a> {
    /// The spec of a model.
    pub fn new(config: &'a crate::config::HaploVlConfig) -> Self {
        Self {
            vision: &config.vision,
            image_token: config.image_token_index,
            video_token: config.video_token_index,
            max_len: config.max_position_embeddings,
        }
    }
}

/// The error of a prompt that does not fit the model's context.
pub(crate) fn too_long(length: usize, context: usize) -> Error {
    Error::prompt(format!(
        "is {length} tokens long (text and image patches together), more than the model's context of {context}: \
         shorten it, or use fewer or smaller images"
    ))
}
