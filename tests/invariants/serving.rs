//! Invariants of serving: chunks, shared keys and values, and sequences decoded together.

use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence};
use haplovl::config::{DecoderConfig, HaploVlConfig};
use haplovl::model::{HaploVl, KvChunk, SequenceCache};
use haplovl::options::Quantization;

use crate::{
    batch, batch_of_one, bits, configs, conversations, empty_sequence, image, max_diff, model, parameters, push_text,
    push_visual, video,
};

/// Rounding of sums in another order; the worst observed is 4e-6 on logits of order 1 to 10.
const CLOSE: f32 = 2e-5;

fn long_context(config: HaploVlConfig) -> HaploVlConfig {
    HaploVlConfig { max_position_embeddings: 4096, ..config }
}

fn text(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| 1 + (i * 7 + i * i * seed) % 90).collect()
}

/// Prompts with several chunks: text only, images between text, images alone, and a video of more positions than a work
/// item takes.
fn prompts(config: &HaploVlConfig) -> Vec<Sequence> {
    let mut prompts = conversations(config);
    let [mut long, mut mixed, mut images, mut frames] = std::array::from_fn(|_| empty_sequence());
    push_text(&mut long, &text(300, 1));
    push_text(&mut mixed, &text(140, 2));
    push_visual(&mut mixed, config, image(config, 90, 130, 5));
    push_text(&mut mixed, &text(128, 3));
    push_visual(&mut images, config, image(config, 28, 28, 6));
    push_visual(&mut images, config, image(config, 150, 60, 7));
    push_text(&mut frames, &text(3, 4));
    push_visual(&mut frames, config, video(config, 200, 8));
    push_text(&mut frames, &text(2, 5));
    prompts.extend([long, mixed, images, frames]);
    prompts
}

