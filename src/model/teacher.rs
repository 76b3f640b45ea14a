//! Frozen vision teachers of stage 1.

use candle_core::Tensor;

use super::ClipVision;
use crate::weights::{PixelNorm, VisionFamily};
use crate::{Error, Result};

/// Frozen vision model that computes a feature vector for each image patch.
///
/// Features are detached: they never carry a gradient.
pub trait VisionTeacher: Send + Sync {
    /// Returns the width of the features.
    fn width(&self) -> usize;

    /// Returns the side of the square input tiles and the side of their patches, both in pixels.
    fn tile_and_patch(&self) -> (usize, usize);

    /// Computes features from pixels.
    ///
    /// # Shapes
    /// `pixel_values` (tiles, 3, side, side) -> (tiles, patches, width), detached.
    ///
    /// # Errors
    /// If `pixel_values` has another shape.
    fn features(&self, pixel_values: &Tensor) -> Result<Tensor>;
}

/// Vision teacher that returns the patch tokens of one hidden state of a CLIP or SigLIP vision transformer.
///
/// Pixels are normalised as for CLIP; a SigLIP gets them converted to its own normalisation.
#[derive(Debug, Clone)]
pub struct ClipTeacher {
    clip: ClipVision,
    /// Number of layers that run.
    layers: usize,
}

impl ClipTeacher {
    /// Uses hidden state `layer`: 0 is the input of the first layer, n the output of layer n. Negative values count
    /// from the end: -1 is the output of the last layer (before the final norm), -2 the hidden state that LLaVA uses.
    ///
    /// # Errors
    /// [`Error::Config`] if CLIP has no such hidden state.
    pub fn new(clip: ClipVision, layer: isize) -> Result<Self> {
        let all = clip.config().decoder.num_hidden_layers;
        let layers = if layer < 0 { (all + 1).checked_add_signed(layer) } else { usize::try_from(layer).ok() };
        match layers.filter(|&layers| layers <= all) {
            Some(layers) => Ok(Self { clip, layers }),
            None => Err(Error::config("teacher.layer", format!("is {layer}, expected -{} to {all}", all + 1))),
        }
    }
}

impl VisionTeacher for ClipTeacher {
    fn width(&self) -> usize {
        self.clip.config().decoder.hidden_size
    }

    fn tile_and_patch(&self) -> (usize, usize) {
        (self.clip.config().side_of_patches(), self.clip.config().patch_size)
    }

    fn features(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixel_values = match self.clip.config().family {
            VisionFamily::Siglip => PixelNorm::siglip_of_clip().convert(&pixel_values.detach())?,
            _ => pixel_values.detach(),
        };
        let mut states = self.clip.hidden_states(&pixel_values, self.layers)?;
        let last = states.pop().ok_or_else(|| Error::batch("the vision teacher returned no hidden state"))?;
        Ok(self.clip.patches_of(&last)?.detach())
    }
}
