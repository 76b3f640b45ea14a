//! Invariants that hold for any weights, tested on tiny random models: one property per design decision.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod configs;
mod forward;
mod gradients;
mod serving;
mod trainer;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, PaddingSide, Sequence, Visual};
use haplovl::config::{
    Activation, DecoderConfig, HaploVlConfig, ImageAspectRatio, ImageAttention, MlpKind, Rope, RopeScaling,
    TextEmbedding,
};
use haplovl::model::HaploVl;
use haplovl::patch_grid::{PatchGrid, Size};
use haplovl::weights::Parameters;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Returns named configurations that together cover every branch of the model.
pub fn configs() -> Vec<(&'static str, HaploVlConfig)> {
    let tiny = HaploVlConfig::tiny;
    let with = |change: fn(&mut HaploVlConfig)| {
        let mut config = tiny();
        change(&mut config);
        config
    };
    vec![
        ("released form", tiny()),
        ("causal images", HaploVlConfig { image_attention: ImageAttention::Causal, ..tiny() }),
        (
            "form of the paper, without biases in the LLM",
            with(|c| {
                c.text_embedding = TextEmbedding::Projected;
                c.pre_decoder.mlp = MlpKind::Plain;
                c.pre_decoder.hidden_act = Activation::Gelu;
                let post = &mut c.post_decoder;
                (post.qkv_bias, post.output_bias, post.mlp_bias) = (false, false, false);
            }),
        ),
        (
            "shared positions, one key head, shrunk grids",
            with(|c| {
                c.pre_decoder.rope = Rope::Shared;
                c.post_decoder = DecoderConfig { num_attention_heads: 3, num_key_value_heads: 1, ..c.post_decoder };
                c.vision.image_aspect_ratio = ImageAspectRatio::AnyResMax(1);
            }),
        ),
        (
            "own head widths, norms of queries and keys",
            with(|c| {
                c.pre_decoder = DecoderConfig { head_dim: Some(6), qk_norm: true, ..c.pre_decoder.clone() };
                c.post_decoder = DecoderConfig { head_dim: Some(10), qk_norm: true, ..c.post_decoder.clone() };
            }),
        ),
        (
            "tied, no newline, no or scaled positions",
            with(|c| {
                c.text_embedding = TextEmbedding::Projected;
                c.tie_word_embeddings = true;
                c.vision.image_newline = false;
                c.pre_decoder.rope = Rope::None;
                c.post_decoder.rope_scaling = Some(RopeScaling::Linear { factor: 2.0 });
            }),
        ),
    ]
}

/// Draws approximately normal values from a seed.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut value = || (0..3).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>();
    let count = shape.iter().product();
    Tensor::from_vec((0..count).map(|_| value()).collect(), shape, &Device::Cpu).unwrap()
}

/// Creates randomised parameters of a model, large enough that every input affects the output.
pub fn parameters(config: &HaploVlConfig) -> Parameters {
    let parameters = Parameters::new();
    HaploVl::new(config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
    randomize(&parameters);
    parameters
}

/// Replaces all values by random values.
pub fn randomize(parameters: &Parameters) {
    for (seed, (name, var)) in (100..).zip(parameters.iter()) {
        let noise = (random(var.dims(), seed) * 0.25).unwrap();
        let values = if name.contains("norm") { (noise + 1.0).unwrap() } else { noise };
        var.set(&values).unwrap();
    }
}

pub fn model_over(config: &HaploVlConfig, parameters: &Parameters) -> HaploVl {
    HaploVl::new(config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap()
}

pub fn model(config: &HaploVlConfig) -> HaploVl {
    model_over(config, &parameters(config))
}

pub fn vars(parameters: &Parameters) -> BTreeMap<String, Var> {
    parameters.iter().collect()
}

pub fn image(config: &HaploVlConfig, height: usize, width: usize, seed: u64) -> Visual {
    let (size, side) = (Size::new(height, width), config.vision.image_size);
    let tiles = PatchGrid::new(&config.vision, size).unwrap().num_tiles();
    Visual::Image { pixel_values: random(&[tiles, 3, side, side], seed), size }
}

pub fn video(config: &HaploVlConfig, frames: usize, seed: u64) -> Visual {
    let side = config.vision.image_size;
    Visual::Video { pixel_values: random(&[frames, 3, side, side], seed) }
}

/// Appends text tokens, with labels on all of them.
pub fn push_text(sequence: &mut Sequence, text: &[u32]) {
    sequence.input_ids.extend(text);
    sequence.labels.get_or_insert_default().extend(text);
}

/// Appends an image or video, without labels.
pub fn push_visual(sequence: &mut Sequence, config: &HaploVlConfig, visual: Visual) {
    let tokens = visual.tokens(&config.vision).unwrap();
    let id = visual.placeholder(config.image_token_index, config.video_token_index);
    sequence.input_ids.extend(vec![id; tokens]);
    sequence.labels.get_or_insert_default().extend(vec![IGNORE_INDEX; tokens]);
    sequence.visuals.push(visual);
}

pub fn empty_sequence() -> Sequence {
    Sequence { input_ids: vec![], labels: None, visuals: vec![] }
}

/// Builds three conversations of different lengths: with two images, with a video, and text only.
pub fn conversations(config: &HaploVlConfig) -> Vec<Sequence> {
    let [mut images, mut with_video, mut text] = [empty_sequence(), empty_sequence(), empty_sequence()];
    push_text(&mut images, &[3, 4]);
    push_visual(&mut images, config, image(config, 40, 90, 1));
    push_text(&mut images, &[5, 6, 7]);
    push_visual(&mut images, config, image(config, 28, 28, 2));
    push_text(&mut images, &[8, 9]);
    push_text(&mut with_video, &[10]);
    push_visual(&mut with_video, config, video(config, 3, 3));
    push_text(&mut with_video, &[11, 12, 13, 14]);
    push_text(&mut text, &[15, 16, 17, 18, 19]);
    vec![images, with_video, text]
}

pub fn batch(config: &HaploVlConfig, rows: &[Sequence], side: PaddingSide) -> MultimodalBatch {
    MultimodalBatch::new(rows, BatchSpec::new(config), side, &Device::Cpu).unwrap()
}

pub fn batch_of_one(config: &HaploVlConfig, sequence: &Sequence) -> MultimodalBatch {
    batch(config, std::slice::from_ref(sequence), PaddingSide::Right)
}

/// Computes the largest absolute difference, NaN if any element is NaN; panics if the shapes differ.
pub fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let diff = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    diff.into_iter().fold(0.0, |worst, d| if d.is_nan() { f32::NAN } else { f32::max(worst, d) })
}

pub fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}
