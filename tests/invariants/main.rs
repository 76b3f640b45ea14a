//! What must hold whatever the weights: properties of tiny random models, one per decision of the design.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod configs;
mod forward;
mod gradients;
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

/// Configurations that between them take every branch of the model.
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

/// Normal-ish values from a seed.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut value = || (0..3).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>();
    let count = shape.iter().product();
    Tensor::from_vec((0..count).map(|_| value()).collect(), shape, &Device::Cpu).unwrap()
}

/// The parameters of a model, none of them zero or one, and large enough that everything it sees matters.
pub fn parameters(config: &HaploVlConfig) -> Parameters {
    let parameters = Parameters::new();
    HaploVl::new(config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
    stir(&parameters);
    parameters
}

/// Draws all values anew.
pub fn stir(parameters: &Parameters) {
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

/// Appends text, all of which is to be learnt.
pub fn say(sequence: &mut Sequence, text: &[u32]) {
    sequence.input_ids.extend(text);
    sequence.labels.get_or_insert_default().extend(text);
}

/// Appends a picture or video.
pub fn show(sequence: &mut Sequence, config: &HaploVlConfig, visual: Visual) {
    let tokens = visual.tokens(&config.vision).unwrap();
    let id = visual.placeholder(config.image_token_index, config.video_token_index);
    sequence.input_ids.extend(vec![id; tokens]);
    sequence.labels.get_or_insert_default().extend(vec![IGNORE_INDEX; tokens]);
    sequence.visuals.push(visual);
}

pub fn sequence() -> Sequence {
    Sequence { input_ids: vec![], labels: None, visuals: vec![] }
}

/// Three conversations of different lengths: two pictures, a video, and text alone.
pub fn conversations(config: &HaploVlConfig) -> Vec<Sequence> {
    let [mut pictures, mut film, mut text] = [sequence(), sequence(), sequence()];
    say(&mut pictures, &[3, 4]);
    show(&mut pictures, config, image(config, 40, 90, 1));
    say(&mut pictures, &[5, 6, 7]);
    show(&mut pictures, config, image(config, 28, 28, 2));
    say(&mut pictures, &[8, 9]);
    say(&mut film, &[10]);
    show(&mut film, config, video(config, 3, 3));
    say(&mut film, &[11, 12, 13, 14]);
    say(&mut text, &[15, 16, 17, 18, 19]);
    vec![pictures, film, text]
}

pub fn batch(config: &HaploVlConfig, rows: &[Sequence], side: PaddingSide) -> MultimodalBatch {
    MultimodalBatch::new(rows, BatchSpec::new(config), side, &Device::Cpu).unwrap()
}

pub fn alone(config: &HaploVlConfig, sequence: &Sequence) -> MultimodalBatch {
    batch(config, std::slice::from_ref(sequence), PaddingSide::Right)
}

/// Largest absolute difference; the shapes must be equal, and NaN is never close.
pub fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let diff = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    diff.into_iter().fold(0.0, |worst, d| if d.is_nan() { f32::NAN } else { f32::max(worst, d) })
}

pub fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}
