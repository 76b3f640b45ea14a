//! CLIP and SigLIP vision transformers, the teacher of stage 1, built from the same layers as the decoders.

use candle_core::{D, Device, Tensor};
use candle_nn::{Init, VarBuilder};

use super::DecoderStack;
use crate::config::NormKind;
use crate::nn::ops::KeyRanges;
use crate::nn::{KvStore, Norm, PatchEmbedding, init};
use crate::weights::{ClipConfig, VisionFamily};
use crate::{Error, Result};

/// CLIP or SigLIP vision transformer, with the tensor names of Hugging Face.
#[derive(Debug, Clone)]
pub struct ClipVision {
    /// Class token of a CLIP.
    class_embedding: Option<Tensor>,
    patch_embedding: PatchEmbedding,
    /// Bias of the patch projection of a SigLIP, (hidden_size).
    patch_bias: Option<Tensor>,
    /// (class tokens + patches, hidden_size); a class token comes first.
    position_embedding: Tensor,
    /// Norm before the first layer of a CLIP.
    pre_layrnorm: Option<Norm>,
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
        let positions = (config.class_tokens() + config.patches_per_side().pow(2), hidden);
        let is_clip = config.family == VisionFamily::Clip;
        let embedding =
            |wanted: bool, name: &str, init| wanted.then(|| embeddings.get_with_hints(hidden, name, init)).transpose();
        let norm = |name: &str| Norm::new(NormKind::LayerNorm, hidden, config.decoder.norm_eps, vb.pp(name));
        Ok(Self {
            class_embedding: embedding(is_clip, "class_embedding", init)?,
            patch_bias: embedding(!is_clip, "patch_embedding.bias", Init::Const(0.0))?,
            patch_embedding: PatchEmbedding::new(hidden, config.patch_size, embeddings.pp("patch_embedding"))?,
            position_embedding: embeddings.get_with_hints(positions, "position_embedding.weight", init)?,
            pre_layrnorm: is_clip.then(|| norm("pre_layrnorm")).transpose()?,
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
        self.position_embedding.device()
    }

    /// Computes the hidden states before the first layer and after each of the first `layers` layers.
    ///
    /// # Shapes
    /// `pixel_values` (tiles, 3, image_size, image_size) -> each state (tiles, tokens, hidden_size); the tokens
    /// are the class token of a CLIP, then the patches.
    ///
    /// # Errors
    /// If `pixel_values` has another shape.
    pub fn hidden_states(&self, pixel_values: &Tensor, layers: usize) -> Result<Vec<Tensor>> {
        let x = self.embed(pixel_values)?;
        let tiles = x.dim(0)?;
        if x.dim(1)? != self.position_embedding.dim(0)? {
            return Err(Error::batch(format!(
                "pixel values have shape {:?}, expected (tiles, 3, {size}, {size}) for this CLIP",
                pixel_values.dims(),
                size = self.config.image_size
            )));
        }
        let x = x.broadcast_add(&self.position_embedding)?;
        let mut x = self.pre_layrnorm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
        let ranges = KeyRanges::full(tiles, x.dim(1)?, x.dim(1)?);
        let mut states = vec![x.clone()];
        for layer in self.stack.layers().iter().take(layers) {
            x = layer.forward(&x, None, &ranges, KvStore::None)?;
            states.push(x.clone());
        }
        Ok(states)
    }

    /// Embeds patches, after the class token of a CLIP: (tiles, tokens, hidden_size) without positions.
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let patches = self.patch_embedding.forward(&self.whole_patches(pixel_values)?)?;
        let patches = match &self.patch_bias {
            Some(bias) => patches.broadcast_add(bias)?,
            None => patches,
        };
        let Some(class) = &self.class_embedding else { return Ok(patches) };
        let (tiles, hidden) = (patches.dim(0)?, patches.dim(D::Minus1)?);
        let class = class.reshape((1, 1, hidden))?.broadcast_as((tiles, 1, hidden))?;
        Ok(Tensor::cat(&[&class.contiguous()?, &patches], 1)?)
    }

    /// Pixels without the last rows and columns that are no whole patch; some SigLIPs have images of 384 pixels and patches of
    /// 14.
    fn whole_patches(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (side, whole) = (self.config.image_size, self.config.side_of_patches());
        match pixel_values.dims() {
            [_, _, height, width] if (*height, *width) == (side, side) && whole < side => {
                Ok(pixel_values.narrow(2, 0, whole)?.narrow(3, 0, whole)?.contiguous()?)
            }
            _ => Ok(pixel_values.clone()),
        }
    }

    /// The patches of a hidden state: (tiles, tokens, hidden_size) -> (tiles, patches, hidden_size).
    pub(super) fn patches_of(&self, state: &Tensor) -> Result<Tensor> {
        let class = self.config.class_tokens();
        Ok(state.narrow(1, class, state.dim(1)? - class)?.contiguous()?)
    }

    /// Computes the image embedding (tiles, hidden_size): the class token of the last hidden state, after the final
    /// norm.
    ///
    /// # Errors
    /// If `pixel_values` has another shape, and [`Error::Weights`] for a SigLIP, which has no class token.
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        if self.class_embedding.is_none() {
            return Err(Error::weights("a SigLIP has no class token to pool: use its patch features"));
        }
        let class = self.last_hidden_state(pixel_values)?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        self.post_layernorm.forward(&class)
    }

    /// Computes the patch features (tiles, patches, hidden_size): the patches of the last hidden state, after the final
    /// norm.
    ///
    /// # Errors
    /// If `pixel_values` has another shape.
    pub fn patches(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.post_layernorm.forward(&self.patches_of(&self.last_hidden_state(pixel_values)?)?)
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
