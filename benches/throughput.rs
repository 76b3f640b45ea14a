//! Speed of preprocessing, prefill, decoding and a training step, on the CPU in f32.
//!
//! `cargo bench --bench throughput [-- NAME]` on the model of `benches/config.json` with random weights, so nothing is
//! downloaded. The prompt is 640 tokens: a picture of one tile (24 rows of 24 patches and a newline) amid 40 of text.
//! Throughput is in tokens: those that a picture becomes, that are read, generated, or trained on.

#![allow(clippy::expect_used, reason = "a bench that fails should stop, not be timed")]

#[allow(dead_code, reason = "each bench uses its part")]
mod common;
#[path = "../examples/common/memory.rs"]
mod memory;

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device};
use criterion::{Criterion, Throughput, criterion_group};
use haplovl::model::HaploVl;
use haplovl::train::on_large_stack;
use haplovl::weights::Parameters;

use common::{config, images, picture, prompt, trainer};

/// Tokens generated behind the prompt.
const NEW_TOKENS: usize = 32;

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
    let mut group = c.benchmark_group("train_step");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(batch.layout.seq_len as u64));
    for (name, checkpointing) in [("640/f32", false), ("640/f32_checkpointed", true)] {
        let mut trainer = trainer(&config, checkpointing).expect("a trainer");
        group.bench_function(name, |b| {
            b.iter(|| trainer.step(std::slice::from_ref(black_box(&batch))).expect("a step"));
        });
    }
    group.finish();
}

criterion_group!(benches, preprocess, inference, train_step);

/// What `criterion_main!` does, on a stack that is deep enough for the graphs of training.
fn main() {
    memory::keep();
    let run = || {
        benches();
        Criterion::default().configure_from_args().final_summary();
        Ok(())
    };
    on_large_stack(run).expect("a thread");
}
