//! Self-attention with grouped keys, rotary positions and a choice of KV caches.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::ops::{self, KeyRanges};
use super::{HeldKv, KvStore, Linear, MatmulLayer, MatmulVisitor, Norm, ParameterVisitor, RotaryAngles, linears_of};
use crate::Result;
use crate::config::{DecoderConfig, NormKind};
use crate::options::Precision;

/// Self-attention of one layer.
#[derive(Debug, Clone)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of queries and keys over each head.
    qk_norm: Option<(Norm, Norm)>,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    precision: Precision,
}

impl Attention {
    /// Reads `q_proj`, `k_proj`, `v_proj`, `o_proj` and, with [`DecoderConfig::qk_norm`], `q_norm` and `k_norm`.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        let (hidden, head_dim, queries) = (config.hidden_size, config.head_dim(), config.attention_size());
        let norm = |name: &str| Norm::new(NormKind::RmsNorm, head_dim, config.norm_eps, vb.pp(name));
        let kv = config.num_key_value_heads * head_dim;
        Ok(Self {
            q_proj: Linear::new(hidden, queries, config.qkv_bias, vb.pp("q_proj"))?,
            k_proj: Linear::new(hidden, kv, config.qkv_bias, vb.pp("k_proj"))?,
            v_proj: Linear::new(hidden, kv, config.qkv_bias, vb.pp("v_proj"))?,
            o_proj: Linear::new(queries, hidden, config.output_bias, vb.pp("o_proj"))?,
            qk_norm: if config.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None },
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim,
            precision: Precision::Full,
        })
    }

    /// Sets the precision of the matmuls with keys and values on the CPU; each projection has a separate precision.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Visits this module, `name` in the checkpoint, then its projections.
    pub fn visit_matmuls(&mut self, name: &str, visit: &mut MatmulVisitor<'_>) {
        visit(name, MatmulLayer::Attention(self));
        let parts = [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj];
        for (part, linear) in ["q_proj", "k_proj", "v_proj", "o_proj"].into_iter().zip(parts) {
            visit(&format!("{name}.{part}"), MatmulLayer::Linear(linear));
        }
    }

    /// Visits projections and norms, `name` being this module's name in the checkpoint.
    pub fn visit_parameters(&mut self, name: &str, visit: &mut ParameterVisitor<'_>) {
        self.visit_matmuls(name, &mut linears_of(visit));
        if let Some((q_norm, k_norm)) = &mut self.qk_norm {
            q_norm.visit_parameters(&format!("{name}.q_norm"), visit);
            k_norm.visit_parameters(&format!("{name}.k_norm"), visit);
        }
    }

    /// Computes the keys and values of `x` (batch, seq, hidden_size) and appends them to `store`; returns all that the
    /// store then holds.
    ///
    /// # Errors
    /// If shapes do not fit, or a cache is full.
    pub fn append(&self, x: &Tensor, angles: Option<&RotaryAngles>, store: KvStore<'_>) -> Result<HeldKv> {
        store.append(self.keys(x, angles)?, self.heads(&self.v_proj, x, self.num_kv_heads)?)
    }

    /// Attends from queries (batch, queries, heads, head_dim) to keys and values -> (batch, queries, hidden_size).
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn attend(&self, q: &Tensor, ranges: &KeyRanges, kv: &HeldKv) -> Result<Tensor> {
        let out = match kv {
            HeldKv::Batch(k, v) => ops::attention_with(q, k, v, ranges, self.scale(), self.precision)?,
            HeldKv::Rows(rows) => ops::attention_over(q, rows, ranges, self.scale(), self.precision)?,
        };
        let (batch, seq, ..) = out.dims4()?;
        self.o_proj.forward_as(&out, (batch, seq, self.o_proj.dims2()?.0))
    }

    /// Attention weights (batch, heads, seq, seq), f32, of a pass without cache.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn weights(&self, x: &Tensor, angles: Option<&RotaryAngles>, ranges: &KeyRanges) -> Result<Tensor> {
        Ok(ops::attention_weights(&self.queries(x, angles)?, &self.keys(x, angles)?, ranges, self.scale())?)
    }

    /// Computes the queries of `x` (batch, seq, hidden_size) -> (batch, seq, heads, head_dim).
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn queries(&self, x: &Tensor, angles: Option<&RotaryAngles>) -> Result<Tensor> {
        let q = self.heads(&self.q_proj, x, self.num_heads)?;
        self.placed(q, self.qk_norm.as_ref().map(|(q_norm, _)| q_norm), angles)
    }

    fn keys(&self, x: &Tensor, angles: Option<&RotaryAngles>) -> Result<Tensor> {
        let k = self.heads(&self.k_proj, x, self.num_kv_heads)?;
        self.placed(k, self.qk_norm.as_ref().map(|(_, k_norm)| k_norm), angles)
    }

    /// Queries or keys after their norm and rotation.
    fn placed(&self, x: Tensor, norm: Option<&Norm>, angles: Option<&RotaryAngles>) -> Result<Tensor> {
        let x = norm.map(|norm| norm.forward(&x)).transpose()?.unwrap_or(x);
        angles.map_or(Ok(x.clone()), |angles| angles.rotate(&x))
    }

    fn heads(&self, projection: &Linear, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (batch, seq, _) = x.dims3()?;
        projection.forward_as(x, (batch, seq, heads, self.head_dim))
    }

    fn scale(&self) -> f64 {
        (self.head_dim as f64).sqrt().recip()
    }
}
