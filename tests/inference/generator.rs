//! The generation loop, with a scripted model.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence};
use haplovl::config::{GenerationConfig, HaploVlConfig};
use haplovl::generation::{CancelToken, CausalModel, FinishReason, Generator, PrefixCache};
use haplovl::{Error, Result};

const EOS: u32 = 90;

/// A model that generates scripted ids for each row, and records its inputs.
struct Script {
    config: HaploVlConfig,
    replies: Vec<Vec<u32>>,
    fed: Mutex<Vec<Vec<u32>>>,
}

impl Script {
    fn new(replies: &[&[u32]]) -> Arc<Self> {
        let replies = replies.iter().map(|ids| ids.to_vec()).collect();
        Arc::new(Self { config: HaploVlConfig::tiny(), replies, fed: Mutex::default() })
    }

    /// Logits that are 1 at the scripted id of this step and 0.75 at the following id; NaN after the end of the script.
    fn logits(&self, step: usize) -> Result<Tensor> {
        let vocab = self.config.vocab_size;
        let row = |ids: &Vec<u32>| match ids.get(step) {
            Some(&id) => Vec::from_iter((0..vocab as u32).map(|i| match i.wrapping_sub(id) {
                0 => 1.0f32,
                1 => 0.75,
                _ => 0.0,
            })),
            None => vec![f32::NAN; vocab],
        };
        let logits = self.replies.iter().flat_map(row).collect();
        Ok(Tensor::from_vec(logits, (self.replies.len(), vocab), &Device::Cpu)?)
    }
}

impl CausalModel for Script {
    /// Numbers of steps and positions.
    type Cache = (usize, usize);

    fn config(&self) -> &HaploVlConfig {
        &self.config
    }

    fn cache(&self, _: usize, capacity: usize) -> Result<Self::Cache> {
        Ok((0, capacity))
    }

    fn prefill(&self, batch: &MultimodalBatch, cache: &mut Self::Cache) -> Result<Tensor> {
        cache.1 -= batch.layout.seq_len;
        self.logits(0)
    }

    fn decode(&self, ids: &[u32], cache: &mut Self::Cache) -> Result<Tensor> {
        self.fed.lock().unwrap().push(ids.to_vec());
        cache.0 += 1;
        cache.1 -= 1;
        self.logits(cache.0)
    }
}

fn batch(prompts: &[&[u32]], side: PaddingSide) -> MultimodalBatch {
    let sequence = |ids: &&[u32]| Sequence { input_ids: ids.to_vec(), labels: None, visuals: vec![] };
    let sequences = Vec::from_iter(prompts.iter().map(sequence));
    MultimodalBatch::new(&sequences, BatchSpec::new(&HaploVlConfig::tiny()), side, &Device::Cpu).unwrap()
}

fn prompts(prompts: &[&[u32]]) -> MultimodalBatch {
    batch(prompts, PaddingSide::Left)
}

fn config() -> GenerationConfig {
    GenerationConfig { eos_token_id: vec![EOS], ..Default::default() }
}

/// Decoder where id 1 is `a`, and so on; ids above 26 have no text.
fn letters(ids: &[u32]) -> Result<String> {
    Ok(ids.iter().filter(|&&id| id <= 26).map(|&id| char::from(b'`' + id as u8)).collect())
}

