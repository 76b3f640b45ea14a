//! What the benches share: the model of `benches/config.json` with random weights, a prompt of 640 tokens, a trainer.

#![allow(clippy::expect_used, reason = "a bench that fails should stop, not be timed")]

pub mod report;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Var};
use haplovl::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, PaddingSide, Sequence};
use haplovl::config::{HaploVlConfig, PreprocessorConfig};
use haplovl::model::HaploVl;
use haplovl::nn::CheckpointScope;
use haplovl::nn::ops::Quantization;
use haplovl::optim::{AdamW, AdamWConfig, Schedule};
use haplovl::processor::{ImageProcessor, RgbImage};
use haplovl::train::{NextToken, Trainer, UpdateRule};
use haplovl::weights::Parameters;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Text tokens before the picture, and as many behind it.
pub const TEXT: usize = 20;

pub fn config() -> HaploVlConfig {
    let json = serde_json::from_str(include_str!("../config.json")).expect("benches/config.json is JSON");
    HaploVlConfig::from_json(json).expect("benches/config.json is a configuration")
}

pub fn picture(width: u32, height: u32) -> RgbImage {
    let mut pixels = vec![0; 3 * (width * height) as usize];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut pixels);
    RgbImage::from_raw(width, height, pixels).expect("as many bytes as the picture needs")
}

pub fn images(config: &HaploVlConfig) -> ImageProcessor {
    ImageProcessor::new(&PreprocessorConfig::image(&config.vision), &config.vision).expect("a valid configuration")
}

/// A model with random weights, detached from variables, so that no graph is kept for gradients nobody asks for.
pub fn model(config: &HaploVlConfig, format: Option<Quantization>) -> HaploVl {
    let vb = Parameters::new().var_builder_where(0, DType::F32, &Device::Cpu, |_| false);
    let mut model = HaploVl::new(config, vb).expect("a model");
    if let Some(kind) = format {
        model.each_matrix(&mut |_, linear| linear.quantize(kind)).expect("a quantised model");
    }
    model
}

/// Text alone, one row; a training step learns all of it.
pub fn text(config: &HaploVlConfig, tokens: usize) -> MultimodalBatch {
    let input_ids = Vec::from_iter(2000..2000 + tokens as u32);
    let sequence = Sequence { labels: Some(input_ids.clone()), input_ids, visuals: vec![] };
    MultimodalBatch::new(&[sequence], BatchSpec::new(config), PaddingSide::Left, &Device::Cpu).expect("a batch")
}

/// Rows of text, a picture of one tile, text: 640 tokens.
pub fn prompt(config: &HaploVlConfig, rows: usize) -> MultimodalBatch {
    let batch = prompt_of(config, rows, (336, 336));
    assert_eq!(batch.layout.seq_len, 640, "the ids of these benches say 640");
    batch
}

/// Rows of text, a picture of so many pixels, text; the text behind the picture is what a training step learns.
pub fn prompt_of(config: &HaploVlConfig, rows: usize, (width, height): (u32, u32)) -> MultimodalBatch {
    let visual = images(config).process(&picture(width, height)).expect("a picture");
    let tokens = visual.tokens(&config.vision).expect("a picture");
    let text = |first: u32| first..first + TEXT as u32;
    let placeholders = std::iter::repeat_n(config.image_token_index, tokens);
    let ignored = std::iter::repeat_n(IGNORE_INDEX, TEXT + tokens);
    let sequence = Sequence {
        input_ids: text(1000).chain(placeholders).chain(text(2000)).collect(),
        labels: Some(ignored.chain(text(2000)).collect()),
        visuals: vec![visual],
    };
    let batch = MultimodalBatch::new(&vec![sequence; rows], BatchSpec::new(config), PaddingSide::Left, &Device::Cpu);
    batch.expect("a prompt that fits the model")
}

/// A trainer of all parameters, started at random; `checkpointing` computes activations again instead of keeping them.
pub fn trainer(config: &HaploVlConfig, checkpointing: bool) -> haplovl::Result<Trainer<NextToken>> {
    let parameters = Parameters::new();
    let model = HaploVl::new(config, parameters.var_builder(0, DType::F32, &Device::Cpu))?;
    let parameters: BTreeMap<String, Var> = parameters.iter().collect();
    let scope = checkpointing.then(|| CheckpointScope::new(parameters.values()));
    let model = model.with_checkpointing(scope.clone());
    let optimizer = AdamW::new(&parameters, AdamWConfig::default())?;
    let rule = UpdateRule {
        learning_rate: 1e-5,
        schedule: Schedule::default(),
        // Far from the end however many steps are measured.
        total_steps: 1_000_000,
        max_grad_norm: 1.0,
    };
    Ok(Trainer::new(NextToken::new(model), parameters, optimizer, rule, scope))
}
