//! The configuration of a language model, from GGUF metadata.

use candle_core::{DType, Device};

use super::{GgufFile, GgufValue};
use crate::config::{Activation, DecoderConfig, MlpKind, NormKind, Rope, RopeScaling};
use crate::weights::TensorSource;
use crate::weights::init_from::{LlmConfig, own_head_dim};
use crate::{Error, Result};

/// Architectures whose layers are those of a HaploVL; the language halves of Qwen-VL are as those of Qwen.
const ARCHITECTURES: [&str; 5] = ["llama", "qwen2", "qwen3", "qwen2vl", "qwen3vl"];
/// Tensor of RoPE frequency divisors, which GGUF stores instead of the parameters of Llama 3.1's RoPE scaling.
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// `low_freq_factor`, `high_freq_factor` and original context length, the same in every published model with Llama
/// 3.1's RoPE scaling.
const LLAMA3: (f64, f64, usize) = (1.0, 4.0, 8192);

impl GgufFile {
    /// The configuration of the language model, in HF's terms.
    ///
    /// # Errors
    /// [`Error::Format`] naming the metadata key that is missing or has an unsupported value.
    pub fn llm_config(&self) -> Result<LlmConfig> {
        let vocab_size = self.shape("model.embed_tokens.weight").and_then(|shape| shape.first().copied());
        let mut llm = LlmConfig {
            decoder: self.decoder()?,
            vocab_size: vocab_size.ok_or_else(|| self.error("has no tensor token_embd.weight".into()))?,
            max_position_embeddings: self.integer("context_length")?,
            tie_word_embeddings: !self.has_tensor("lm_head.weight"),
        };
        llm.decoder.validate("llm")?;
        llm.decoder.rope_scaling = self.rope_scaling(&llm.decoder)?;
        self.check_head_widths(llm.decoder.head_dim())?;
        Ok(llm)
    }

    pub(super) fn architecture(&self) -> Result<&str> {
        match self.metadata.get("general.architecture") {
            Some(GgufValue::Text(name)) if ARCHITECTURES.contains(&name.as_str()) => Ok(name),
            Some(GgufValue::Text(name)) => Err(self.error(format!(
                "is a model of architecture `{name:.40}`, expected one of {}: use a model of one of these families",
                ARCHITECTURES.join(", ")
            ))),
            _ => Err(self.error("has no `general.architecture`: it is no model, or damaged; get it again".into())),
        }
    }

    pub(super) fn key_value_heads(&self) -> Result<usize> {
        match self.optional_integer("attention.head_count_kv")? {
            Some(heads) => Ok(heads),
            None => self.integer("attention.head_count"),
        }
    }

    pub(super) fn integer(&self, key: &str) -> Result<usize> {
        self.optional_integer(key)?.ok_or_else(|| self.error(format!("the metadata has no `{key}`")))
    }