#[test]
fn rows_finish_independently() {
    // One row ends by the EOS token, one by the token limit, one by a stop string. NaN after a row's end must have no
    // effect.
    let model = Script::new(&[&[1, EOS], &[2, 3, 2, 3], &[4, 5, 6]]);
    let config = GenerationConfig {
        max_new_tokens: Some(4),
        stop_strings: vec!["ef".into()],
        pad_token_id: Some(77),
        ..config()
    };
    let batch = prompts(&[&[1, 2, 3], &[1], &[1, 2]]);
    let mut shown = vec![String::new(); 3];
    let show = |row: usize, text: &str| shown[row].push_str(text);
    let generation = Generator::new(model.clone(), letters).generate_with(&batch, &config, show).unwrap();
    let [first, second, third] = &generation.sequences[..] else { panic!("three rows") };
    assert_eq!((first.text.as_str(), &first.tokens[..]), ("a", &[1, EOS][..]));
    assert_eq!(first.finish_reason, FinishReason::EndOfSequence(EOS));
    assert_eq!((second.text.as_str(), &second.finish_reason), ("bcbc", &FinishReason::Length));
    assert_eq!((third.text.as_str(), &third.finish_reason), ("d", &FinishReason::StopString("ef".into())));
    assert_eq!(shown, ["a", "bcbc", "d"]);
    // Finished rows get padding, and there is no superfluous step.
    assert_eq!(*model.fed.lock().unwrap(), [vec![1, 2, 4], vec![EOS, 3, 5], vec![77, 2, 6]]);
    assert_eq!((generation.timings.prompt_tokens, generation.timings.new_tokens), (6, 9));
    assert!(generation.timings.seconds >= generation.timings.seconds_to_first_token);
}

#[test]
fn held_back_text_is_emitted_at_the_end() {
    let config = GenerationConfig { stop_strings: vec!["bcd".into()], max_new_tokens: Some(3), ..config() };
    let model = Script::new(&[&[1, 2, 3]]);
    let generator = Generator::new(model.clone(), letters);
    let pieces: Vec<String> = generator.stream(&prompts(&[&[1]]), &config).unwrap().map(Result::unwrap).collect();
    assert_eq!(pieces, ["a", "bc"]);
}

#[test]
fn a_stream_yields_pieces_and_then_the_output() {
    let model = Script::new(&[&[1, 30, 2, EOS]]);
    let generator = Generator::new(model.clone(), letters);
    let mut stream = generator.stream(&prompts(&[&[5, 6]]), &config()).unwrap();
    let pieces: Vec<String> = stream.by_ref().map(Result::unwrap).collect();
    assert_eq!(pieces, ["a", "b"]);
    let answer = stream.finish().unwrap();
    assert_eq!(answer.text(), "ab");
    assert_eq!(answer.timings.new_tokens, 4);
    assert!(answer.timings.tokens_per_second > 0.0);
    assert!(matches!(generator.stream(&prompts(&[&[1], &[2]]), &config()), Err(Error::Batch { .. })));
}

#[test]
fn cancelling_returns_the_text_so_far() {
    let model = Script::new(&[&[1, 2, 3, 4, EOS]]);
    let cancel = CancelToken::default();
    let generator = Generator::new(model.clone(), letters).with_cancel(cancel.clone());
    let stop_at_b = |_, text: &str| {
        if text == "b" {
            cancel.cancel()
        }
    };
    let generation = generator.generate_with(&prompts(&[&[1]]), &config(), stop_at_b).unwrap();
    assert_eq!(generation.sequences[0].text, "ab");
    assert_eq!(generation.sequences[0].finish_reason, FinishReason::Cancelled);
    // After cancellation, the prompt is not processed.
    let generation = generator.generate(&prompts(&[&[1]]), &config()).unwrap();
    assert_eq!((generation.sequences[0].text.as_str(), generation.timings.new_tokens), ("", 0));
}

#[test]
fn a_stream_dropped_early_reports_its_tokens() {
    let model = Script::new(&[&[1, 2, 3, EOS]]);
    let mut stream = Generator::new(model.clone(), letters).stream(&prompts(&[&[1]]), &config()).unwrap();
    assert_eq!(stream.next().unwrap().unwrap(), "a");
    let answer = stream.finish().unwrap();
    assert_eq!(answer.sequence.tokens, [1]);
    assert_eq!(answer.sequence.finish_reason, FinishReason::Cancelled);
}

#[test]
fn the_context_length_limits_the_answer() {
    let model = Script::new(&[&[1; 10]]);
    let generator = Generator::new(model.clone(), letters);
    // Six of 256 positions are left.
    let config = GenerationConfig { max_new_tokens: None, ..config() };
    let generation = generator.generate(&prompts(&[&[1; 250]]), &config).unwrap();
    assert_eq!(generation.sequences[0].tokens.len(), 6);
    assert_eq!(generation.sequences[0].finish_reason, FinishReason::Length);
    let error = generator.generate(&prompts(&[&[1; 256]]), &config).unwrap_err();
    assert!(matches!(error, Error::Prompt { .. }) && error.to_string().contains("context of 256"), "{error}");
}

