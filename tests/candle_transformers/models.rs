//! Comparison with the models of candle-transformers (independent Rust code) for equal weights, at sizes that no
//! fixture has.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{clip, qwen2};
use haplovl::batch::SequenceLayout;
use haplovl::config::{Activation, DecoderConfig, HaploVlConfig, MlpKind, NormKind, Rope};
use haplovl::model::{ClipVision, LanguageModel};
use haplovl::weights::{ClipConfig, LlmConfig, Parameters, VisionFamily};

/// Rounding: both sides compute in f32 and differ in the order of sums.
const TOLERANCE: f32 = 2e-4;

/// Computes smooth values between -1 and 1.
fn wave(shape: &[usize], step: f32) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * step).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Scales matrices up, so that attention is far from uniform, and returns the parameters as candle's `VarBuilder`.
fn scaled_var_builder(parameters: &Parameters) -> VarBuilder<'static> {
    for (name, tensor) in parameters.tensors() {
        if name.ends_with("weight") && tensor.rank() == 2 {
            parameters.set(&name, &(tensor * 4.0).unwrap()).unwrap();
        }
    }
    let tensors: HashMap<String, Tensor> = parameters.tensors().into_iter().collect();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

fn assert_close(found: &Tensor, expected: &Tensor) {
    let diff = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let diff = diff.to_scalar::<f32>().unwrap();
    assert!(diff < TOLERANCE, "off by {diff:e}");
}

#[test]
fn clip_vision_transformer_matches_candle_transformers() {
    let decoder = DecoderConfig {
        hidden_size: 96,
        intermediate_size: 160,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 6,
        hidden_act: Activation::QuickGelu,
        norm_mode: NormKind::LayerNorm,
        norm_eps: 1e-5,
        mlp: MlpKind::Plain,
        rope: Rope::None,
        ..HaploVlConfig::tiny().pre_decoder
    };
    let config = ClipConfig { family: VisionFamily::Clip, decoder, image_size: 70, patch_size: 7 };
    let parameters = Parameters::new();
    let ours = ClipVision::new(&config, parameters.var_builder(3, DType::F32, &Device::Cpu)).unwrap();
    let theirs_config = clip::vision_model::ClipVisionConfig {
        embed_dim: 96,
        activation: clip::text_model::Activation::QuickGelu,
        intermediate_size: 160,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        projection_dim: 8,
        num_channels: 3,
        image_size: 70,
        patch_size: 7,
    };
    let vb = scaled_var_builder(&parameters).pp("vision_model");
    let theirs = clip::vision_model::ClipVisionTransformer::new(vb, &theirs_config).unwrap();
    let pixels = wave(&[2, 3, 70, 70], 0.37);
    assert_close(&ours.pooled(&pixels).unwrap(), &theirs.forward(&pixels).unwrap());
}

#[test]
fn qwen2_matches_candle_transformers() {
    let decoder = DecoderConfig {
        hidden_size: 96,
        intermediate_size: 200,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        norm_eps: 1e-6,
        rope_theta: 1e6,
        output_bias: false,
        mlp_bias: false,
        rope: Rope::Own,
        ..HaploVlConfig::tiny().post_decoder
    };
    let config = LlmConfig { decoder, vocab_size: 300, max_position_embeddings: 256, tie_word_embeddings: false };
    let parameters = Parameters::new();
    let ours = LanguageModel::new(&config, parameters.var_builder(4, DType::F32, &Device::Cpu)).unwrap();
    let theirs_config = qwen2::Config {
        vocab_size: 300,
        hidden_size: 96,
        intermediate_size: 200,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        max_position_embeddings: 256,
        sliding_window: 256,
        max_window_layers: 3,
        tie_word_embeddings: false,
        rope_theta: 1e6,
        rms_norm_eps: 1e-6,
        use_sliding_window: false,
        hidden_act: candle_nn::Activation::Silu,
    };
    let mut theirs = qwen2::ModelForCausalLM::new(&theirs_config, scaled_var_builder(&parameters)).unwrap();
    let ids: Vec<u32> = (0..150).map(|i| (i * 37 % 300) as u32).collect();
    let ids = Tensor::from_vec(ids, (1, 150), &Device::Cpu).unwrap();
    let embeddings = ours.embed(&ids).unwrap();
    let hidden = ours.hidden_states(&embeddings, &SequenceLayout::text(1, 150)).unwrap();
    let logits = ours.lm_head().forward(&hidden).unwrap().i((.., 149..)).unwrap();
    assert_close(&logits, &theirs.forward(&ids, 0).unwrap());
}
