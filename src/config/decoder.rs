//! Configuration of one decoder: a stack of equal [`DecoderLayer`](crate::nn::DecoderLayer)s.

use serde::{Deserialize, Serialize};

use super::validate::{at_least_one, at_most, multiple_of, positive};
use crate::{Error, Result};

/// Activation function of an MLP, with HF's names of `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// SiLU of the Llama and Qwen families: `x * sigmoid(x)`.
    Silu,
    /// Quick GELU of the original CLIP: `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// GELU with the exact error function: `x * Phi(x)`.
    Gelu,
    /// GELU in its tanh approximation.
    #[serde(alias = "gelu_new")]
    GeluPytorchTanh,
    /// ReLU: `max(x, 0)`.
    Relu,
}

/// Normalisation before attention and before the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NormKind {
    /// Layer norm: mean and variance, with weight and bias.
    LayerNorm,
    /// RMSNorm: root mean square, with weight only; accumulates in f32 for every dtype.
    RmsNorm,
}

/// Form of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MlpKind {
    /// Gated, three matrices: `down(act(gate(x)) * up(x))`.
    Gated,
    /// Plain, two matrices, as in CLIP: `fc2(act(fc1(x)))`.
    Plain,
}

/// Source of a decoder's rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rope {
    /// The decoder's `rope_theta` (official `attention_rope: true`).
    Own,
    /// The post-decoder's rotary embedding (official `attention_rope: false`); needs equal head widths.
    Shared,
    /// No rotary position embedding, as in CLIP.
    None,
}

/// Scaling of the rotary frequencies for contexts longer than the training context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// Linear scaling: all frequencies are divided by `factor`.
    Linear {
        /// Divisor of every frequency.
        factor: f64,
    },
    /// Llama 3.1's scaling, which depends on the wavelength.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled fully.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are not scaled.
        high_freq_factor: f64,
        /// Context length in training.
        original_max_position_embeddings: usize,
    },
}

/// Configuration of one decoder: sizes, normalisation, MLP, biases and positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads; a divisor of `hidden_size` if there is no `head_dim`.
    pub num_attention_heads: usize,
    /// Number of key and value heads; a divisor of `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; `hidden_size / num_attention_heads` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Whether queries and keys pass an RMSNorm over each head before the rotary positions, as in Qwen3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qk_norm: bool,
    /// Activation function of the MLP.
    pub hidden_act: Activation,
    /// Normalisation of the layers.
    pub norm_mode: NormKind,
    /// Epsilon that is added to the variance before the square root.
    pub norm_eps: f64,
    /// Form of the MLP.
    pub mlp: MlpKind,
    /// Whether `q_proj`, `k_proj` and `v_proj` have a bias.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub output_bias: bool,
    /// Whether the MLP's matrices have a bias.
    pub mlp_bias: bool,
    /// Source of the rotary positions.
    pub rope: Rope,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Frequency scaling for long contexts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
}

impl DecoderConfig {
    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Width of all query heads together.
    pub fn attention_size(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.head_dim())
    }

    /// Checks every field; `name` is the prefix in messages, for example `pre_decoder`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid field.
    pub fn validate(&self, name: &str) -> Result<()> {
        let field = |f: &str| format!("{name}.{f}");
        for (f, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
        ] {
            at_least_one(&field(f), value)?;
            at_most(&field(f), value, most)?;
        }
        at_most(&field("num_hidden_layers"), self.num_hidden_layers, 1 << 12)?;
        match self.head_dim {
            None => {
                multiple_of(&field("hidden_size"), self.hidden_size, "num_attention_heads", self.num_attention_heads)?
            }
            Some(head_dim) => {
                at_least_one(&field("head_dim"), head_dim)?;
                at_most(&field("head_dim"), head_dim, 1 << 12)?;
                at_most(&field("head_dim (times num_attention_heads)"), self.attention_size(), 1 << 18)?;
            }
        }
        multiple_of(
            &field("num_attention_heads"),
            self.num_attention_heads,
            "num_key_value_heads",
            self.num_key_value_heads,
        )?;
        if self.rope != Rope::None && !self.head_dim().is_multiple_of(2) {
            return Err(Error::config(
                field("hidden_size"),
                format!(
                    "gives heads of width {}, but rotary positions rotate pairs: choose head_dim or hidden_size / \
                     num_attention_heads even",
                    self.head_dim()
                ),
            ));
        }
        positive(&field("norm_eps"), self.norm_eps)?;
        positive(&field("rope_theta"), self.rope_theta)?;
        self.validate_scaling(&field("rope_scaling"))
    }

    fn validate_scaling(&self, field: &str) -> Result<()> {
        match self.rope_scaling {
            None | Some(RopeScaling::Default) => Ok(()),
            Some(RopeScaling::Linear { factor }) => positive(&format!("{field}.factor"), factor),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => {
                positive(&format!("{field}.factor"), factor)?;
                positive(&format!("{field}.low_freq_factor"), low_freq_factor)?;
                positive(&format!("{field}.high_freq_factor"), high_freq_factor)?;
                at_least_one(&format!("{field}.original_max_position_embeddings"), original_max_position_embeddings)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(Error::config(
                        format!("{field}.high_freq_factor"),
                        format!("{high_freq_factor} must be above low_freq_factor, {low_freq_factor}"),
                    ));
                }
                Ok(())
            }
        }
    }
}
