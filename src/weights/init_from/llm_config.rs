//! Configuration of a language model, read from HF's `config.json`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Activation, DecoderConfig, MlpKind, NormKind, Rope, RopeScaling, from_value};
use crate::{Error, Result};

/// Configuration of a Llama-family language model, with the fields that initialisation of a HaploVL needs.
///
/// Sliding attention windows are ignored: HaploVL attends to all previous positions.
#[derive(Debug, Clone, PartialEq)]
pub struct LlmConfig {
    /// Configuration of the decoder layers.
    pub decoder: DecoderConfig,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// The longest sequence in tokens that the model was trained on.
    pub max_position_embeddings: usize,
    /// Whether the language head shares the weights of the embedding table.
    pub tie_word_embeddings: bool,
}

/// Family of a language model, by `model_type`. Models with another half are of the family of their language half.
#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Family {
    #[serde(alias = "qwen2_vl", alias = "qwen2_vl_text", alias = "qwen2_5_vl", alias = "qwen2_5_vl_text")]
    #[serde(alias = "qwen2_5_omni_text")]
    #[serde(alias = "llava_qwen")]
    Qwen2,
    #[serde(alias = "qwen3_vl_text")]
    Qwen3,
    #[serde(alias = "llava", alias = "llava_llama")]
    Llama,
    #[serde(alias = "llava_mistral")]
    Mistral,
}

impl Family {
    /// Fields that HF leaves out of a nested configuration where they have the default of the class: `hidden_size`,
    /// `intermediate_size`, `num_hidden_layers`, `num_attention_heads` and `vocab_size`.
    fn defaults(self) -> [(&'static str, usize); 5] {
        let (intermediate_size, vocab_size) = match self {
            Self::Qwen2 | Self::Qwen3 => (22_016, 151_936),
            Self::Llama => (11_008, 32_000),
            Self::Mistral => (14_336, 32_000),
        };
        [
            ("hidden_size", 4096),
            ("intermediate_size", intermediate_size),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("vocab_size", vocab_size),
        ]
    }
}

/// Fields under which models with another half keep the configuration of the language half.
const LANGUAGE_HALVES: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// Field under which a Qwen-Omni keeps the configuration of its vision-language model.
const THINKER: &str = "thinker_config";

/// The fields of HF's configuration that are used; fields with an `Option` have a default in HF.
#[derive(Deserialize)]
struct HfConfig {
    model_type: Family,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<Activation>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    /// `rope_theta` and the RoPE scaling in newer files.
    rope_parameters: Option<Map<String, Value>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
}

impl LlmConfig {
    /// Reads HF's configuration; `model_type` is `qwen2` (also for Qwen2.5), `qwen3`, `llama` (also for Vicuna) or
    /// `mistral`. Of a vision-language model such as LLaVA, `text_config` is read.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is missing, of the wrong type, or unsupported.
    pub fn from_hf(config: &Value) -> Result<Self> {
        if let Some("haplo" | "haplovl") = config.get("model_type").and_then(Value::as_str) {
            let message = "is that of a HaploVL, not of a language model alone: give it as `init_from.stage`";
            return Err(Error::config("model_type", message));
        }
        let config = language_half(config)?;
        check_family(&config)?;
        let hf: HfConfig = from_value("config.json", "a qwen2, qwen3, llama or mistral model", &config)?;
        let llm = Self {
            decoder: hf.decoder()?,
            vocab_size: hf.vocab_size,
            max_position_embeddings: hf.max_position_embeddings.unwrap_or(match hf.model_type {
                Family::Llama => 2048,
                Family::Qwen2 | Family::Qwen3 => 32_768,
                Family::Mistral => 131_072,
            }),
            tie_word_embeddings: hf.tie_word_embeddings.unwrap_or(false),
        };
        llm.decoder.validate("llm")?;
        Ok(llm)
    }
}

/// The configuration of the language half of a vision-language model, with HF's defaults for what it leaves out; any other
/// configuration as it is.
fn language_half(config: &Value) -> Result<Cow<'_, Value>> {
    let config = config.get(THINKER).unwrap_or(config);
    let Some(half) = LANGUAGE_HALVES.iter().find_map(|field| config.get(field)?.as_object()) else {
        return Ok(Cow::Borrowed(config));
    };
    let mut half = half.clone();
    let family = half.entry("model_type").or_insert_with(|| Value::from("llama")).clone();
    check_family(&Value::Object(half.clone()))?;
    let family: Family = from_value("text_config.model_type", "qwen2, qwen3, llama or mistral", &family)?;
    for (field, value) in family.defaults() {
        half.entry(field).or_insert_with(|| Value::from(value));
    }
    if let Some(tied) = config.get("tie_word_embeddings") {
        half.entry("tie_word_embeddings").or_insert_with(|| tied.clone());
    }
    Ok(Cow::Owned(Value::Object(half)))
}

