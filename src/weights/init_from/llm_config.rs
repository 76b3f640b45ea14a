//! Configuration of a language model, read from HF's `config.json`.

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

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Family {
    Qwen2,
    Llama,
    Mistral,
}

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
    /// Reads HF's configuration; `model_type` is `qwen2` (also for Qwen2.5), `llama` (also for Vicuna) or `mistral`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is missing, of the wrong type, or unsupported.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let hf: HfConfig = from_value("config.json", "a qwen2, llama or mistral model", config)?;
        let llm = Self {
            decoder: hf.decoder()?,
            vocab_size: hf.vocab_size,
            max_position_embeddings: hf.max_position_embeddings.unwrap_or(match hf.model_type {
                Family::Llama => 2048,
                Family::Qwen2 => 32_768,
                Family::Mistral => 131_072,
            }),
            tie_word_embeddings: hf.tie_word_embeddings.unwrap_or(false),
        };
        llm.validate(hf.head_dim)?;
        Ok(llm)
    }

    /// Checks the decoder, and that the heads together are as wide as the hidden state, which is not the case in every
    /// model.
    pub(crate) fn validate(&self, head_dim: Option<usize>) -> Result<()> {
        self.decoder.validate("llm")?;
        let width = self.decoder.head_dim();
        match head_dim.filter(|given| *given != width) {
            None => Ok(()),
            Some(given) => Err(Error::config(
                "llm.head_dim",
                format!("is {given}, expected hidden_size / num_attention_heads = {width}: this model cannot be used"),
            )),
        }
    }
}

impl HfConfig {
    fn decoder(&self) -> Result<DecoderConfig> {
        let attention_bias = self.attention_bias.unwrap_or(false);
        let scaling = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let theta = self.rope_parameters.as_ref().and_then(|p| p.get("rope_theta")).and_then(Value::as_f64);
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(match self.model_type {
                Family::Llama => self.num_attention_heads,
                Family::Qwen2 => 32,
                Family::Mistral => 8,
            }),
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
    let kind = fields.remove("rope_type").or(kind).unwrap_or_else(|| Value::from("default"));
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
    fn unsupported_values_are_named() {
        let cases = [
            (json!({"head_dim": 32}), "llm.head_dim"),
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
