//! Serving benchmark: many clients of one engine, over the model of `benches/config.json` with random weights.
//!
//! `cargo bench --bench serving [-- FORMAT]`, with FORMAT one of `f32`, `q8_0` (the default), `q6_k` and `q4_k`. Every
//! prompt has 640 tokens, 600 of them an image. Each case is measured once and takes up to two minutes.
//!
//! | case | what happens | what it shows |
//! |---|---|---|
//! | one after the other | 32 requests about one image in the cache | the speed without batching |
//! | 32 at once | the same requests together | tokens/s of batching |
//! | 32 images at once | each prompt has an image of its own | the time, beside prefill alone plus decoding at the rate above |
//! | streams beside prefills | eight streams run while eight new images are prefilled | time between tokens |
//!
//! `HAPLOVL_LLM=model.gguf cargo bench --bench serving [-- FORMAT]` measures your own language model on text alone: eight
//! clients at once, each with a prompt of its own of 128 tokens; `benches/llama_cpp.mjs` does the same with llama.cpp.

#![allow(clippy::expect_used, reason = "a failing bench should stop instead of being timed")]

#[allow(dead_code, reason = "each bench uses a subset")]
mod common;
#[path = "../examples/common/memory.rs"]
mod memory;

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use haplovl::batch::MultimodalBatch;
use haplovl::config::GenerationConfig;
use haplovl::generation::{EngineConfig, Event, Handle, Request, Scheduler};
use haplovl::options::Quantization;
use haplovl::weights::LlmSource;

const CLIENTS: usize = 32;
const NEW_TOKENS: usize = 64;
/// Clients of a language model, and tokens of the prompt of each.
const LLM_CLIENTS: usize = 8;
const WORDS: usize = 128;
/// Streams that run while as many prompts are prefilled, and their tokens.
const STREAMS: usize = 8;
const STREAM_TOKENS: usize = 256;

fn main() {
    memory::keep();
    let format = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_else(|| "q8_0".into());
    let config = common::config();
    let weights = (format != "f32").then(|| format.parse().expect("f32, q8_0, q6_k or q4_k"));
    if let Some(path) = std::env::var_os("HAPLOVL_LLM") {
        return language_model(&LlmSource::open(path).expect("a language model"), weights);
    }
    let model = Arc::new(common::model(&config, weights));
    let engine = || {
        let config = EngineConfig::default().with_max_batch(CLIENTS).with_kv_cache_bytes(8 << 30);
        Scheduler::start(Arc::clone(&model), |ids: &[u32]| Ok("a".repeat(ids.len())), config).expect("an engine")
    };
    let prompts = common::prompts(&config, CLIENTS + STREAMS);
    println!("{format}, prompts of 640 tokens, {NEW_TOKENS} tokens each");

    let warm = engine();
    answer(submit(&warm, &prompts[0], 1));
    let alone = seconds(|| (0..CLIENTS).for_each(|_| answer(submit(&warm, &prompts[0], NEW_TOKENS))));
    let together = seconds(|| answer_all((0..CLIENTS).map(|_| submit(&warm, &prompts[0], NEW_TOKENS))));
    let rate = |seconds: f64| (CLIENTS * NEW_TOKENS) as f64 / seconds;
    println!("one after the other: {:.1} tokens/s", rate(alone));
    println!("{CLIENTS} at once: {:.1} tokens/s, {:.2} times as many", rate(together), alone / together);

    let cold = engine();
    let prefill = seconds(|| answer_all(prompts[..CLIENTS].iter().map(|prompt| submit(&cold, prompt, 1))));
    let cold = engine();
    let all = seconds(|| answer_all(prompts[..CLIENTS].iter().map(|prompt| submit(&cold, prompt, NEW_TOKENS))));
    println!(
        "{CLIENTS} images at once: {all:.1} s, {:.2} times the prefills alone ({prefill:.1} s) and decoding at once",
        all / (prefill + together)
    );

    let streams = Vec::from_iter((0..STREAMS).map(|_| submit(&warm, &prompts[0], STREAM_TOKENS)));
    let readers = Vec::from_iter(streams.into_iter().map(|stream| thread::spawn(|| gaps(stream))));
    let others = prompts[CLIENTS..].iter().map(|prompt| submit(&warm, prompt, 1));
    let start = Instant::now();
    others.collect::<Vec<_>>().into_iter().for_each(answer);
    let longest = start.elapsed();
    let during = |(at, gap): (Instant, f64)| (at <= start + longest).then_some(gap);
    let all = readers.into_iter().flat_map(|reader| reader.join().expect("a stream"));
    let mut gaps = Vec::from_iter(all.filter_map(during));
    gaps.sort_by(f64::total_cmp);
    let at = |share: f64| 1e3 * gaps[((gaps.len() - 1) as f64 * share) as usize];
    println!(
        "streams beside prefills: {:.0} ms between tokens (median), {:.0} ms (99 %, {:.2} times), {:.0} ms (longest); \
         the last image was prefilled after {:.1} s",
        at(0.5),
        at(0.99),
        at(0.99) / at(0.5),
        at(1.0),
        longest.as_secs_f64()
    );
}

