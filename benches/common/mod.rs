//! Fixtures of the benches: the model of `benches/config.json` with random weights, a 640-token prompt, a trainer.

#![allow(clippy::expect_used, reason = "a failing bench should stop instead of being timed")]

pub mod report;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, PaddingSide, Sequence};
use haplovl::config::{DecoderConfig, HaploVlConfig, LoraConfig, ModuleNames, PreprocessorConfig, TextEmbedding};
use haplovl::model::{Adapter, HaploVl};
use haplovl::nn::Activations;
use haplovl::optim::{AdamW, AdamWConfig, Schedule};
use haplovl::options::{Precision, Quantization};
use haplovl::processor::{ImageProcessor, RgbImage};
use haplovl::train::{NextToken, Trainer, UpdateRule};
use haplovl::weights::{LlmSource, Parameters, SaveOptions, TensorSource};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number of text tokens before the image, and after it.
pub const TEXT: usize = 20;

pub fn config() -> HaploVlConfig {
    let json = serde_json::from_str(include_str!("../config.json")).expect("benches/config.json is JSON");
    HaploVlConfig::from_json(json).expect("benches/config.json is a configuration")
}

/// Builds an image of random pixels.
pub fn random_image(width: u32, height: u32) -> RgbImage {
    random_image_of(1, width, height)
}

fn random_image_of(seed: u64, width: u32, height: u32) -> RgbImage {
    let mut pixels = vec![0; 3 * (width * height) as usize];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut pixels);
    RgbImage::from_raw(width, height, pixels).expect("three bytes per pixel")
}

pub fn image_processor(config: &HaploVlConfig) -> ImageProcessor {
    ImageProcessor::new(&PreprocessorConfig::image(&config.vision), &config.vision).expect("a valid configuration")
}

/// Builds a model with random weights, as if from a file: each matrix is quantised before the next one is created.
pub fn model(config: &HaploVlConfig, format: Option<Quantization>) -> HaploVl {
    build(config, format, None)
}

/// Builds a model around a language model, with a pre-decoder of one narrow layer that adds almost no cost.
pub fn model_with_llm(llm: &LlmSource, format: Option<Quantization>) -> HaploVl {
    build(&config_with_llm(llm), format, Some(llm.clone()))
}

pub fn config_with_llm(llm: &LlmSource) -> HaploVlConfig {
    let (base, words) = (config(), llm.config());
    let narrow = DecoderConfig {
        hidden_size: 64,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        ..base.pre_decoder.clone()
    };
    HaploVlConfig {
        vocab_size: words.vocab_size,
        tie_word_embeddings: words.tie_word_embeddings,
        text_embedding: TextEmbedding::Projected,
        pre_decoder: narrow,
        post_decoder: words.decoder.clone(),
        ..base
    }
}

fn build(config: &HaploVlConfig, format: Option<Quantization>, llm: Option<LlmSource>) -> HaploVl {
    HaploVl::from_source(config, weights(config, llm), format, DType::F32, &Device::Cpu).expect("a model")
}

fn weights(config: &HaploVlConfig, llm: Option<LlmSource>) -> Arc<Weights> {
    let shapes = HaploVl::parameter_shapes(config).expect("shapes");
    Arc::new(Weights { shapes, llm, first: config.pre_decoder.num_hidden_layers })
}

/// The settings of an adapter of rank 16 on all linear layers.
pub fn adapter_settings(use_dora: bool) -> LoraConfig {
    let mut settings = LoraConfig::new(16, 32.0, ModuleNames::Pattern("all-linear".into()));
    settings.use_dora = use_dora;
    settings
}

/// An adapter with random values, and the parameters that it is made of.
fn adapter(
    settings: LoraConfig,
    config: &HaploVlConfig,
    tensor: impl Fn(&Var) -> Tensor,
) -> (Adapter, BTreeMap<String, Var>) {
    let shapes = Adapter::shapes(&settings, config).expect("an adapter");
    let var = |shape: Vec<usize>| Var::randn(0f32, 0.02, shape, &Device::Cpu).expect("a tensor");
    let vars: BTreeMap<String, Var> = shapes.into_iter().map(|(name, shape)| (name, var(shape))).collect();
    let tensors = vars.iter().map(|(name, var)| (name.clone(), tensor(var))).collect();
    (Adapter::new(settings, config, tensors).expect("an adapter"), vars)
}

/// Builds a model as [`model`], with an adapter of these settings from its files.
pub fn adapted_model(config: &HaploVlConfig, format: Option<Quantization>, settings: LoraConfig) -> HaploVl {
    let (adapter, _) = adapter(settings, config, Var::as_detached_tensor);
    let folder = tempfile::tempdir().expect("a folder");
    adapter.save(folder.path(), &SaveOptions::default()).expect("space on the disk");
    let adapter = Adapter::open(folder.path(), config).expect("the adapter");
    model(config, format).with_adapter(&adapter).expect("the adapter's model")
}

/// Builds a trainer of such an adapter over frozen weights.
pub fn adapter_trainer(
    config: &HaploVlConfig,
    format: Option<Quantization>,
    checkpointing: bool,
    settings: LoraConfig,
) -> Trainer<NextToken> {
    let (adapter, vars) = adapter(settings, config, |var| var.as_tensor().clone());
    let model = HaploVl::frozen_from_source(config, weights(config, None), format, &Device::Cpu).expect("a model");
    let model = model.with_activations(activations(checkpointing));
    trainer_of(model.with_adapter(&adapter).expect("the adapter's model"), vars).expect("a trainer")
}