    /// Rejects heads whose values have another width than their keys, or are rotated in part.
    fn check_head_widths(&self, head_dim: usize) -> Result<()> {
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(found) = self.optional_integer(key)?.filter(|found| *found != head_dim) {
                return Err(self.error(format!("`{key}` is {found}, expected {head_dim}, the width of the keys")));
            }
        }
        Ok(())
    }

    fn decoder(&self) -> Result<DecoderConfig> {
        let (hidden_size, heads) = (self.integer("embedding_length")?, self.integer("attention.head_count")?);
        let head_dim = self.optional_integer("attention.key_length")?;
        let biased = |part: &str| self.has_tensor(&format!("model.layers.0.{part}.bias"));
        let epsilon = self.float("attention.layer_norm_rms_epsilon")?;
        Ok(DecoderConfig {
            hidden_size,
            intermediate_size: self.integer("feed_forward_length")?,
            num_hidden_layers: self.integer("block_count")?,
            num_attention_heads: heads,
            head_dim: own_head_dim(head_dim, hidden_size, heads),
            qk_norm: self.has_tensor("model.layers.0.self_attn.q_norm.weight"),
            num_key_value_heads: self.key_value_heads()?,
            hidden_act: Activation::Silu,
            norm_mode: NormKind::RmsNorm,
            norm_eps: epsilon
                .ok_or_else(|| self.error("the metadata has no `attention.layer_norm_rms_epsilon`".into()))?,
            mlp: MlpKind::Gated,
            qkv_bias: biased("self_attn.q_proj"),
            output_bias: biased("self_attn.o_proj"),
            mlp_bias: biased("mlp.down_proj"),
            rope: Rope::Own,
            rope_theta: self.float("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: None,
        })
    }

    fn rope_scaling(&self, decoder: &DecoderConfig) -> Result<Option<RopeScaling>> {
        if self.has_tensor(ROPE_DIVISORS) {
            return self.llama3_scaling(decoder).map(Some);
        }
        let kind = self.value("rope.scaling.type")?;
        match (kind, self.float("rope.scaling.factor")?) {
            (None, None) => Ok(None),
            (Some(GgufValue::Text(kind)), _) if kind == "none" => Ok(None),
            (Some(GgufValue::Text(kind)), Some(factor)) if kind == "linear" => Ok(Some(RopeScaling::Linear { factor })),
            (kind, _) => Err(self.error(format!("rope.scaling.type is {kind:?}, expected `none` or `linear`"))),
        }
    }

    /// RoPE scaling that yields the file's frequency divisors: the largest divisor is `factor`, and the others are
    /// checked.
    fn llama3_scaling(&self, decoder: &DecoderConfig) -> Result<RopeScaling> {
        let divisors = self.load_tensor(ROPE_DIVISORS, DType::F64, &Device::Cpu)?;
        let divisors = divisors.flatten_all()?.to_vec1::<f64>()?;
        let factor = divisors.iter().copied().fold(1.0, f64::max);
        let width = decoder.head_dim() as f64;
        let agrees = |(i, divisor): (usize, &f64)| {
            let wavelength = std::f64::consts::TAU * decoder.rope_theta.powf(2.0 * i as f64 / width);
            (divisor / llama3_divisor(wavelength, factor) - 1.0).abs() < 1e-3
        };
        if divisors.len() != decoder.head_dim() / 2 || !divisors.iter().enumerate().all(agrees) {
            return Err(self.error(format!(
                "{ROPE_DIVISORS} is not the scaling of Llama 3.1: initialise from the model's HF folder instead"
            )));
        }
        let (low_freq_factor, high_freq_factor, original_max_position_embeddings) = LLAMA3;
        Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
    }

    /// Metadata value of the key `{architecture}.{key}`.
    fn value(&self, key: &str) -> Result<Option<&GgufValue>> {
        Ok(self.metadata.get(&format!("{}.{key}", self.architecture()?)))
    }

    fn optional_integer(&self, key: &str) -> Result<Option<usize>> {
        let integer = match self.value(key)? {
            None => return Ok(None),
            Some(GgufValue::Unsigned(n)) => usize::try_from(*n).ok(),
            Some(GgufValue::Signed(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        integer.map(Some).ok_or_else(|| self.error(format!("`{key}` is not an integer")))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key)? {
            None => Ok(None),
            Some(GgufValue::Float(value)) => Ok(Some(*value)),
            Some(other) => Err(self.error(format!("`{key}` is {other:?}, expected a float"))),
        }
    }

    fn error(&self, message: String) -> Error {
        Error::format(&self.path, message)
    }
}

/// Divisor that Llama 3.1 applies to the frequency of a wavelength: 1 for short wavelengths, `factor` for long ones,
/// and interpolated in between.
fn llama3_divisor(wavelength: f64, factor: f64) -> f64 {
    let (low, high, context) = LLAMA3;
    let turns = context as f64 / wavelength;
    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    1.0 / ((1.0 - smooth) / factor + smooth)
}
