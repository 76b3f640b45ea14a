//! Transformer block of the pre-decoder, the post-decoder and the CLIP teacher.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::ops::{self, KeyRanges};
use super::{Attention, LayerCache, MatmulVisitor, Mlp, Norm, RotaryAngles};
use crate::Result;
use crate::config::DecoderConfig;

/// Pre-norm attention and MLP, each with a residual connection.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    input_layernorm: Norm,
    self_attn: Attention,
    post_attention_layernorm: Norm,
    mlp: Mlp,
}

impl DecoderLayer {
    /// Reads `input_layernorm`, `self_attn`, `post_attention_layernorm` and `mlp`.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        let norm = |name: &str| Norm::new(config.norm_mode, config.hidden_size, config.norm_eps, vb.pp(name));
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(config, vb.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::new(config, vb.pp("mlp"))?,
        })
    }

    /// Visits the matmuls of attention and MLP, `name` being this layer's name in the checkpoint.
    pub fn visit_matmuls(&mut self, name: &str, visit: &mut MatmulVisitor<'_>) {
        self.self_attn.visit_matmuls(&format!("{name}.self_attn"), visit);
        self.mlp.visit_matmuls(&format!("{name}.mlp"), visit);
    }

    /// Runs the layer: (batch, seq, hidden_size) -> the same shape, or the last positions only if `ranges` has fewer
    /// queries.
    ///
    /// # Errors
    /// If shapes do not fit, or the cache is full.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: Option<&RotaryAngles>,
        ranges: &KeyRanges,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(x)?, angles, ranges, cache)?;
        let x = ops::residual(&ops::last_positions(x, ranges.queries())?, &attended)?;
        let y = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        Ok(ops::residual(&x, &y)?)
    }

    /// The attention weights (batch, heads, seq, seq), f32, that [`Self::forward`] uses on `x`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn attention_weights(&self, x: &Tensor, angles: Option<&RotaryAngles>, ranges: &KeyRanges) -> Result<Tensor> {
        self.self_attn.weights(&self.input_layernorm.forward(x)?, angles, ranges)
    }
}
