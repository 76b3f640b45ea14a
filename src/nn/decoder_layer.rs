//! Transformer block of the pre-decoder, the post-decoder and the CLIP teacher.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::ops::{self, KeyRanges};
use super::{Attention, HeldKv, KvStore, MatmulVisitor, Mlp, Norm, ParameterVisitor, RotaryAngles, linears_of};
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

    /// Visits all parameters, `name` being this layer's name in the checkpoint.
    pub fn visit_parameters(&mut self, name: &str, visit: &mut ParameterVisitor<'_>) {
        self.input_layernorm.visit_parameters(&format!("{name}.input_layernorm"), visit);
        self.self_attn.visit_parameters(&format!("{name}.self_attn"), visit);
        self.post_attention_layernorm.visit_parameters(&format!("{name}.post_attention_layernorm"), visit);
        self.mlp.visit_matmuls(&format!("{name}.mlp"), &mut linears_of(visit));
    }

    /// Runs the layer: (batch, seq, hidden_size) -> the same shape, or the last positions only if `ranges` has fewer
    /// queries. Keys and values are kept in `store`.
    ///
    /// # Errors
    /// If shapes do not fit, or a cache is full.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: Option<&RotaryAngles>,
        ranges: &KeyRanges,
        store: KvStore<'_>,
    ) -> Result<Tensor> {
        let (normed, queries) = (self.input_layernorm.forward(x)?, ranges.queries());
        let last_angles = angles.map(|angles| angles.last(queries)).transpose()?;
        let q = self.self_attn.queries(&ops::last_positions(&normed, queries)?, last_angles.as_ref())?;
        let kv = self.self_attn.append(&normed, angles, store)?;
        let attended = self.self_attn.attend(&q, ranges, &kv)?;
        self.finish(&ops::last_positions(x, queries)?, &attended)
    }

    /// The first half of [`Self::forward`]: appends the keys and values of `x`, and returns all that `store` then
    /// holds.
    ///
    /// # Errors
    /// The errors of [`Self::forward`].
    pub fn append(&self, x: &Tensor, angles: Option<&RotaryAngles>, store: KvStore<'_>) -> Result<HeldKv> {
        self.self_attn.append(&self.input_layernorm.forward(x)?, angles, store)
    }

    /// The second half of [`Self::forward`], for some of the positions: attends from `x` (batch, queries, hidden_size)
    /// to what [`Self::append`] returned.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn attend(&self, x: &Tensor, angles: Option<&RotaryAngles>, ranges: &KeyRanges, kv: &HeldKv) -> Result<Tensor> {
        let q = self.self_attn.queries(&self.input_layernorm.forward(x)?, angles)?;
        self.finish(x, &self.self_attn.attend(&q, ranges, kv)?)
    }

    /// Residual connections and MLP.
    fn finish(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let x = ops::residual(x, attended)?;
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