/// A model whose weights are no variables, as one from a file: attention to f16 keys is composed of other operations
/// while a gradient is tracked.
fn untracked_model(config: &HaploVlConfig) -> HaploVl {
    let tensors = parameters(config).tensors().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect();
    HaploVl::new(config, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap()
}

fn prefill(model: &HaploVl, chunk: &MultimodalBatch, sequence: &mut SequenceCache) -> Tensor {
    let mut prefill = model.start_prefill(chunk, sequence).unwrap();
    loop {
        if let Some(logits) = model.advance_prefill(&mut prefill, sequence).unwrap() {
            return logits;
        }
    }
}

/// Prefills the chunks of a prompt, of which the last one stays in the tail. Returns the sequence, the logits after the
/// prompt, and the shared chunks.
fn prefilled(model: &HaploVl, prompt: &Sequence, room: usize) -> (SequenceCache, Tensor, Vec<Arc<KvChunk>>) {
    let mut sequence = model.sequence_cache(prompt.len() + room).unwrap();
    let chunks = batch_of_one(model.config(), prompt).chunks().unwrap();
    let (last, others) = chunks.split_last().unwrap();
    let freeze = |chunk| {
        prefill(model, chunk, &mut sequence);
        sequence.freeze().unwrap()
    };
    let shared = others.iter().map(freeze).collect();
    let logits = prefill(model, last, &mut sequence);
    (sequence, logits, shared)
}

fn last_logits(model: &HaploVl, sequence: &Sequence) -> Tensor {
    let all = model.forward(&batch_of_one(model.config(), sequence)).unwrap();
    all.i((0, sequence.len() - 1)).unwrap()
}

/// The most likely text token; the last ids are placeholders of images.
fn greedy(logits: &Tensor) -> u32 {
    logits.narrow(0, 0, 94).unwrap().argmax(0).unwrap().to_scalar().unwrap()
}

#[test]
fn chunks_end_after_visuals_and_every_128_text_positions() {
    let config = long_context(HaploVlConfig::tiny());
    let lengths = |parts: &[Result<usize, haplovl::batch::Visual>]| {
        let mut prompt = empty_sequence();
        for part in parts {
            match part {
                Ok(len) => push_text(&mut prompt, &text(*len, 1)),
                Err(visual) => push_visual(&mut prompt, &config, visual.clone()),
            }
        }
        let chunks = batch_of_one(&config, &prompt).chunks().unwrap();
        let ids = |chunk: &MultimodalBatch| chunk.input_ids.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(chunks.iter().flat_map(ids).collect::<Vec<_>>(), prompt.input_ids);
        assert_eq!(chunks.iter().map(|chunk| chunk.visuals.len()).sum::<usize>(), prompt.visuals.len());
        Vec::from_iter(chunks.iter().map(|chunk| {
            chunk.validate().unwrap();
            chunk.layout.seq_len
        }))
    };
    let (picture, clip) = (image(&config, 28, 28, 1), video(&config, 3, 2));
    let [p, c] = [&picture, &clip].map(|visual| visual.tokens(&config.vision).unwrap());
    assert_eq!(lengths(&[Ok(1)]), [1]);
    assert_eq!(lengths(&[Ok(128)]), [128]);
    assert_eq!(lengths(&[Ok(129)]), [128, 1]);
    assert_eq!(lengths(&[Ok(300)]), [128, 128, 44]);
    assert_eq!(lengths(&[Err(picture.clone())]), [p]);
    assert_eq!(lengths(&[Err(picture.clone()), Err(clip.clone()), Ok(2)]), [p, c, 2]);
    assert_eq!(lengths(&[Ok(130), Err(picture.clone()), Ok(128)]), [128, 2 + p, 128]);
    assert_eq!(lengths(&[Ok(128), Err(clip), Ok(130), Err(picture)]), [128, c, 128, 2 + p]);
}

#[test]
fn chunked_prompts_and_their_greedy_answers_equal_the_uncached_model() {
    for (name, config) in configs() {
        let config = long_context(config);
        let model = model(&config);
        for (n, mut prompt) in prompts(&config).into_iter().enumerate() {
            let (mut sequence, mut logits, _) = prefilled(&model, &prompt, 4);
            for step in 0..5 {
                let expected = last_logits(&model, &prompt);
                let error = max_diff(&logits, &expected);
                assert!(error < CLOSE, "{name}, prompt {n}, step {step}: off by {error}");
                assert_eq!((greedy(&logits), sequence.len()), (greedy(&expected), prompt.len()), "{name}, prompt {n}");
                let id = greedy(&logits);
                push_text(&mut prompt, &[id]);
                if step < 4 {
                    logits = model.decode_sequences(&[id], &mut [&mut sequence]).unwrap().squeeze(0).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_crowd_of_sequences_decodes_as_each_alone() {
    let (_, config) = configs().into_iter().next().unwrap();
    let model = model(&config);
    let prompt = &prompts(&config)[0];
    let mut crowd = Vec::from_iter((0..40).map(|_| prefilled(&model, prompt, 1).0));
    let ids = Vec::from_iter(10..50);
    let found = model.decode_sequences(&ids, &mut crowd.iter_mut().collect::<Vec<_>>()).unwrap();
    for i in [0, 31, 32, 39] {
        let mut alone = prefilled(&model, prompt, 1).0;
        let expected = model.decode_sequences(&ids[i..=i], &mut [&mut alone]).unwrap();
        assert_eq!(bits(&found.narrow(0, i, 1).unwrap()), bits(&expected), "sequence {i}");
    }
}

#[test]
fn sequences_decoded_together_equal_each_alone() {
    for (name, config) in configs() {
        let config = long_context(config);
        for model in [model(&config), untracked_model(&config).with_cache_dtype(DType::F16)] {
            let all = || Vec::from_iter(prompts(&config).iter().map(|prompt| prefilled(&model, prompt, 3).0));
            let (mut alone, mut pairs, mut together) = (all(), all(), all());
            for step in 0..3 {
                let ids: Vec<u32> = (0..together.len() as u32).map(|i| 10 + 5 * i + step).collect();
                let found = model.decode_sequences(&ids, &mut together.iter_mut().collect::<Vec<_>>()).unwrap();
                for (i, sequence) in alone.iter_mut().enumerate() {
                    let expected = model.decode_sequences(&ids[i..i + 1], &mut [sequence]).unwrap();
                    let found = found.narrow(0, i, 1).unwrap();
                    assert_eq!(bits(&found), bits(&expected), "{name}, sequence {i}, step {step}");
                }
                for (i, pair) in pairs.chunks_exact_mut(2).enumerate() {
                    let mut pair: Vec<&mut SequenceCache> = pair.iter_mut().collect();
                    let expected = model.decode_sequences(&ids[2 * i..2 * i + 2], &mut pair).unwrap();
                    let found = found.narrow(0, 2 * i, 2).unwrap();
                    assert_eq!(bits(&found), bits(&expected), "{name}, pair {i}, step {step}");
                }
            }
        }
    }
}

#[test]
fn chunks_of_another_sequence_are_shared_and_equal_own_ones_to_the_bit() {
    for (name, config) in configs() {
        let config = long_context(config);
        let model = model(&config);
        for prompt in prompts(&config) {
            let (mut own, own_logits, chunks) = prefilled(&model, &prompt, 2);
            let mut other = model.sequence_cache(prompt.len() + 2).unwrap();
            chunks.iter().for_each(|chunk| other.push(chunk).unwrap());
            assert!(other.chunks().iter().zip(own.chunks()).all(|(a, b)| Arc::ptr_eq(a, b)));
            let last = batch_of_one(&config, &prompt).chunks().unwrap().pop().unwrap();
            assert_eq!(bits(&prefill(&model, &last, &mut other)), bits(&own_logits), "{name}");
            for (step, id) in [4, 5].into_iter().enumerate() {
                let found = model.decode_sequences(&[id], &mut [&mut other]).unwrap();
                let expected = model.decode_sequences(&[id], &mut [&mut own]).unwrap();
                assert_eq!(bits(&found), bits(&expected), "{name}, step {step}");
            }
            for chunk in &chunks {
                assert_eq!(chunk.bytes(), chunk.len() * model.kv_bytes_per_position());
            }
        }
    }
}

#[test]
fn unfrozen_chunks_equal_frozen_ones_to_the_bit() {
    let config = long_context(HaploVlConfig::tiny());
    let model = model(&config);
    for prompt in prompts(&config) {
        let (_, expected, _) = prefilled(&model, &prompt, 0);
        let mut sequence = model.sequence_cache(prompt.len()).unwrap();
        let chunks = batch_of_one(&config, &prompt).chunks().unwrap();
        let found = chunks.iter().map(|chunk| prefill(&model, chunk, &mut sequence)).last().unwrap();
        assert!(sequence.chunks().is_empty());
        assert_eq!(bits(&found), bits(&expected));
    }
}

#[test]
fn quantised_models_with_f16_caches_equal_one_cache_that_grows_chunk_by_chunk() {
    let wide = |d: DecoderConfig| DecoderConfig { hidden_size: 256, intermediate_size: 256, head_dim: Some(16), ..d };
    let tiny = long_context(HaploVlConfig::tiny());
    let config =
        HaploVlConfig { pre_decoder: wide(tiny.pre_decoder), post_decoder: wide(tiny.post_decoder.clone()), ..tiny };
    for kind in [Quantization::Q8_0, Quantization::Q6K, Quantization::Q4K] {
        let mut model = untracked_model(&config).with_cache_dtype(DType::F16);
        model.try_for_each_linear(|_, linear| linear.quantize(kind)).unwrap();
        for prompt in prompts(&config).into_iter().skip(3) {
            let (mut sequence, logits, _) = prefilled(&model, &prompt, 1);
            let mut cache = model.cache(1, prompt.len() + 1).unwrap();
            let chunks = batch_of_one(&config, &prompt).chunks().unwrap();
            let whole = chunks.iter().map(|chunk| model.prefill(chunk, &mut cache).unwrap()).last().unwrap();
            let decoded = model.decode_sequences(&[7], &mut [&mut sequence]).unwrap();
            let expected = model.decode(&[7], &mut cache).unwrap();
            assert_eq!(bits(&logits), bits(&whole), "{kind}, {} positions", prompt.len());
            assert_eq!(bits(&decoded), bits(&expected), "{kind}, {} positions", prompt.len());
        }
    }
}

#[test]
fn full_sequences_and_wrong_input_are_errors_and_change_nothing() {
    let config = HaploVlConfig::tiny();
    let model = model(&config);
    let prompt = &conversations(&config)[0];
    let (mut full, ..) = prefilled(&model, prompt, 0);
    let (mut open, ..) = prefilled(&model, prompt, 1);
    let (mut expected, ..) = prefilled(&model, prompt, 1);
    let decode = |ids: &[u32], sequences: &mut [&mut SequenceCache]| {
        model.decode_sequences(ids, sequences).unwrap_err().to_string()
    };
    assert!(decode(&[1, 1], &mut [&mut open, &mut full]).contains("cannot take 1 more"));
    assert!(decode(&[1, 2], &mut [&mut open]).contains("2 token ids for 1 sequences"));
    assert!(decode(&[], &mut []).contains("0 token ids"));
    assert!(decode(&[96], &mut [&mut open]).contains("vocabulary"));
    let rows = batch(&config, &conversations(&config), PaddingSide::Left);
    let start = |batch: &MultimodalBatch, sequence| model.start_prefill(batch, sequence).unwrap_err().to_string();
    assert!(start(&rows, &open).contains("expected one row"));
    assert!(rows.chunks().unwrap_err().to_string().contains("expected one row"));
    assert!(start(&rows.rows(2..3).unwrap(), &full).contains("cannot take"));
    assert!(model.sequence_cache(257).unwrap_err().to_string().contains("context"));
    // A chunk cannot follow positions that are not frozen, nor exceed the capacity.
    let chunk = prefilled(&model, prompt, 0).2.remove(0);
    assert!(open.push(&chunk).unwrap_err().to_string().contains("cannot take"));
    let mut roomy = prefilled(&model, prompt, 100).0;
    assert!(roomy.push(&chunk).unwrap_err().to_string().contains("freeze"));
    let found = model.decode_sequences(&[1], &mut [&mut open]).unwrap();
    assert_eq!(bits(&found), bits(&model.decode_sequences(&[1], &mut [&mut expected]).unwrap()));
}

#[test]
fn a_prefill_given_up_leaves_the_sequence_as_it_was() {
    let config = long_context(HaploVlConfig::tiny());
    let model = model(&config);
    let prompts = prompts(&config);
    let chunk = batch_of_one(&config, &prompts[2]).chunks().unwrap().remove(0);
    let expected = prefilled(&model, &prompts[3], 1);
    for items in 0..3 {
        let (mut sequence, ..) = prefilled(&model, &prompts[3], 20);
        let mut prefill = model.start_prefill(&chunk, &sequence).unwrap();
        (0..items).for_each(|_| assert!(model.advance_prefill(&mut prefill, &mut sequence).unwrap().is_none()));
        assert_eq!(sequence.len(), expected.0.len());
        let (mut other, ..) = prefilled(&model, &prompts[3], 1);
        let found = model.decode_sequences(&[3], &mut [&mut sequence]).unwrap();
        assert_eq!(bits(&found), bits(&model.decode_sequences(&[3], &mut [&mut other]).unwrap()));
        let error = model.advance_prefill(&mut prefill, &mut sequence).unwrap_err();
        assert!(error.to_string().contains("was changed"), "{error}");
    }
}

#[test]
fn a_finished_prefill_is_over() {
    let config = HaploVlConfig::tiny();
    let model = model(&config);
    let chunk = MultimodalBatch::new(
        &[conversations(&config)[2].clone()],
        BatchSpec::new(&config),
        PaddingSide::Left,
        &Device::Cpu,
    );
    let mut sequence = model.sequence_cache(50).unwrap();
    let mut prefill = model.start_prefill(&chunk.unwrap(), &sequence).unwrap();
    while model.advance_prefill(&mut prefill, &mut sequence).unwrap().is_none() {}
    assert!(model.advance_prefill(&mut prefill, &mut sequence).is_err());
}
