//! Patch embedding: pixels to patches.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{ParameterSlot, ParameterVisitor, init, ops};
use crate::{Error, Result};

/// Linear map of square patches, without bias: the convolution of the ViT, as a matmul.
#[derive(Debug, Clone)]
pub struct PatchEmbedding {
    /// Weight, (hidden_size, 3, patch_size, patch_size).
    weight: Tensor,
    patch_size: usize,
}

impl PatchEmbedding {
    /// Reads `weight` (hidden_size, 3, patch_size, patch_size).
    ///
    /// # Errors
    /// [`Error::Config`] for patches of 0 pixels, or if `vb` lacks the tensor, or the tensor has another shape.
    pub fn new(hidden_size: usize, patch_size: usize, vb: VarBuilder) -> Result<Self> {
        if patch_size == 0 {
            return Err(Error::config("patch_size", "is 0, expected at least 1"));
        }
        let init = init(patch_size.saturating_mul(patch_size).saturating_mul(3));
        let weight = vb.get_with_hints((hidden_size, 3, patch_size, patch_size), "weight", init)?;
        Ok(Self { weight, patch_size })
    }

    /// Visits the weight, `name` being this module's name in the checkpoint.
    pub fn visit_parameters(&mut self, name: &str, visit: &mut ParameterVisitor<'_>) {
        visit(&format!("{name}.weight"), ParameterSlot::Tensor(&mut self.weight));
    }

    /// Embeds (tiles, 3, height, width) -> (tiles, patches in reading order, hidden_size).
    ///
    /// # Errors
    /// If the pixels have another shape, or a side is not a multiple of the patch size.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let patches = cut_patches(&pixel_values.to_dtype(self.weight.dtype())?, self.patch_size)?;
        Ok(ops::linear(&patches, &self.weight.flatten_from(1)?, None)?)
    }
}

/// Cuts (tiles, 3, height, width) -> (tiles, patches in reading order, 3 * patch * patch), each patch in the order of a
/// projection's weight. `patch` is not 0.
pub(crate) fn cut_patches(pixel_values: &Tensor, patch: usize) -> Result<Tensor> {
    let (tiles, _, height, width) = pixel_values.dims4()?;
    let (rows, columns) = (height / patch, width / patch);
    let cut = pixel_values.reshape(&[tiles, 3, rows, patch, columns, patch][..])?;
    Ok(cut.permute(vec![0, 2, 4, 1, 3, 5])?.reshape((tiles, rows * columns, 3 * patch * patch))?)
}