#[test]
fn placeholders_are_never_generated() {
    let tiny = HaploVlConfig::tiny();
    for placeholder in [tiny.image_token_index, tiny.video_token_index] {
        let model = Script::new(&[&[placeholder]]);
        let config = GenerationConfig { max_new_tokens: Some(1), ..config() };
        let generation = Generator::new(model.clone(), letters).generate(&prompts(&[&[1]]), &config).unwrap();
        assert_eq!(generation.sequences[0].tokens, [0]);
    }
}

#[test]
fn the_repetition_penalty_counts_the_prompt() {
    let config = GenerationConfig { repetition_penalty: Some(2.0), max_new_tokens: Some(1), ..config() };
    // The script has 3; if 3 is in the prompt, its logit of 1 is halved, and 4 has the largest logit with 0.75.
    for (prompt, expected) in [(&[5, 5], 3), (&[3, 5], 4)] {
        let model = Script::new(&[&[3]]);
        let generation = Generator::new(model.clone(), letters).generate(&prompts(&[prompt]), &config).unwrap();
        assert_eq!(generation.sequences[0].tokens, [expected]);
    }
    // Padding is not part of the prompt.
    let model = Script::new(&[&[0], &[0]]);
    let generation = Generator::new(model.clone(), letters).generate(&prompts(&[&[5], &[5, 5]]), &config).unwrap();
    assert_eq!(generation.sequences[0].tokens, [0]);
}

#[test]
fn nan_logits_end_the_stream_with_one_error() {
    let model = Script::new(&[&[1]]);
    let generator = Generator::new(model.clone(), letters);
    let items = Vec::from_iter(generator.stream(&prompts(&[&[7, 8, 9]]), &config()).unwrap());
    assert_eq!(items.len(), 2);
    let message = items[1].as_ref().unwrap_err().to_string();
    // Three prompt tokens and one generated token: the fifth token is at position 4.
    assert!(message.contains("position 4") && message.contains("NaN"), "{message}");
}

#[test]
fn invalid_batches_and_settings_are_rejected() {
    let model = Script::new(&[&[1], &[1]]);
    let generator = Generator::new(model.clone(), letters);
    let right = batch(&[&[1, 2], &[1]], PaddingSide::Right);
    let message = generator.generate(&right, &config()).unwrap_err().to_string();
    assert!(message.contains("padded on the left"), "{message}");
    let pad = GenerationConfig { pad_token_id: Some(96), ..config() };
    let message = generator.generate(&prompts(&[&[1], &[2]]), &pad).unwrap_err().to_string();
    assert!(message.contains("`pad_token_id`") && message.contains("96"), "{message}");
    let one_too_many = generator.generate(&prompts(&[&[1], &[2], &[3]]), &config()).unwrap_err();
    assert!(one_too_many.to_string().contains("2 rows, expected 3"), "{one_too_many}");
    assert!(matches!(generator.session(&prompts(&[&[1], &[2]]), &[5], &config()), Err(Error::Batch { .. })));
}

mod with_a_model {
    use candle_core::{DType, IndexOp};
    use haplovl::batch::Visual;
    use haplovl::model::HaploVl;
    use haplovl::patch_grid::Size;
    use haplovl::weights::Parameters;

    use super::*;

    /// A model with weights large enough that its output depends on the image.
    fn model() -> Arc<HaploVl> {
        model_of(HaploVlConfig::tiny())
    }

    fn model_of(config: HaploVlConfig) -> Arc<HaploVl> {
        let parameters = Parameters::new();
        HaploVl::new(&config, parameters.var_builder(5, DType::F32, &Device::Cpu)).unwrap();
        for (name, var) in parameters.iter() {
            if name.ends_with("weight") && var.rank() > 1 {
                var.set(&(var.as_tensor() * 12.0).unwrap()).unwrap();
            }
        }
        Arc::new(HaploVl::new(&config, parameters.var_builder(5, DType::F32, &Device::Cpu)).unwrap())
    }