fn activations(checkpointing: bool) -> Activations {
    if checkpointing { Activations::Recomputed } else { Activations::Released }
}

/// Tensor source of random values, except for tensors that an optional language model provides.
struct Weights {
    shapes: BTreeMap<String, Vec<usize>>,
    llm: Option<LlmSource>,
    /// Index of the language model's first layer in the whole model.
    first: usize,
}

impl Weights {
    /// Maps the name of a tensor to its name in the language model.
    fn name(&self, name: &str) -> Option<String> {
        let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|name| name.split_once('.')) else {
            return Some(name.into());
        };
        Some(format!("model.layers.{}.{rest}", layer.parse::<usize>().ok()?.checked_sub(self.first)?))
    }
}

impl TensorSource for Weights {
    fn path(&self) -> &Path {
        Path::new("random weights of the bench")
    }

    fn tensor_names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> haplovl::Result<Tensor> {
        let inherited = self.llm.as_ref().map(LlmSource::tensors).zip(self.name(name));
        match inherited.filter(|(llm, name)| llm.has_tensor(name)) {
            Some((llm, name)) => llm.load_tensor(&name, dtype, device),
            None => Ok(Tensor::randn(0f32, 0.02, self.shapes[name].as_slice(), device)?.to_dtype(dtype)?),
        }
    }
}

/// Builds a text-only batch of one row, with labels on all tokens.
pub fn text(config: &HaploVlConfig, tokens: usize) -> MultimodalBatch {
    texts(config, tokens, 1)
}

/// Builds a text-only batch of one row of the tokens from `first` on.
pub fn text_from(config: &HaploVlConfig, first: u32, tokens: usize) -> MultimodalBatch {
    texts_from(config, first, tokens, 1)
}

/// Builds a text-only batch of equal rows, with labels on all tokens.
pub fn texts(config: &HaploVlConfig, tokens: usize, rows: usize) -> MultimodalBatch {
    texts_from(config, 2000, tokens, rows)
}

fn texts_from(config: &HaploVlConfig, first: u32, tokens: usize, rows: usize) -> MultimodalBatch {
    let input_ids = Vec::from_iter(first..first + tokens as u32);
    let sequence = Sequence { labels: Some(input_ids.clone()), input_ids, visuals: vec![] };
    let batch = MultimodalBatch::new(&vec![sequence; rows], BatchSpec::new(config), PaddingSide::Left, &Device::Cpu);
    batch.expect("a batch")
}

/// Builds a batch of 640-token rows: text, an image of one tile, text.
pub fn prompt(config: &HaploVlConfig, rows: usize) -> MultimodalBatch {
    let batch = prompt_of(config, rows, (336, 336));
    assert_eq!(batch.layout.seq_len, 640, "benchmark ids state 640 tokens");
    batch
}

/// Builds prompts of one row as [`prompt`]'s, each with an image of its own.
pub fn prompts(config: &HaploVlConfig, count: usize) -> Vec<MultimodalBatch> {
    (0..count as u64).map(|seed| prompt_about(config, 1, &random_image_of(seed, 336, 336))).collect()
}

/// Builds a batch of rows of text, an image of the given width and height, and text with labels.
pub fn prompt_of(config: &HaploVlConfig, rows: usize, (width, height): (u32, u32)) -> MultimodalBatch {
    prompt_about(config, rows, &random_image(width, height))
}

fn prompt_about(config: &HaploVlConfig, rows: usize, image: &RgbImage) -> MultimodalBatch {
    let visual = image_processor(config).process(image).expect("an image");
    let tokens = visual.tokens(&config.vision).expect("an image");
    let text = |first: u32| first..first + TEXT as u32;
    let placeholders = std::iter::repeat_n(config.image_token_index, tokens);
    let ignored = std::iter::repeat_n(IGNORE_INDEX, TEXT + tokens);
    let sequence = Sequence {
        input_ids: text(1000).chain(placeholders).chain(text(2000)).collect(),
        labels: Some(ignored.chain(text(2000)).collect()),
        visuals: vec![visual],
    };
    let batch = MultimodalBatch::new(&vec![sequence; rows], BatchSpec::new(config), PaddingSide::Left, &Device::Cpu);
    batch.expect("a prompt within the model's context")
}

/// Builds a trainer of all parameters, randomly initialised. `checkpointing` recomputes activations in the backward
/// pass; `precision` applies to matmuls.
pub fn trainer(
    config: &HaploVlConfig,
    checkpointing: bool,
    precision: Precision,
) -> haplovl::Result<Trainer<NextToken>> {
    let parameters = Parameters::new();
    let model = HaploVl::new(config, parameters.var_builder(0, DType::F32, &Device::Cpu))?;
    let parameters: BTreeMap<String, Var> = parameters.iter().collect();
    trainer_of(model.with_activations(activations(checkpointing)).with_precision(precision), parameters)
}

fn trainer_of(model: HaploVl, parameters: BTreeMap<String, Var>) -> haplovl::Result<Trainer<NextToken>> {
    let optimizer = AdamW::new(&parameters, AdamWConfig::default())?;
    let rule = UpdateRule {
        learning_rate: 1e-5,
        schedule: Schedule::default(),
        // Enough that no measurement reaches the end of the schedule.
        total_steps: 1_000_000,
        max_grad_norm: 1.0,
    };
    Ok(Trainer::new(NextToken::new(model), parameters, optimizer, rule))
}

/// Reads a memory field, such as `VmHWM:`, of `/proc/self/status` (in KiB) in MB; `None` outside of Linux.
pub fn megabytes(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? * 1024.0 / 1e6)
}
