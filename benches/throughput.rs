//! Throughput benchmark of preprocessing, prefill, decoding, training steps, loading and single operations on the CPU.
//!
//! `cargo bench --bench throughput [-- NAME]` runs the model of `benches/config.json` with random weights, so nothing
//! is downloaded. The prompt has 640 tokens: an image of one tile (24 rows of 24 patches and a newline) and 40 text
//! tokens.
//! `HAPLOVL_LLM=model.gguf cargo bench --bench throughput -- llm` measures your own language model on text alone.
//! Throughput is in tokens (image tokens produced, prompt tokens, generated tokens, tokens trained on); of single
//! operations, in floating-point operations.

#![allow(clippy::expect_used, reason = "a failing bench should stop instead of being timed")]

#[cfg(feature = "builtin")]
#[path = "common/caption_folder.rs"]
mod caption_folder;
#[allow(dead_code, reason = "each bench uses a subset")]
mod common;
#[path = "../examples/common/memory.rs"]
mod memory;

use std::cell::{LazyCell, RefCell};
use std::hint::black_box;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use candle_core::{DType, Device, Tensor};
use common::{
    TEXT, adapted_model, adapter_settings, adapter_trainer, config, config_with_llm, image_processor, model,
    model_with_llm, prompt, random_image, report, text, texts, trainer,
};
use criterion::{Bencher, Criterion, Throughput, criterion_group};
use haplovl::batch::MultimodalBatch;
use haplovl::model::{Cache, HaploVl, KvChunk, SequenceCache};
use haplovl::nn::ops::{self, KeyRanges, QuantizedWeight};
use haplovl::options::{Precision, Quantization};
use haplovl::train::on_large_stack;
use haplovl::weights::{LlmSource, Parameters, SaveOptions, open_weights, save_safetensors};

/// Number of tokens generated after the prompt.
const NEW_TOKENS: usize = 32;
/// Number of sequences in a batched decode.
const SEQUENCES: usize = 8;
/// Number of tokens of a text-only prompt.
const WORDS: usize = 512;

fn preprocess(c: &mut Criterion) {
    let config = config();
    let (processor, image) = (image_processor(&config), random_image(1280, 960));
    let tokens = processor.process(&image).and_then(|visual| visual.tokens(&config.vision)).expect("an image");
    let mut group = c.benchmark_group("preprocess");
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("1280x960", |b| b.iter(|| processor.process(black_box(&image)).expect("an image")));
    group.finish();
}

/// Weight formats of the benched models: f32 or quantised.
const FORMATS: [Option<Quantization>; 4] =
    [None, Some(Quantization::Q8_0), Some(Quantization::Q6K), Some(Quantization::Q4K)];

fn name(format: Option<Quantization>) -> String {
    format.map_or("f32".into(), |kind| kind.to_string())
}

/// Benches prefill with f32 weights and bf16 matmuls.
fn prefill_bf16(c: &mut Criterion) {
    let model = LazyCell::new(|| model(&config(), None).with_precision(Precision::Bf16));
    let prompt = prompt(&config(), 1);
    let length = prompt.layout.seq_len;
    let cache = LazyCell::new(|| RefCell::new(model.cache(1, length).expect("a cache")));
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10).throughput(Throughput::Elements(length as u64));
    group.bench_function(format!("{length}/bf16"), |b| bench_prefill(b, &model, &prompt, &mut cache.borrow_mut()));
    group.finish();
}

fn inference(c: &mut Criterion) {
    for format in FORMATS {
        // Built only if one of the benches below is selected.
        let model = LazyCell::new(|| model(&config(), format));
        prefill(c, format, &model);
        for rows in [1, SEQUENCES] {
            decode(c, format, rows, &model);
            decode_sequences(c, format, rows, &model);
        }
        decode_rows(c, format, &model);
    }
}

fn prefill(c: &mut Criterion, format: Option<Quantization>, model: &impl Deref<Target = HaploVl>) {
    let prompt = prompt(&config(), 1);
    let length = prompt.layout.seq_len;
    let cache = LazyCell::new(|| RefCell::new(model.cache(1, length).expect("a cache")));
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10).throughput(Throughput::Elements(length as u64));
    group.bench_function(format!("{length}/{}", name(format)), |b| {
        bench_prefill(b, model, &prompt, &mut cache.borrow_mut())
    });
    group.bench_function(format!("{length}_in_chunks/{}", name(format)), |b| {
        b.iter(|| prefilled_chunks(model, black_box(&prompt)))
    });
    // A follow-up question about an image that is already in the KV cache.
    let question = text(&config(), TEXT);
    let cache = prefilled_cache(model, &prompt, length);
    group.throughput(Throughput::Elements(TEXT as u64));
    group.bench_function(format!("{TEXT}_after_{}/{}", length - TEXT, name(format)), |b| {
        let cache = &mut *cache.borrow_mut();
        b.iter(|| {
            cache.truncate(length - TEXT);
            model.prefill(black_box(&question), cache).expect("logits")
        })
    });
    group.finish();
}