    /// Text, one image of a single tile, and text again.
    fn with_image(text: &[u32], brightness: f32) -> Sequence {
        let config = HaploVlConfig::tiny();
        let pixel_values = Tensor::full(brightness, (1, 3, 28, 28), &Device::Cpu).unwrap();
        let visual = Visual::Image { pixel_values, size: Size { width: 28, height: 28 } };
        let patches = vec![config.image_token_index; visual.tokens(&config.vision).unwrap()];
        Sequence { input_ids: [&[1], patches.as_slice(), text].concat(), labels: None, visuals: vec![visual] }
    }

    fn left_padded(sequences: &[Sequence]) -> MultimodalBatch {
        let config = HaploVlConfig::tiny();
        MultimodalBatch::new(sequences, BatchSpec::new(&config), PaddingSide::Left, &Device::Cpu).unwrap()
    }

    fn greedy(max_new_tokens: usize) -> GenerationConfig {
        GenerationConfig { max_new_tokens: Some(max_new_tokens), ..Default::default() }
    }

    #[test]
    fn greedy_tokens_are_the_argmax_of_a_full_forward_pass() {
        let model = model();
        let mut sequence = with_image(&[7, 8, 9], 0.5);
        let generation =
            Generator::new(model.clone(), letters).generate(&left_padded(&[sequence.clone()]), &greedy(12)).unwrap();
        for &id in &generation.sequences[0].tokens {
            let logits = model.forward(&left_padded(&[sequence.clone()])).unwrap();
            let last = logits.i((0, sequence.len() - 1)).unwrap();
            // The placeholders are the last two ids, which are never generated.
            assert_eq!(last.narrow(0, 0, 94).unwrap().argmax(0).unwrap().to_scalar::<u32>().unwrap(), id);
            sequence.input_ids.push(id);
        }
        assert!(generation.sequences[0].tokens.windows(2).any(|pair| pair[0] != pair[1]), "says one thing only");
    }

    #[test]
    fn a_row_in_a_batch_equals_the_row_alone() {
        let model = model();
        let generator = Generator::new(model.clone(), letters);
        let text_only = Sequence { input_ids: vec![3, 4], labels: None, visuals: vec![] };
        let rows = [with_image(&[7, 8, 9], 0.5), with_image(&[10; 20], -0.5), text_only];
        let together = generator.generate(&left_padded(&rows), &greedy(10)).unwrap();
        for (row, in_batch) in rows.iter().zip(&together.sequences) {
            let alone = generator.generate(&left_padded(std::slice::from_ref(row)), &greedy(10)).unwrap();
            assert_eq!(alone.sequences[0].tokens, in_batch.tokens);
        }
        assert_ne!(together.sequences[0].tokens, together.sequences[1].tokens);
    }

    #[test]
    fn long_rows_are_prefilled_in_groups_and_answer_as_alone() {
        let model = model();
        let generator = Generator::new(model.clone(), letters);
        // Together more than 1024 positions; the first group is shorter than the second.
        let lengths = [90, 150, 140, 20, 230, 200, 3];
        let rows = Vec::from_iter(lengths.iter().map(|&n| with_image(&vec![7 + n as u32 % 50; n], n as f32 / 300.0)));
        let batch = left_padded(&rows);
        assert!(batch.batch_size() * batch.layout.seq_len > 1024);
        let together = generator.generate(&batch, &greedy(6)).unwrap();
        for (row, in_batch) in rows.iter().zip(&together.sequences) {
            let alone = generator.generate(&left_padded(std::slice::from_ref(row)), &greedy(6)).unwrap();
            assert_eq!(alone.sequences[0].tokens, in_batch.tokens);
        }
        // A cache without room stays empty.
        let mut cache = model.cache(rows.len(), 100).unwrap();
        assert!(model.prefill(&batch, &mut cache).unwrap_err().to_string().contains("capacity"));
        assert!(cache.is_empty());
    }

