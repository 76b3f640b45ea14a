//! Pixel normalisation of SigLIP against that of CLIP.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::config::{CLIP_MEAN, CLIP_STD};

/// Mean and standard deviation of pixels for SigLIP, of every channel.
const SIGLIP: f64 = 0.5;

/// Change of the normalisation of pixels: `x * scale + shift` in each channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PixelNorm {
    scale: [f64; 3],
    shift: [f64; 3],
}

impl PixelNorm {
    /// Pixels as SigLIP takes them, from pixels normalised as for CLIP.
    pub(crate) fn siglip_of_clip() -> Self {
        Self { scale: CLIP_STD.map(|std| std / SIGLIP), shift: CLIP_MEAN.map(|mean| (mean - SIGLIP) / SIGLIP) }
    }

    /// Converts (tiles, 3, height, width).
    ///
    /// # Errors
    /// If `pixels` has another shape.
    pub(crate) fn convert(&self, pixels: &Tensor) -> Result<Tensor> {
        let channels = |values: [f64; 3]| channels(values, pixels.device())?.to_dtype(pixels.dtype());
        Ok(pixels.broadcast_mul(&channels(self.scale)?)?.broadcast_add(&channels(self.shift)?)?)
    }

    /// Patch projection (width, 3, patch, patch), f32, that takes pixels before the change, and its bias (width).
    ///
    /// # Errors
    /// If `weight` has another shape.
    pub(crate) fn fold(&self, weight: &Tensor) -> Result<(Tensor, Tensor)> {
        let bias = weight.broadcast_mul(&channels(self.shift, weight.device())?)?.flatten_from(1)?.sum(1)?;
        Ok((weight.broadcast_mul(&channels(self.scale, weight.device())?)?, bias))
    }
}

fn channels(values: [f64; 3], device: &Device) -> candle_core::Result<Tensor> {
    Tensor::new(&values.map(|value| value as f32), device)?.reshape((1, 3, 1, 1))
}