fn decode(c: &mut Criterion, format: Option<Quantization>, rows: usize, model: &impl Deref<Target = HaploVl>) {
    let prompt = prompt(&config(), rows);
    let length = prompt.layout.seq_len;
    let cache = prefilled_cache(model, &prompt, length + NEW_TOKENS);
    let by_rows = if rows > 1 { format!("x{rows}") } else { String::new() };
    let mut group = c.benchmark_group("decode");
    group.sample_size(10).throughput(Throughput::Elements((rows * NEW_TOKENS) as u64));
    group.bench_function(format!("{length}{by_rows}/{}", name(format)), |b| {
        bench_decode(b, model, rows, length, &mut cache.borrow_mut())
    });
    group.finish();
}

/// Kinds of adapters.
const ADAPTERS: [(&str, bool); 2] = [("lora", false), ("dora", true)];

/// Benches decoding with an unmerged LoRA or DoRA adapter of rank 16 on all linear layers; beside it, `decode/640` is
/// without.
fn decode_adapted(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for (format, (kind, use_dora)) in FORMATS.into_iter().flat_map(|format| ADAPTERS.map(|kind| (format, kind))) {
        let model = LazyCell::new(|| adapted_model(&config(), format, adapter_settings(use_dora)));
        for rows in [1, SEQUENCES] {
            let prompt = prompt(&config(), rows);
            let length = prompt.layout.seq_len;
            let cache = prefilled_cache(&model, &prompt, length + NEW_TOKENS);
            group.sample_size(10).throughput(Throughput::Elements((rows * NEW_TOKENS) as u64));
            group.bench_function(format!("{length}x{rows}_{kind}/{}", name(format)), |b| {
                bench_decode(b, &model, rows, length, &mut cache.borrow_mut())
            });
        }
    }
    group.finish();
}

/// Benches sequences that each have a KV cache of their own, as in serving, and sequences that share that of their prompt.
fn decode_sequences(
    c: &mut Criterion,
    format: Option<Quantization>,
    rows: usize,
    model: &impl Deref<Target = HaploVl>,
) {
    let prompt = prompt(&config(), 1);
    let length = prompt.layout.seq_len;
    let own = LazyCell::new(|| Vec::from_iter((0..rows).map(|_| prefilled_chunks(model, &prompt))));
    let shared = LazyCell::new(|| vec![prefilled_chunks(model, &prompt); rows]);
    let mut group = c.benchmark_group("decode_sequences");
    group.sample_size(10).throughput(Throughput::Elements((rows * NEW_TOKENS) as u64));
    let decode = |chunks: &[Vec<_>]| {
        let sequence = |chunks: &Vec<_>| after_chunks(model, chunks, length + NEW_TOKENS);
        let mut sequences: Vec<SequenceCache> = chunks.iter().map(sequence).collect();
        for id in 0..NEW_TOKENS as u32 {
            let mut sequences: Vec<&mut SequenceCache> = sequences.iter_mut().collect();
            black_box(model.decode_sequences(&vec![3000 + id; rows], &mut sequences).expect("logits"));
        }
    };
    group.bench_function(format!("{length}x{rows}/{}", name(format)), |b| b.iter(|| decode(&own)));
    if rows > 1 {
        group.bench_function(format!("{length}x{rows}_shared/{}", name(format)), |b| b.iter(|| decode(&shared)));
    }
    group.finish();
}

/// Prefills a prompt chunk by chunk.
fn prefilled_chunks(model: &HaploVl, prompt: &MultimodalBatch) -> Vec<Arc<KvChunk>> {
    let mut sequence = model.sequence_cache(prompt.layout.seq_len).expect("a cache");
    for chunk in prompt.chunks().expect("chunks") {
        let mut prefill = model.start_prefill(&chunk, &sequence).expect("a prefill");
        while model.advance_prefill(&mut prefill, &mut sequence).expect("a work item").is_none() {}
        sequence.freeze().expect("a chunk");
    }
    sequence.chunks().to_vec()
}