    /// Generates with and without a prefix cache, checks that both agree, and returns the ids and the number of cached
    /// tokens.
    fn both_ways(model: &Arc<HaploVl>, cache: &mut PrefixCache, sequence: &Sequence, most: usize) -> (Vec<u32>, usize) {
        let generator = Generator::new(model.clone(), letters);
        let batch = left_padded(std::slice::from_ref(sequence));
        let mut session = cache.start(&generator, &batch, &greedy(most)).unwrap();
        while cache.next_piece(model, &mut session).transpose().unwrap().is_some() {}
        let answer = session.answer().unwrap();
        let fresh = generator.generate(&batch, &greedy(most)).unwrap();
        assert_eq!(answer.sequence, fresh.sequences[0]);
        assert_eq!(answer.timings.prompt_tokens, sequence.len());
        (answer.sequence.tokens, answer.timings.cached_tokens)
    }

    #[test]
    fn later_turns_reuse_the_cache_without_changing_the_output() {
        let model = model();
        let mut cache = PrefixCache::default();
        let mut chat = with_image(&[7, 8, 9], 0.5);
        let (answer, cached) = both_ways(&model, &mut cache, &chat, 6);
        assert_eq!((answer.len(), cached), (6, 0));
        // The next turn: the answer, and a question with a second image. The last id of the answer is not in the cache.
        let first_turn = chat.len() + answer.len();
        let question = with_image(&[11, 12], -0.7);
        chat.input_ids.extend([answer, question.input_ids].concat());
        chat.visuals.extend(question.visuals);
        let (answer, cached) = both_ways(&model, &mut cache, &chat, 6);
        assert_eq!(cached, first_turn - 1);
        // For the same prompt, all ids except the last are cached.
        assert_eq!(both_ways(&model, &mut cache, &chat, 6), (answer, chat.len() - 1));
        // Another text after the second image.
        let changed = chat.len() - 2;
        chat.input_ids[changed] = 33;
        assert_eq!(both_ways(&model, &mut cache, &chat, 6).1, changed);
        // Another second image of the same size: equal ids, different pixels.
        chat.visuals[1] = with_image(&[], 0.1).visuals.remove(0);
        assert_eq!(both_ways(&model, &mut cache, &chat, 6).1, first_turn + 1);
        // An equal copy of the first image, and a shorter text that ends where the first answer starts.
        let short = with_image(&[7, 8, 9], 0.5);
        assert_eq!(both_ways(&model, &mut cache, &short, 6).1, short.len() - 1);
        cache.clear();
        assert_eq!(both_ways(&model, &mut cache, &short, 6).1, 0);
    }

    #[test]
    fn a_kept_cache_grows() {
        let model = model_of(HaploVlConfig { max_position_embeddings: 4096, ..HaploVlConfig::tiny() });
        let mut cache = PrefixCache::default();
        let text = |n: usize| Sequence { input_ids: vec![5; n], labels: None, visuals: vec![] };
        let generator = Generator::new(model.clone(), letters);
        for (len, cached) in [(20, 0), (30, 20), (1500, 30), (1510, 1500)] {
            let batch =
                MultimodalBatch::new(&[text(len)], BatchSpec::new(model.config()), PaddingSide::Left, &Device::Cpu);
            let mut session = cache.start(&generator, &batch.unwrap(), &greedy(1)).unwrap();
            while cache.next_piece(&model, &mut session).transpose().unwrap().is_some() {}
            assert_eq!(session.answer().unwrap().timings.cached_tokens, cached, "{len}");
        }
    }

    #[test]
    fn nan_weights_are_an_error_with_a_position() {
        let parameters = Parameters::new();
        let config = HaploVlConfig::tiny();
        HaploVl::new(&config, parameters.var_builder(5, DType::F32, &Device::Cpu)).unwrap();
        let norm = parameters.get("model.norm.weight").unwrap();
        norm.set(&(norm.as_tensor() * f64::NAN).unwrap()).unwrap();
        let model = Arc::new(HaploVl::new(&config, parameters.var_builder(5, DType::F32, &Device::Cpu)).unwrap());
        let error = Generator::new(model.clone(), letters).generate(&prompts(&[&[1, 2]]), &greedy(3)).unwrap_err();
        assert!(error.to_string().contains("position 2") && error.to_string().contains("NaN"), "{error}");
    }
}
