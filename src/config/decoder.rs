//! The configuration of one decoder: a stack of equal [`DecoderLayer`](crate::nn::DecoderLayer)s.

use serde::{Deserialize, Serialize};

use super::validate::{at_least_one, at_most, multiple_of, positive};
use crate::{Error, Result};

/// The non-linearity of an MLP. HF names, so that `hidden_act` reads as in other checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`, of the Llama and Qwen families.
    Silu,
    /// `x * sigmoid(1.702 x)`, of the original CLIP.
    QuickGelu,
    /// `x * Phi(x)` with the exact error function.
    Gelu,
    /// The tanh approximation of GELU.
    #[serde(alias = "gelu_new")]
    GeluPytorchTanh,
    /// `max(x, 0)`.
    Relu,
}

/// The normalisation before attention and before the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NormKind {
    /// Mean and variance, with weight and bias.
    LayerNorm,
    /// Root mean square, with weight only; accumulates in f32 whatever the input.
    RmsNorm,
}

/// The shape of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MlpKind {
    /// `down(act(gate(x)) * up(x))`, three matrices.
    Gated,
    /// `fc2(act(fc1(x)))`, two matrices, as CLIP.
    Plain,
}

/// Where a decoder's rotary position embedding comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rope {
    /// Built from this decoder's own `rope_theta` (official `attention_rope: true`).
    Own,
    /// Shared with the post-decoder (official `attention_rope: false`); needs equal head widths.
    Shared,
    /// No rotary embedding at all, as CLIP.
    None,
}

/// How rotary frequencies are stretched to contexts longer than those trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RopeScaling {
    /// Frequencies unchanged.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor of every frequency.
        factor: f64,
    },
    /// The wavelength-dependent rule of Llama 3.1.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are left alone.
        high_freq_factor: f64,
        /// The context length that the frequencies were trained on.
        original_max_position_embeddings: usize,
    },
}

/// One decoder: sizes, normalisation, MLP, biases and positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Non-linearity of the MLP.
    pub hidden_act: Activation,
    /// Normalisation of the layers.
    pub norm_mode: NormKind,
    /// Added to the variance before the square root.
    pub norm_eps: f64,
    /// MLP form.
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
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Checks every field; `name` is the prefix in messages, for example `pre_decoder`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first field that cannot work.
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
        multiple_of(&field("hidden_size"), self.hidden_size, "num_attention_heads", self.num_attention_heads)?;
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
                    "gives heads of width {}, but rotary positions rotate pairs: choose hidden_size / num_attention_heads even",
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