fn after_chunks(model: &HaploVl, chunks: &[Arc<KvChunk>], capacity: usize) -> SequenceCache {
    let mut sequence = model.sequence_cache(capacity).expect("a cache");
    chunks.iter().for_each(|chunk| sequence.push(chunk).expect("room"));
    sequence
}

/// Benches steps of several sequences after a short text, where matmuls take most of the time.
fn decode_rows(c: &mut Criterion, format: Option<Quantization>, model: &impl Deref<Target = HaploVl>) {
    let mut group = c.benchmark_group("decode");
    for rows in [1, 2, 4, 8, 16, 32] {
        let prompt = texts(&config(), TEXT, rows);
        let cache = prefilled_cache(model, &prompt, TEXT + NEW_TOKENS);
        group.sample_size(10).throughput(Throughput::Elements((rows * NEW_TOKENS) as u64));
        group.bench_function(format!("rows/{rows}/{}", name(format)), |b| {
            bench_decode(b, model, rows, TEXT, &mut cache.borrow_mut())
        });
    }
    group.finish();
}

/// Times prefill of a whole prompt with an empty KV cache.
fn bench_prefill(b: &mut Bencher<'_>, model: &HaploVl, prompt: &MultimodalBatch, cache: &mut Cache) {
    b.iter(|| {
        cache.truncate(0);
        model.prefill(black_box(prompt), cache).expect("logits")
    });
}

/// Times decoding of [`NEW_TOKENS`] tokens after a prompt of `length` positions.
fn bench_decode(b: &mut Bencher<'_>, model: &HaploVl, rows: usize, length: usize, cache: &mut Cache) {
    b.iter(|| {
        cache.truncate(length);
        for id in 0..NEW_TOKENS as u32 {
            black_box(model.decode(&vec![3000 + id; rows], cache).expect("logits"));
        }
    });
}

/// Benches a language model as the post-decoder, on text only, if `HAPLOVL_LLM` names a model folder or a GGUF file.
fn language_model(c: &mut Criterion) {
    let Some(path) = std::env::var_os("HAPLOVL_LLM") else { return };
    let llm = LlmSource::open(path).expect("a language model");
    let prompt = text(&config_with_llm(&llm), WORDS);
    let mut group = c.benchmark_group("llm");
    group.sample_size(10);
    for format in FORMATS {
        let model = LazyCell::new(|| model_with_llm(&llm, format));
        let cache = prefilled_cache(&model, &prompt, WORDS + NEW_TOKENS);
        let format = name(format);
        group.throughput(Throughput::Elements(WORDS as u64));
        group.bench_function(format!("prefill/{WORDS}/{format}"), |b| {
            bench_prefill(b, &model, &prompt, &mut cache.borrow_mut())
        });
        group.throughput(Throughput::Elements(NEW_TOKENS as u64));
        group.bench_function(format!("decode/{WORDS}/{format}"), |b| {
            bench_decode(b, &model, 1, WORDS, &mut cache.borrow_mut())
        });
    }
    group.finish();
}

/// Creates a KV cache that holds a prompt, lazily and once, since criterion calls a bench's closure many times.
fn prefilled_cache<'a>(
    model: &'a impl Deref<Target = HaploVl>,
    prompt: &'a MultimodalBatch,
    capacity: usize,
) -> LazyCell<RefCell<Cache>, impl FnOnce() -> RefCell<Cache> + 'a> {
    LazyCell::new(move || {
        let mut cache = model.cache(prompt.batch_size(), capacity).expect("a cache");
        model.prefill(prompt, &mut cache).expect("logits");
        RefCell::new(cache)
    })
}

/// Benches the attention of one post-decoder layer over all keys, by number of queries.
fn attention(c: &mut Criterion) {
    let (keys, heads, kv_heads, head_dim) = (640, 16, 8, 64);
    let random = |shape| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor");
    let (k, v) = (random((1, keys, kv_heads, head_dim)), random((1, keys, kv_heads, head_dim)));
    let mut group = c.benchmark_group("ops");
    group.sample_size(20);
    for queries in [1, keys] {
        let q = random((1, queries, heads, head_dim));
        let ranges = KeyRanges::full(1, queries, keys);
        group.throughput(Throughput::Elements((4 * queries * keys * heads * head_dim) as u64));
        group.bench_function(format!("attention/{queries}x{keys}"), |b| {
            b.iter(|| ops::attention(black_box(&q), &k, &v, &ranges, 0.125).expect("attention"))
        });
    }
    group.finish();
}

