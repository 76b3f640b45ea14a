//! Exports: models in Hugging Face folders, for the next stage or for users.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use crate::config::{DecoderConfig, GenerationConfig, HaploVlConfig, MlpKind, Rope};
use crate::model::{DistillationHeads, save_pretrained};
use crate::processor::Processor;
use crate::weights::{
    ClipConfig, LlmConfig, Parameters, SaveOptions, VisionFamily, save_safetensors, write_bytes_atomically,
};
use crate::{Error, Result};

/// Configuration of a CLIP vision transformer with the pre-decoder's sizes: plain MLP, biases and no RoPE.
pub(super) fn clip_of(config: &HaploVlConfig) -> ClipConfig {
    let decoder = DecoderConfig {
        mlp: MlpKind::Plain,
        head_dim: None,
        qk_norm: false,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        rope: Rope::None,
        rope_scaling: None,
        num_key_value_heads: config.pre_decoder.num_attention_heads,
        ..config.pre_decoder.clone()
    };
    ClipConfig {
        family: VisionFamily::Clip,
        decoder,
        image_size: config.vision.image_size,
        patch_size: config.vision.patch_size,
    }
}

/// Configuration of a language model with the post-decoder's sizes: a Qwen3 without biases if queries and keys are
/// normalised, else a Qwen2 with biases on q, k and v only.
pub(super) fn llm_of(config: &HaploVlConfig) -> LlmConfig {
    let decoder = DecoderConfig {
        qkv_bias: !config.post_decoder.qk_norm,
        output_bias: false,
        mlp_bias: false,
        rope: Rope::Own,
        ..config.post_decoder.clone()
    };
    LlmConfig {
        decoder,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    }
}

/// Saves a CLIP vision transformer as an HF folder.
pub(super) fn save_clip(
    folder: &Path,
    clip: &ClipConfig,
    parameters: &Parameters,
    options: &SaveOptions,
) -> Result<()> {
    let decoder = &clip.decoder;
    write_config(
        folder,
        &json!({
            "model_type": "clip_vision_model",
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_hidden_layers,
            "num_attention_heads": decoder.num_attention_heads,
            "hidden_act": decoder.hidden_act,
            "layer_norm_eps": decoder.norm_eps,
            "image_size": clip.image_size,
            "patch_size": clip.patch_size,
        }),
    )?;
    save_safetensors(folder, &select(parameters, |name| name.starts_with("vision_model.")), options)
}

/// Saves a Qwen2 or Qwen3 language model as an HF folder, with its tokenizer.
pub(super) fn save_llm(
    folder: &Path,
    llm: &LlmConfig,
    parameters: &Parameters,
    processor: &Processor,
    options: &SaveOptions,
) -> Result<()> {
    let decoder = &llm.decoder;
    processor.save(folder)?;
    write_config(
        folder,
        &json!({
            "model_type": if decoder.qk_norm { "qwen3" } else { "qwen2" },
            "head_dim": decoder.head_dim(),
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_hidden_layers,
            "num_attention_heads": decoder.num_attention_heads,
            "num_key_value_heads": decoder.num_key_value_heads,
            "hidden_act": decoder.hidden_act,
            "rms_norm_eps": decoder.norm_eps,
            "rope_theta": decoder.rope_theta,
            "rope_scaling": decoder.rope_scaling,
            "vocab_size": llm.vocab_size,
            "max_position_embeddings": llm.max_position_embeddings,
            "tie_word_embeddings": llm.tie_word_embeddings,
        }),
    )?;
    save_safetensors(folder, &select(parameters, |_| true), options)
}

/// Saves parameters without heads of distillation, for `init_from.stage` of the next stage, and initial connector weights
/// after stage 1; with the tokenizer, by which the next stage finds the rows of its own vocabulary.
pub(super) fn save_parameters(
    folder: &Path,
    config: &HaploVlConfig,
    parameters: &Parameters,
    connector: Option<Tensor>,
    processor: &Processor,
    options: &SaveOptions,
) -> Result<()> {
    processor.save(folder)?;
    let value = serde_json::to_value(config)
        .map_err(|e| Error::format(folder, format!("cannot be serialised: {e}")).caused_by(e))?;
    write_config(folder, &value)?;
    let mut tensors = select(parameters, |name| !name.starts_with(DistillationHeads::PREFIX));
    tensors.extend(connector.map(|connector| ("model.pre_connector.weight".into(), connector)));
    save_safetensors(folder, &tensors, options)
}

/// Saves a whole model folder.
pub(super) fn save_model(
    folder: &Path,
    config: &HaploVlConfig,
    parameters: &Parameters,
    processor: &Processor,
    options: &SaveOptions,
) -> Result<()> {
    save_pretrained(folder, config, &parameters.tensors(), processor, &generation_of(processor), options)
}

/// Generation settings of an export.
pub(super) fn generation_of(processor: &Processor) -> GenerationConfig {
    GenerationConfig { eos_token_id: processor.eos_ids(), ..GenerationConfig::default() }
}

fn select(parameters: &Parameters, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
    parameters.tensors().into_iter().filter(|(name, _)| wanted(name)).collect()
}

fn write_config(folder: &Path, config: &Value) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let path = folder.join("config.json");
    let bytes = serde_json::to_vec_pretty(config)
        .map_err(|e| Error::format(&path, format!("cannot be serialised: {e}")).caused_by(e))?;
    write_bytes_atomically(path, &bytes)
}
