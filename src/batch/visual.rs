//! Preprocessed images and videos, the input of a model.

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::config::VisionConfig;
use crate::patch_grid::{PatchGrid, Size, video_tokens};

/// Preprocessed image or video.
#[derive(Debug, Clone)]
pub enum Visual {
    /// An image cut into tiles.
    Image {
        /// Normalised pixels, `(tiles, 3, image_size, image_size)` in reading order.
        pixel_values: Tensor,
        /// Size of the image in pixels before any resizing; decides the patch grid.
        size: Size,
    },
    /// A video of evenly sampled frames.
    Video {
        /// Normalised pixels, `(frames, 3, image_size, image_size)`.
        pixel_values: Tensor,
    },
}

impl Visual {
    /// Number of tokens that the image or video takes in a sequence.
    ///
    /// # Errors
    /// The errors of [`PatchGrid::new`].
    pub fn tokens(&self, config: &VisionConfig) -> Result<usize> {
        match self {
            Self::Image { size, .. } => Ok(PatchGrid::new(config, *size)?.tokens()),
            Self::Video { pixel_values } => Ok(video_tokens(config, pixel_values.dim(0)?)),
        }
    }

    /// Number of tokens that hold a patch, without newlines.
    ///
    /// # Errors
    /// The errors of [`PatchGrid::new`].
    pub fn patches(&self, config: &VisionConfig) -> Result<usize> {
        match self {
            Self::Image { size, .. } => Ok(PatchGrid::new(config, *size)?.rows_cols.area()),
            Self::Video { pixel_values } => Ok(pixel_values.dim(0)? * config.patches_per_tile()),
        }
    }

    /// Lengths of the attention blocks: one block for an image; one per frame and one for the newline of a video.
    ///
    /// # Errors
    /// The errors of [`Self::tokens`].
    pub fn blocks(&self, config: &VisionConfig) -> Result<Vec<usize>> {
        match self {
            Self::Image { .. } => Ok(vec![self.tokens(config)?]),
            Self::Video { pixel_values } => {
                let mut blocks = vec![config.patches_per_tile(); pixel_values.dim(0)?];
                blocks.extend(config.image_newline.then_some(1));
                Ok(blocks)
            }
        }
    }

    /// The placeholder id of the image or video in a prompt.
    pub fn placeholder(&self, image_token: u32, video_token: u32) -> u32 {
        match self {
            Self::Image { .. } => image_token,
            Self::Video { .. } => video_token,
        }
    }

    /// The normalised pixels, `(tiles or frames, 3, image_size, image_size)`.
    pub fn pixel_values(&self) -> &Tensor {
        match self {
            Self::Image { pixel_values, .. } | Self::Video { pixel_values } => pixel_values,
        }
    }

    /// The same pixels on another device.
    pub(super) fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(self.with_pixel_values(self.pixel_values().to_device(device)?))
    }

    /// The same pixels in another dtype.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(self.with_pixel_values(self.pixel_values().to_dtype(dtype)?))
    }

    fn with_pixel_values(&self, pixel_values: Tensor) -> Self {
        match self {
            Self::Image { size, .. } => Self::Image { pixel_values, size: *size },
            Self::Video { .. } => Self::Video { pixel_values },
        }
    }
}