/// Rejects a family whose layers are others than those of a HaploVL.
fn check_family(config: &Value) -> Result<()> {
    let Some(family) = config.get("model_type") else { return Ok(()) };
    serde_json::from_value::<Family>(family.clone()).map(drop).map_err(|e| {
        let message = format!(
            "is `{:.40}`, whose layers are others than those of a HaploVL: use a model of the family qwen2, qwen3, llama or \
             mistral, or a vision-language model with such a language model",
            family.as_str().unwrap_or_default()
        );
        Error::config("model_type", message).caused_by(e)
    })
}

/// A width of heads that is not `hidden_size / num_attention_heads`.
pub(crate) fn own_head_dim(head_dim: Option<usize>, hidden_size: usize, num_attention_heads: usize) -> Option<usize> {
    head_dim.filter(|width| width.checked_mul(num_attention_heads) != Some(hidden_size))
}

impl HfConfig {
    fn decoder(&self) -> Result<DecoderConfig> {
        let attention_bias = self.attention_bias.unwrap_or(false);
        let is_qwen3 = self.model_type == Family::Qwen3;
        let head_dim = self.head_dim.or(is_qwen3.then_some(128));
        let scaling = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let theta = self.rope_parameters.as_ref().and_then(|p| p.get("rope_theta")).and_then(Value::as_f64);
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(match self.model_type {
                Family::Llama => self.num_attention_heads,
                Family::Qwen2 | Family::Qwen3 => 32,
                Family::Mistral => 8,
            }),
            head_dim: own_head_dim(head_dim, self.hidden_size, self.num_attention_heads),
            qk_norm: is_qwen3,
            hidden_act: self.hidden_act.unwrap_or(Activation::Silu),
            norm_mode: NormKind::RmsNorm,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            mlp: MlpKind::Gated,
            qkv_bias: attention_bias || self.model_type == Family::Qwen2,
            output_bias: attention_bias,
            mlp_bias: self.mlp_bias.unwrap_or(false),
            rope: Rope::Own,
            rope_theta: self.rope_theta.or(theta).unwrap_or(10_000.0),
            rope_scaling: scaling.map(rope_scaling).transpose()?.filter(|s| *s != RopeScaling::Default),
        })
    }
}