/// Clients of a language model that ask at once, on text alone.
fn language_model(llm: &LlmSource, weights: Option<Quantization>) {
    let config = common::config_with_llm(llm);
    let model = Arc::new(common::model_with_llm(llm, weights));
    for run in 0..4 {
        // A new engine, so that no prompt is in its cache.
        let limits = EngineConfig::default().with_max_batch(LLM_CLIENTS);
        let engine = Scheduler::start(Arc::clone(&model), |ids: &[u32]| Ok("a".repeat(ids.len())), limits);
        let engine = engine.expect("an engine");
        let prompt = |client| common::text_from(&config, 2000 + 100 * client, WORDS);
        let start = Instant::now();
        let handles =
            Vec::from_iter((0..LLM_CLIENTS as u32).map(|client| submit(&engine, &prompt(client), NEW_TOKENS)));
        let clients = handles.into_iter().map(|handle| {
            thread::spawn(move || {
                let mut times = handle.filter(|event| matches!(event, Event::Text { .. })).map(|_| start.elapsed());
                let first = times.next().expect("a token");
                assert_eq!(times.count(), NEW_TOKENS - 1, "a text for each token");
                1e3 * first.as_secs_f64()
            })
        });
        let mut firsts =
            Vec::from_iter(clients.collect::<Vec<_>>().into_iter().map(|client| client.join().expect("a client")));
        let seconds = start.elapsed().as_secs_f64();
        firsts.sort_by(f64::total_cmp);
        println!(
            "{}: {LLM_CLIENTS} clients, {WORDS} tokens each: {:.1} tokens/s, first token after {:.0} to {:.0} ms",
            if run == 0 { "warm-up".to_string() } else { format!("run {run}") },
            (LLM_CLIENTS * NEW_TOKENS) as f64 / seconds,
            firsts[0],
            firsts[LLM_CLIENTS - 1],
        );
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn submit(engine: &Scheduler, prompt: &MultimodalBatch, tokens: usize) -> Handle {
    let generation = GenerationConfig { max_new_tokens: Some(tokens), ..GenerationConfig::default() };
    engine.submit(Request::new(prompt.clone(), generation), Ok).expect("room in the queue")
}

fn answer(handle: Handle) {
    handle.answer().expect("an answer");
}

/// Submits all before it waits for the first.
fn answer_all(handles: impl Iterator<Item = Handle>) {
    Vec::from_iter(handles).into_iter().for_each(answer);
}

/// Times of a stream's texts, one a token, and the seconds since the one before.
fn gaps(stream: Handle) -> Vec<(Instant, f64)> {
    let texts = stream.filter(|event| matches!(event, Event::Text { .. }));
    let times = Vec::from_iter(texts.map(|_| Instant::now()));
    assert_eq!(times.len(), STREAM_TOKENS, "a text for each token");
    times.windows(2).map(|pair| (pair[1], (pair[1] - pair[0]).as_secs_f64())).collect()
}