/// Benches one matmul of the model's MLP, by weight format and number of input rows.
fn linear(c: &mut Criterion) {
    let (inputs, outputs) = (1024, 2816);
    let random = |shape| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor");
    let weight = random((outputs, inputs));
    let mut group = c.benchmark_group("ops");
    group.sample_size(20);
    for rows in [1, 8, 640] {
        let x = random((rows, inputs));
        group.throughput(Throughput::Elements((2 * rows * inputs * outputs) as u64));
        for (name, precision) in [("f32", Precision::Full), ("bf16", Precision::Bf16)] {
            group.bench_function(format!("linear/{rows}/{name}"), |b| {
                b.iter(|| ops::linear_with(black_box(&x), &weight, None, precision).expect("a product"))
            });
        }
        for kind in Quantization::ALL {
            let weight = QuantizedWeight::quantize(&weight, kind).expect("a weight");
            group.bench_function(format!("linear/{rows}/{kind}"), |b| {
                b.iter(|| ops::quantized_linear(black_box(&x), &weight, None).expect("a product"))
            });
        }
    }
    group.finish();
}

/// Benches loading a model from a safetensors folder, with and without quantisation.
fn load(c: &mut Criterion) {
    let config = config();
    let folder = LazyCell::new(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let parameters = Parameters::new();
        HaploVl::new(&config, parameters.var_builder(0, DType::F32, &Device::Cpu)).expect("a model");
        save_safetensors(folder.path(), &parameters.tensors(), &SaveOptions::default()).expect("space on the disk");
        folder
    });
    let mut group = c.benchmark_group("load");
    group.sample_size(10);
    for format in [None, Some(Quantization::Q8_0)] {
        group.bench_function(format!("safetensors/{}", name(format)), |b| {
            b.iter(|| {
                let weights = open_weights(folder.path()).expect("the folder");
                HaploVl::from_source(&config, weights, format, DType::F32, &Device::Cpu).expect("a model")
            })
        });
    }
    group.finish();
}

fn train_step(c: &mut Criterion) {
    let config = config();
    let batch = prompt(&config, 1);
    let mut group = c.benchmark_group("train_step");
    group.sample_size(10);
    group.throughput(Throughput::Elements(batch.layout.seq_len as u64));
    for (name, checkpointing, precision) in [
        ("640/f32", false, Precision::Full),
        ("640/f32_checkpointed", true, Precision::Full),
        ("640/bf16", false, Precision::Bf16),
        ("640/bf16_checkpointed", true, Precision::Bf16),
    ] {
        let trainer = LazyCell::new(|| RefCell::new(trainer(&config, checkpointing, precision).expect("a trainer")));
        group.bench_function(name, |b| {
            let trainer = &mut *trainer.borrow_mut();
            b.iter(|| trainer.step(std::slice::from_ref(black_box(&batch))).expect("a step"));
        });
    }
    // Adapters of rank 16 on all linear layers, over frozen weights in f32 or quantised.
    for (format, (kind, use_dora)) in FORMATS.into_iter().flat_map(|format| ADAPTERS.map(|kind| (format, kind))) {
        for checkpointing in [false, true] {
            let settings = adapter_settings(use_dora);
            let trainer = LazyCell::new(|| RefCell::new(adapter_trainer(&config, format, checkpointing, settings)));
            let suffix = if checkpointing { "_checkpointed" } else { "" };
            group.bench_function(format!("640/{kind}_{}{suffix}", name(format)), |b| {
                let trainer = &mut *trainer.borrow_mut();
                b.iter(|| trainer.step(std::slice::from_ref(black_box(&batch))).expect("a step"));
            });
        }
    }
    group.finish();
}

/// Benches batch inference, which needs the built-in model.
fn batch_inference(c: &mut Criterion) {
    #[cfg(feature = "builtin")]
    {
        caption_folder::caption_folder(c);
        caption_folder::answers(c);
    }
    let _ = c;
}

criterion_group!(
    benches,
    preprocess,
    linear,
    attention,
    inference,
    decode_adapted,
    batch_inference,
    prefill_bf16,
    language_model,
    train_step,
    load
);

/// Runs all benches as `criterion_main!` does, but on a stack deep enough for the graphs of training.
fn main() {
    memory::keep();
    let start = SystemTime::now();
    let run = move || {
        benches();
        Criterion::default().configure_from_args().final_summary();
        report::write(start);
        Ok(())
    };
    on_large_stack(run).expect("a thread");
}
