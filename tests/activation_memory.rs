//! Peak memory of a training step, counted by the allocator: deterministic, unlike resident memory.

#![allow(missing_docs, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device, Var};
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence};
use haplovl::config::{DecoderConfig, HaploVlConfig};
use haplovl::model::HaploVl;
use haplovl::nn::Activations;
use haplovl::optim::Gradients;
use haplovl::train::{NextToken, Objective};
use haplovl::weights::Parameters;

/// Bytes in use, and their peak since the last reset.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Allocator that counts the bytes in use.
struct Counting;

// SAFETY: every call is forwarded to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's request, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above; the block comes from `alloc`, and so from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn config(layers: usize) -> HaploVlConfig {
    let tiny = HaploVlConfig::tiny();
    let post_decoder = DecoderConfig {
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: layers,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        ..tiny.post_decoder
    };
    HaploVlConfig { post_decoder, ..tiny }
}

/// Measures the peak bytes of a forward and backward pass beyond the parameters, and the bytes of the gradients.
fn peak(layers: usize, activations: Activations) -> (f64, f64) {
    let config = config(layers);
    let parameters = Parameters::new();
    let model = HaploVl::new(&config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
    let objective = NextToken::new(model.with_activations(activations));
    let parameters: BTreeMap<String, Var> = parameters.iter().collect();
    // With this many tokens, activations take about as much memory as gradients.
    let input_ids: Vec<u32> = (1..90).collect();
    let sequence = Sequence { labels: Some(input_ids.clone()), input_ids, visuals: vec![] };
    let batch = MultimodalBatch::new(&[sequence], BatchSpec::new(&config), PaddingSide::Right, &Device::Cpu).unwrap();
    let counts = objective.counts(&batch).unwrap();
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let gradients = Gradients::of(objective.loss(&batch, &counts).unwrap().total, &parameters).unwrap();
    let bytes = gradients.iter().map(|(_, gradient)| 4 * gradient.elem_count()).sum::<usize>();
    ((PEAK.load(Relaxed) - before) as f64, bytes as f64)
}

#[test]
fn released_and_recomputed_activations_lower_peak_memory() {
    // Warm-up, since the first pass allocates thread pools and tables.
    peak(1, Activations::Kept);
    let [kept, released, recomputed] =
        [Activations::Kept, Activations::Released, Activations::Recomputed].map(|activations| peak(8, activations).0);
    let gradients = peak(8, Activations::Kept).1;
    let found = format!("kept {kept}, released {released}, recomputed {recomputed}, gradients {gradients}");
    assert!(released < 0.75 * kept, "{found}");
    assert!(recomputed < 1.4 * gradients, "{found}");
    // With recomputation, a layer adds only its gradients and its input to the peak.
    let [(short, fewer), (long, more)] = [4, 12].map(|layers| peak(layers, Activations::Recomputed));
    assert!(long - short < 1.2 * (more - fewer), "{short} and {long} for gradients of {fewer} and {more}");
}
