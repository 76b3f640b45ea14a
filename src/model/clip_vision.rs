//! CLIP vision transformer, the teacher of stage 1, built from the same layers as the decoders.

use candle_core::{D, Device, Tensor};
use candle_nn::VarBuilder;

use super::DecoderStack;
use crate::config::NormKind;
use crate::nn::ops::KeyRanges;
use crate::nn::{Norm, PatchEmbedding, init};
use crate::weights::ClipConfig;
use crate::{Error, Result};

/// CLIP vision transformer, with the tensor names of Hugging Face.
#[derive(Debug, Clone)]
pub struct ClipVision {
    class_embedding: Tensor,
    patch_embedding: PatchEmbedding,
    /// (1 + patches, hidden_size); the class token comes first.
    position_embedding: Tensor,
    pre_layrnorm: Norm,
    stack: DecoderStack,
    post_layernorm: Norm,
    config: ClipConfig,
}

impl ClipVision {
    /// Reads the tensors `vision_model.*`; `vb` is the root of the checkpoint.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &ClipConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.rename_f(hf_name).pp("vision_model");
        let (hidden, init) = (config.decoder.hidden_size, init(config.decoder.hidden_size));
        let embeddings = vb.pp("embeddings");
        let positions = (1 + config.patches_per_side().pow(2), hidden);
        let norm = |name: &str| Norm::new(NormKind::LayerNorm, hidden, config.decoder.norm_eps, vb.pp(name));
        Ok(Self {
            class_embedding: embeddings.get_with_hints(hidden, "class_embedding", init)?,
            patch_embedding: PatchEmbedding::new(hidden, config.patch_size, embeddings.pp("patch_embedding"))?,
            position_embedding: embeddings.get_with_hints(positions, "position_embedding.weight", init)?,
            pre_layrnorm: norm("pre_layrnorm")?,
            stack: DecoderStack::new(&config.decoder, 0, vb.pp("encoder.layers"))?,
            post_layernorm: norm("post_layernorm")?,
            config: config.clone(),
        })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Returns the device of the parameters.
    pub fn device(&self) -> &Device {
        self.class_embedding.device()
    }

    /// Computes the hidden states before the first layer and after each of the first `layers` layers.
    ///
    /// # Shapes
    /// `pixel_values` (tiles, 3, image_size, image_size) -> each state (tiles, 1 + patches, hidden_size).
    ///
    /// # Errors
    /// If `pixel_values` has another shape.
    pub fn hidden_states(&self, pixel_values: &Tensor, layers: usize) -> Result<Vec<Tensor>> {
        let tiles = pixel_values.dim(0)?;
        let patches = self.patch_embedding.forward(pixel_values)?;
        let hidden = patches.dim(D::Minus1)?;
        let class = self.class_embedding.reshape((1, 1, hidden))?.broadcast_as((tiles, 1, hidden))?;
        let x = Tensor::cat(&[&class.contiguous()?, &patches], 1)?;
        if x.dim(1)? != self.position_embedding.dim(0)? {
            return Err(Error::batch(format!(
                "pixel values have shape {:?}, expected (tiles, 3, {size}, {size}) for this CLIP",
                pixel_values.dims(),
                size = self.config.image_size
            )));
        }
        let mut x = self.pre_layrnorm.forward(&x.broadcast_add(&self.position_embedding)?)?;
        let ranges = KeyRanges::full(tiles, x.dim(1)?, x.dim(1)?);
        let mut states = vec![x.clone()];
        for layer in self.stack.layers().iter().take(layers) {
            x = layer.forward(&x, None, &ranges, None)?;
            states.push(x.clone());
        }
        Ok(states)
    }

    /// Computes the image embedding (tiles, hidden_size): the class token of the last hidden state, after the final
    /// norm.
    ///
    /// # Errors
    /// If `pixel_values` has another shape.
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let class = self.last_hidden_state(pixel_values)?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        self.post_layernorm.forward(&class)
    }

    /// Computes the patch features (tiles, patches, hidden_size): the patches of the last hidden state, after the final
    /// norm.
    ///
    /// # Errors
    /// If `pixel_values` has another shape.
    pub fn patches(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let last = self.last_hidden_state(pixel_values)?;
        self.post_layernorm.forward(&last.narrow(1, 1, last.dim(1)? - 1)?.contiguous()?)
    }

    fn last_hidden_state(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let last = self.hidden_states(pixel_values, self.stack.layers().len())?.pop();
        last.ok_or_else(|| Error::batch("no hidden state"))
    }
}

/// Maps tensor names of language models to the names in Hugging Face's CLIP checkpoints.
fn hf_name(name: &str) -> String {
    name.replace(".input_layernorm.", ".layer_norm1.")
        .replace(".post_attention_layernorm.", ".layer_norm2.")
        .replace(".self_attn.o_proj.", ".self_attn.out_proj.")
}