/// RoPE scaling of HF's fields, where the kind is `rope_type`, or `type` in older files.
fn rope_scaling(fields: &Map<String, Value>) -> Result<RopeScaling> {
    let mut fields = fields.clone();
    let kind = fields.remove("type");
    let kind = fields.remove("rope_type").or(kind).filter(|kind| kind != "mrope");
    // The rotary positions of Qwen-VL are the usual ones where all tokens are text.
    let kind = kind.unwrap_or_else(|| Value::from("default"));
    fields.insert("rope_type".to_string(), kind);
    serde_json::from_value(Value::Object(fields)).map_err(|e| Error::config("llm.rope_scaling", e.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama_with(fields: Value) -> Value {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 100
        });
        let Value::Object(fields) = fields else { panic!() };
        config.as_object_mut().unwrap().extend(fields);
        config
    }

    #[test]
    fn missing_fields_have_hf_defaults() {
        let llm = LlmConfig::from_hf(&llama_with(json!({}))).unwrap();
        assert_eq!((llm.max_position_embeddings, llm.tie_word_embeddings), (2048, false));
        let decoder = llm.decoder;
        assert_eq!((decoder.num_key_value_heads, decoder.norm_eps, decoder.rope_theta), (4, 1e-6, 10_000.0));
        assert_eq!((decoder.qkv_bias, decoder.output_bias, decoder.rope_scaling), (false, false, None));
    }

    #[test]
    fn qwen_has_biases_on_q_k_v() {
        let qwen = llama_with(json!({"model_type": "qwen2", "num_key_value_heads": 2, "rope_scaling": null}));
        let decoder = LlmConfig::from_hf(&qwen).unwrap().decoder;
        assert_eq!((decoder.qkv_bias, decoder.output_bias, decoder.num_key_value_heads), (true, false, 2));
    }

    #[test]
    fn the_scaling_of_llama_3_1() {
        let scaling = json!({
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        });
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let old = LlmConfig::from_hf(&llama_with(json!({"rope_scaling": scaling, "rope_theta": 5e5}))).unwrap();
        assert_eq!(old.decoder.rope_scaling, Some(expected));
        let mut parameters = scaling.clone();
        parameters["rope_theta"] = json!(5e5);
        let new = LlmConfig::from_hf(&llama_with(json!({"rope_parameters": parameters}))).unwrap();
        assert_eq!(new, old);
        let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
        let linear = LlmConfig::from_hf(&llama_with(linear)).unwrap().decoder.rope_scaling;
        assert_eq!(linear, Some(RopeScaling::Linear { factor: 2.0 }));
    }

    #[test]
    fn qwen3_has_norms_of_queries_and_keys_and_its_own_head_width() {
        let qwen = |fields: Value| {
            let mut config = llama_with(json!({"model_type": "qwen3", "num_key_value_heads": 2}));
            config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            LlmConfig::from_hf(&config).unwrap().decoder
        };
        let decoder = qwen(json!({}));
        assert_eq!((decoder.qk_norm, decoder.head_dim, decoder.attention_size()), (true, Some(128), 512));
        assert_eq!((decoder.qkv_bias, decoder.output_bias), (false, false));
        let decoder = qwen(json!({"head_dim": 16}));
        assert_eq!((decoder.head_dim, decoder.head_dim()), (None, 16));
    }

    #[test]
    fn the_language_half_of_a_larger_model_is_read() {
        let text = json!({"model_type": "llama", "vocab_size": 32_064, "max_position_embeddings": 4096});
        let llava = json!({"model_type": "llava", "text_config": text, "tie_word_embeddings": false});
        let llm = LlmConfig::from_hf(&llava).unwrap();
        assert_eq!((llm.vocab_size, llm.decoder.hidden_size, llm.decoder.num_hidden_layers), (32_064, 4096, 32));
        let old = json!({"model_type": "qwen2_vl", "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}});
        let old = LlmConfig::from_hf(&llama_with(old)).unwrap().decoder;
        assert_eq!((old.qkv_bias, old.rope_scaling), (true, None));
    }

    #[test]
    fn unsupported_values_are_named() {
        let cases = [
            (json!({"head_dim": 0}), "llm.head_dim"),
            (json!({"model_type": "haplo"}), "init_from.stage"),
            (json!({"model_type": "gemma"}), "gemma"),
            (json!({"hidden_size": "wide"}), "wide"),
            (json!({"num_attention_heads": 5}), "num_attention_heads"),
            (json!({"hidden_act": "xielu"}), "xielu"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn"),
        ];
        for (fields, expected) in cases {
            let message = LlmConfig::from_hf(&llama_with(fields)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
