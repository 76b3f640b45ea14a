//! Speed of preprocessing, prefill, decoding and a training step, on the CPU in f32.
//!
//! `cargo bench --bench throughput [-- NAME]` on the model of `benches/config.json` with random weights, so nothing is
//! downloaded. The prompt is 640 tokens: a picture of one tile (24 rows of 24 patches and a newline) amid 40 of text.
//! Throughput is in tokens: those that a picture becomes, that are read, generated, or trained on.

#![allow(clippy::expect_used, reason = "a bench that fails should stop, not be timed")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Var};
use criterion::{Criterion, Throughput, criterion_group};
use haplovl::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, PaddingSide, Sequence};
use haplovl::config::{HaploVlConfig, PreprocessorConfig};
use haplovl::model::HaploVl;
use haplovl::optim::{AdamW, AdamWConfig, Schedule};
use haplovl::processor::{ImageProcessor, RgbImage};
use haplovl::train::{NextToken, Trainer, UpdateRule, on_large_stack};
use haplovl::weights::Parameters;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

// As a program that serves or trains would do: a model's temporaries are large, and the system's allocator gives them
// back to the kernel after each operation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Text tokens before the picture, and as many behind it.
const TEXT: usize = 20;
/// Tokens generated behind the prompt.
const NEW_TOKENS: usize = 32;

fn config() -> HaploVlConfig {
    let json = serde_json::from_str(include_str!("config.json")).expect("benches/config.json is JSON");
    HaploVlConfig::from_json(json).expect("benches/config.json is a configuration")
}

fn picture(width: u32, height: u32) -> RgbImage {
    let mut pixels = vec![0; 3 * (width * height) as usize];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut pixels);
    RgbImage::from_raw(width, height, pixels).expect("as many bytes as the picture needs")
}

fn images(config: &HaploVlConfig) -> ImageProcessor {
    ImageProcessor::new(&PreprocessorConfig::image(&config.vision), &config.vision).expect("a valid configuration")
}

/// Text, a picture, text; the text behind the picture is what a training step learns.
fn prompt(config: &HaploVlConfig) -> MultimodalBatch {
    let visual = images(config).process(&picture(336, 336)).expect("a picture");
    let tokens = visual.tokens(&config.vision).expect("a picture");
    let text = |first: u32| first..first + TEXT as u32;
    let placeholders = std::iter::repeat_n(config.image_token_index, tokens);
    let ignored = std::iter::repeat_n(IGNORE_INDEX, TEXT + tokens);
    let sequence = Sequence {
        input_ids: text(1000).chain(placeholders).chain(text(2000)).collect(),
        labels: Some(ignored.chain(text(2000)).collect()),
        visuals: vec![visual],
    };
    let batch = MultimodalBatch::new(&[sequence], BatchSpec::new(config), PaddingSide::Left, &Device::Cpu);
    let batch = batch.expect("a prompt that fits the model");
    assert_eq!(batch.layout.seq_len, 640, "the ids of these benches say 640");
    batch
}

fn preprocess(c: &mut Criterion) {
    let config = config();
    let (processor, picture) = (images(&config), picture(1280, 960));
    let tokens = processor.process(&picture).and_then(|visual| visual.tokens(&config.vision)).expect("a picture");
    let mut group = c.benchmark_group("preprocess");
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("1280x960", |b| b.iter(|| processor.process(black_box(&picture)).expect("a picture")));
    group.finish();
}

fn inference(c: &mut Criterion) {
    let config = config();
    // Detached from the variables, so that no graph is kept for gradients nobody asks for.
    let vb = Parameters::new().var_builder_where(0, DType::F32, &Device::Cpu, |_| false);
    let model = HaploVl::new(&config, vb).expect("a model");
    let prompt = prompt(&config);
    let length = prompt.layout.seq_len;
    let mut cache = model.cache(1, length + NEW_TOKENS).expect("a cache");

    let mut group = c.benchmark_group("prefill");
    group.sample_size(10).throughput(Throughput::Elements(length as u64));
    group.bench_function("640/f32", |b| {
        b.iter(|| {
            cache.truncate(0);
            model.prefill(black_box(&prompt), &mut cache).expect("logits")
        })
    });
    group.finish();

    cache.truncate(0);
    model.prefill(&prompt, &mut cache).expect("logits");
    let mut group = c.benchmark_group("decode");
    group.sample_size(10).throughput(Throughput::Elements(NEW_TOKENS as u64));
    group.bench_function("640/f32", |b| {
        b.iter(|| {
            cache.truncate(length);
            for id in 0..NEW_TOKENS as u32 {
                black_box(model.decode(&[3000 + id], &mut cache).expect("logits"));
            }
        })
    });
    group.finish();
}

fn train_step(c: &mut Criterion) {
    let config = config();
    let batch = prompt(&config);
    let mut trainer = trainer(&config).expect("a trainer");
    let mut group = c.benchmark_group("train_step");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(batch.layout.seq_len as u64));
    group.bench_function("640/f32", |b| {
        b.iter(|| trainer.step(std::slice::from_ref(black_box(&batch))).expect("a step"));
    });
    group.finish();
}

fn trainer(config: &HaploVlConfig) -> haplovl::Result<Trainer<NextToken>> {
    let parameters = Parameters::new();
    let model = HaploVl::new(config, parameters.var_builder(0, DType::F32, &Device::Cpu))?;
    let parameters: BTreeMap<String, Var> = parameters.iter().collect();
    let optimizer = AdamW::new(&parameters, AdamWConfig::default())?;
    let rule = UpdateRule {
        learning_rate: 1e-5,
        schedule: Schedule::default(),
        // Far from the end however many steps are measured.
        total_steps: 1_000_000,
        max_grad_norm: 1.0,
    };
    Ok(Trainer::new(NextToken::new(model), parameters, optimizer, rule, None))
}

criterion_group!(benches, preprocess, inference, train_step);

/// What `criterion_main!` does, on a stack that is deep enough for the graphs of training.
fn main() {
    let run = || {
        benches();
        Criterion::default().configure_from_args().final_summary();
        Ok(())
    };
    on_large_stack(run).expect("a thread");
}
