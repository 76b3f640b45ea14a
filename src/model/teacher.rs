//! Frozen teachers of stage 1.

use candle_core::Tensor;

use super::ClipVision;
use crate::{Error, Result};

/// Something that knows what each patch of a picture shows.
///
/// Features never carry a gradient.
pub trait VisionTeacher: Send + Sync {
    /// Width of the features.
    fn width(&self) -> usize;

    /// Side of the square tiles it reads, in pixels, and of their patches.
    fn tile_and_patch(&self) -> (usize, usize);

    /// Pixels (tiles, 3, side, side) to features (tiles, patches, width), detached.
    ///
    /// # Errors
    /// If the pixels have another shape.
    fn features(&self, pixel_values: &Tensor) -> Result<Tensor>;
}

/// The patch tokens of one hidden state of a CLIP vision transformer.
#[derive(Debug, Clone)]
pub struct ClipTeacher {
    clip: ClipVision,
    /// Number of layers to run.
    layers: usize,
}

impl ClipTeacher {
    /// Uses the hidden state after layer `layer`, counted from the end if negative: -1 is the last one before the
    /// final norm, -2 the one LLaVA uses.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such layer.
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
        (self.clip.config().image_size, self.clip.config().patch_size)
    }

    fn features(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let mut states = self.clip.hidden_states(&pixel_values.detach(), self.layers)?;
        let last = states.pop().ok_or_else(|| Error::batch("the teacher computed nothing"))?;
        Ok(last.narrow(1, 1, last.dim(1)? - 1)?.contiguous()?.detach())
    }
}
