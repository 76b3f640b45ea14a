//! Captioner, question answerer and chat on a small checkpoint folder that is generated here.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device};
use haplovl::Error;
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide};
use haplovl::config::{GenerationConfig, HaploVlConfig, TextEmbedding};
use haplovl::generation::{
    CancelToken, Detokenizer, FinishReason, GenerationSession, Generator, PrefixCache, TextIter, TextStream,
};
use haplovl::model::HaploVl;
use haplovl::options::{DeviceChoice, KvCacheDtype};
use haplovl::pipeline::{
    AnswerStream, Captioner, Chat, Embedder, LoadOptions, LoadedModel, Reply, VisualQuestionAnswerer, quantize_folder,
};
use haplovl::processor::{Content, Conversation, Message, RgbImage, Role};
use haplovl::weights::{Parameters, SaveOptions, save_safetensors};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A word-level tokenizer: `a` to `z`, then `a2` to `z2` and so on, followed by the special tokens.
fn tokenizer() -> Value {
    let word = |i: usize| format!("{}{}", char::from(b'a' + (i % 26) as u8), ["", "2", "3", "4"][i / 26]);
    let special = [(90, "<|im_start|>"), (91, "<|im_end|>"), (94, "<image>"), (95, "<video>")];
    let mut vocab = Map::from_iter((1..90).map(|i| (word(i - 1), json!(i))));
    vocab.insert("[UNK]".into(), json!(0));
    vocab.extend(special.map(|(id, token)| (token.to_string(), json!(id))));
    let added = special.map(|(id, token)| {
        json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    });
    json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    })
}

/// A checkpoint whose weights are large enough that answers depend on the image.
fn checkpoint() -> TempDir {
    checkpoint_of(12.0)
}

fn checkpoint_of(scale: f64) -> TempDir {
    checkpoint_with(&HaploVlConfig::tiny(), scale)
}

pub fn checkpoint_with(config: &HaploVlConfig, scale: f64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let parameters = Parameters::new();
    HaploVl::new(config, parameters.var_builder(5, DType::F32, &Device::Cpu)).unwrap();
    for (name, var) in parameters.iter() {
        if name.ends_with("weight") && var.rank() > 1 {
            var.set(&(var.as_tensor() * scale).unwrap()).unwrap();
        }
    }
    save_safetensors(folder.path(), &parameters.tensors(), &SaveOptions::default()).unwrap();
    let own_form = || serde_json::to_value(config).unwrap();
    write(folder.path(), "config.json", &config.to_official().unwrap_or_else(|_| own_form()));
    write(folder.path(), "tokenizer.json", &tokenizer());
    write(folder.path(), "generation_config.json", &json!({ "eos_token_id": 91, "max_new_tokens": 8 }));
    folder
}

pub fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

pub fn load(folder: &Path) -> haplovl::Result<LoadedModel> {
    LoadedModel::from_folder(folder, LoadOptions::default().with_device(DeviceChoice::Cpu))
}

pub fn sample_image(seed: u32) -> RgbImage {
    RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * seed) as u8, (y * 7 + seed) as u8, (x * y) as u8]))
}

#[test]
fn a_folder_loads_and_captions_single_images_and_batches() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    assert_eq!(model.generation().eos_token_id, [91]);
    let captioner = Captioner::new(&model).with_prompt("a b c");
    let images = [sample_image(3), sample_image(90)];
    let alone = images.clone().map(|p| captioner.caption(p).unwrap());
    assert_ne!(alone[0].text(), alone[1].text(), "the image makes no difference");
    let together = captioner.caption_all(images.map(Content::from)).unwrap();
    for (alone, together) in alone.iter().zip(&together.sequences) {
        assert_eq!(alone.sequence, *together);
    }
    let prompt: Vec<String> = captioner.stream(sample_image(3)).unwrap().map(|piece| piece.unwrap()).collect();
    assert_eq!(prompt.concat(), alone[0].sequence.text);
    assert!(matches!(captioner.caption_all([]), Err(Error::Batch { .. })));
}

#[test]
fn without_generation_config_the_tokenizer_defines_the_eos_token() {
    let folder = checkpoint();
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    assert_eq!(load(folder.path()).unwrap().generation().eos_token_id, [91]);
}

#[test]
fn answers_end_at_the_ends_of_the_file_the_template_and_the_tokenizer() {
    let folder = checkpoint();
    write(folder.path(), "generation_config.json", &json!({ "eos_token_id": [0] }));
    assert_eq!(load(folder.path()).unwrap().generation().eos_token_id, [0, 91]);
    write(folder.path(), "tokenizer_config.json", &json!({ "eos_token": "<|im_start|>" }));
    assert_eq!(load(folder.path()).unwrap().generation().eos_token_id, [0, 91, 90]);
}

#[test]
fn questions_accept_several_images_or_none() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let config = GenerationConfig { max_new_tokens: Some(5), ..model.generation().clone() };
    let answerer = VisualQuestionAnswerer::new(&model).with_generation(config);
    let two = || [sample_image(3).into(), sample_image(90).into()];
    let answer = answerer.ask(two(), "what differs").unwrap();
    assert!(answer.timings.new_tokens <= 5);
    assert!(answer.timings.prompt_tokens > answerer.ask([], "what differs").unwrap().timings.prompt_tokens);
    let error = answerer.ask(two(), "what is in <image>").unwrap_err();
    assert!(matches!(error, Error::Prompt { .. }), "{error}");
    let error = answerer.ask([], &"a ".repeat(300)).unwrap_err();
    assert!(error.to_string().contains("context of 256"), "{error}");
}

#[test]
fn a_chat_keeps_its_history_and_reuses_the_kv_cache() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let opening = Conversation::from(Message::system("b c"));
    let mut chat = Chat::new(&model).with_conversation(opening.clone());
    let first = chat.ask([sample_image(3).into(), "a b".into()]).unwrap();
    assert_eq!(first.timings.cached_tokens, 0);
    let second = chat.ask(["d e".into()]).unwrap();
    assert!(second.timings.cached_tokens >= first.timings.prompt_tokens, "{:?}", second.timings);
    // Equal to a run without a cache.
    let mut whole = opening;
    whole.push(Message::user([sample_image(3).into(), "a b".into()]));
    whole.push(Message::assistant(first.sequence.text));
    whole.push(Message::user(["d e".into()]));
    let fresh = model.generator().generate(&model.batch(&[whole]).unwrap(), model.generation()).unwrap();
    assert_eq!(fresh.sequences[0], second.sequence);
    let roles = Vec::from_iter(chat.conversation().messages.iter().map(|m| m.role));
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User, Role::Assistant]);
}

#[test]
fn a_chat_continues_after_errors_and_interrupted_replies() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let mut chat = Chat::new(&model);
    assert!(matches!(chat.ask([sample_image(3).into(), "<image> <image>".into()]), Err(Error::Prompt { .. })));
    assert!(matches!(chat.ask(["a ".repeat(300).into()]), Err(Error::Prompt { .. })));
    assert!(chat.conversation().messages.is_empty());
    let mut reply = chat.say(["a b".into()]).unwrap();
    let piece = reply.next().unwrap().unwrap();
    drop(reply);
    let said = Vec::from_iter(chat.conversation().messages[1].texts().map(String::from));
    assert_eq!(said, [piece]);
    assert!(chat.ask(["c".into()]).unwrap().timings.cached_tokens > 0);
    let cancel = CancelToken::default();
    cancel.cancel();
    let answer = chat.with_cancel(cancel).ask(["d".into()]).unwrap();
    assert_eq!((answer.text(), &answer.sequence.finish_reason), ("", &FinishReason::Cancelled));
}

#[test]
fn errors_of_broken_folders_name_the_file() {
    let message = |spoil: fn(&Path)| {
        let folder = checkpoint();
        spoil(folder.path());
        load(folder.path()).err().unwrap().to_string()
    };
    let missing = message(|f| std::fs::remove_file(f.join("config.json")).unwrap());
    assert!(missing.contains("config.json"), "{missing}");
    let broken = message(|f| std::fs::write(f.join("generation_config.json"), "{").unwrap());
    assert!(broken.contains("generation_config.json"), "{broken}");
    let top_p = message(|f| write(f, "generation_config.json", &json!({ "top_p": 7 })));
    assert!(top_p.contains("`top_p`"), "{top_p}");
    let tokenizer = message(|f| std::fs::remove_file(f.join("tokenizer.json")).unwrap());
    assert!(tokenizer.contains("tokenizer.json"), "{tokenizer}");
    let weights = message(|f| std::fs::remove_file(f.join("model.safetensors")).unwrap());
    assert!(weights.contains("model.safetensors"), "{weights}");
    let shape = message(|f| {
        let mut config = HaploVlConfig::tiny();
        config.post_decoder.intermediate_size += 2;
        write(f, "config.json", &config.to_official().unwrap());
    });
    assert!(shape.contains("10 misshapen: model.layers.2.mlp.down_proj.weight"), "{shape}");
}

#[test]
fn the_processor_of_a_loaded_model_can_be_changed() {
    let folder = checkpoint();
    let frames: Vec<RgbImage> = (0..5).map(|i| RgbImage::from_pixel(28, 28, image::Rgb([i * 40; 3]))).collect();
    let tokens = |model: &LoadedModel| {
        let conversation = Conversation::from(Message::user([frames.clone().into(), "a".into()]));
        model.batch(&[conversation]).unwrap().visuals[0].pixel_values().dim(0).unwrap()
    };
    let model = load(folder.path()).unwrap();
    assert_eq!(tokens(&model), 5);
    let model = model.with_processor(|processor| processor.with_num_frames(2)).unwrap();
    assert_eq!(tokens(&model), 2);
    assert!(model.with_processor(|processor| processor.with_num_frames(0)).is_err());
}

#[test]
fn a_quantised_folder_matches_the_model_quantised_at_load() {
    use haplovl::options::Quantization;

    // Larger weights than usual random ones would amplify rounding errors.
    let folder = checkpoint_of(1.0);
    let original = load(folder.path()).unwrap();
    let batch = original.batch(&[Message::user([Content::from(sample_image(3)), "a b c".into()]).into()]).unwrap();
    let logits = |model: &LoadedModel| {
        let logits = model.model().forward(&batch).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let floats = logits(&original);
    let scale = floats.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (kind, tolerance) in [(Quantization::Q8_0, 0.03), (Quantization::Q6K, 0.1), (Quantization::Q4K, 0.5)] {
        let output = folder.path().join(kind.to_string());
        quantize_folder(folder.path(), &output, kind).unwrap();
        assert!(!output.join("model.safetensors").exists());
        let from_file = logits(&load(&output).unwrap());
        let options = LoadOptions::default().with_device(DeviceChoice::Cpu).with_quantization(kind);
        let at_load = LoadedModel::from_folder(folder.path(), options).unwrap();
        // KV caches are f16 then, unless configured otherwise.
        assert_eq!(at_load.model().cache_dtype(), DType::F16);
        assert_eq!(load(&output).unwrap().model().cache_dtype(), DType::F16);
        let full = options.with_kv_cache_dtype(KvCacheDtype::Full);
        assert_eq!(LoadedModel::from_folder(folder.path(), full).unwrap().model().cache_dtype(), DType::F32);
        let at_load = logits(&at_load);
        // The text embedding is f16 in the file, so values are not bit-identical.
        for (name, found) in [("file", &from_file), ("load", &at_load)] {
            let error = floats.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(error > 0.0 && error < tolerance * scale, "{kind} {name}: {error} of {scale}");
        }
        // Quantised weights cannot be quantised again, and cannot be loaded in a float dtype.
        let twice = quantize_folder(&output, folder.path().join("twice"), kind).unwrap_err().to_string();
        assert!(twice.contains("already"), "{twice}");
        assert!(load(&output).unwrap().model().lm_head().weight().is_err());
        // A folder with two kinds of weights is ambiguous.
        std::fs::copy(folder.path().join("model.safetensors"), output.join("model.safetensors")).unwrap();
        let both = load(&output).err().unwrap().to_string();
        assert!(both.contains("holds both model.gguf and model.safetensors"), "{both}");
    }
}

#[test]
fn a_tied_head_is_quantised() {
    let tied =
        HaploVlConfig { tie_word_embeddings: true, text_embedding: TextEmbedding::Projected, ..HaploVlConfig::tiny() };
    let folder = checkpoint_with(&tied, 1.0);
    assert!(load(folder.path()).unwrap().model().lm_head().weight().is_ok());
    let output = folder.path().join("q8_0");
    quantize_folder(folder.path(), &output, haplovl::options::Quantization::Q8_0).unwrap();
    assert!(load(&output).unwrap().model().lm_head().weight().is_err());
}

#[test]
fn a_quantised_model_gives_the_same_caption_in_any_batch() {
    let folder = checkpoint();
    let options =
        LoadOptions::default().with_device(DeviceChoice::Cpu).with_quantization(haplovl::options::Quantization::Q8_0);
    let model = LoadedModel::from_folder(folder.path(), options).unwrap();
    let captioner = Captioner::new(&model).with_prompt("a b c");
    let alone = captioner.caption(sample_image(3)).unwrap();
    let both = captioner.caption_all([sample_image(3), sample_image(90)].map(Content::from)).unwrap();
    assert!(!alone.text().is_empty());
    assert_eq!(alone.sequence, both.sequences[0]);
}

#[test]
fn a_second_question_reuses_only_its_own_image() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let answerer = VisualQuestionAnswerer::new(&model);
    let ask = |answerer: &VisualQuestionAnswerer, images: &[u32], question: &str| {
        answerer.ask(images.iter().map(|seed| sample_image(*seed).into()), question).unwrap()
    };
    let afresh = |images: &[u32], question: &str| ask(&VisualQuestionAnswerer::new(&model), images, question);
    let first = ask(&answerer, &[3, 90], "a b c");
    assert_eq!(first.timings.cached_tokens, 0);
    // Both images are in the cache; only the question is new.
    let second = ask(&answerer, &[3, 90], "d e f g");
    assert_eq!(second.sequence, afresh(&[3, 90], "d e f g").sequence);
    assert!(second.timings.prompt_tokens - second.timings.cached_tokens < 10, "{:?}", second.timings);
    // The second image is another one of the same size: only the first is in the cache.
    let third = ask(&answerer, &[3, 91], "d e f g");
    assert_eq!(third.sequence, afresh(&[3, 91], "d e f g").sequence);
    assert!(third.timings.cached_tokens < second.timings.cached_tokens && third.timings.cached_tokens > 0);
    let fourth = ask(&answerer, &[7, 91], "d e f g");
    assert_eq!(fourth.sequence, afresh(&[7, 91], "d e f g").sequence);
    assert!(fourth.timings.cached_tokens < third.timings.cached_tokens);
    // A stream that is dropped early, and two requests at the same time.
    let mut stream = answerer.stream([sample_image(7).into()], "a b c").unwrap();
    stream.next();
    let beside = ask(&answerer, &[7], "a b c");
    drop(stream);
    assert_eq!(beside.sequence, ask(&answerer, &[7], "a b c").sequence);
}

#[test]
fn models_pipelines_and_streams_are_send() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn owned<T: Send + 'static>() {}
    type Decode = fn(&[u32]) -> haplovl::Result<String>;
    shared::<LoadedModel>();
    shared::<Captioner>();
    shared::<VisualQuestionAnswerer>();
    shared::<Generator<HaploVl>>();
    shared::<CancelToken>();
    owned::<Chat>();
    owned::<Reply>();
    owned::<AnswerStream>();
    owned::<TextIter<HaploVl>>();
    owned::<TextStream<Decode>>();
    owned::<Detokenizer<Decode>>();
    owned::<GenerationSession>();
    owned::<PrefixCache>();
}

#[test]
fn chats_can_be_stored_and_streamed_on_other_threads() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let says = |user: u32, turn: u32| match turn {
        0 => vec![sample_image(3 + 29 * user).into(), "a b".into()],
        _ => vec![format!("d e {}", ["f", "g", "h", "k"][user as usize]).into()],
    };
    let alone = |user| {
        let mut chat = Chat::new(&model);
        [0, 1].map(|turn| chat.ask(says(user, turn)).unwrap().sequence.text)
    };
    let expected: HashMap<u32, [String; 2]> = (0..4).map(|user| (user, alone(user))).collect();
    assert_ne!(expected[&0], expected[&1], "the images make no difference");
    let mut chats: HashMap<u32, Chat> = (0..4).map(|user| (user, Chat::new(&model))).collect();
    // The chats hold the model.
    drop(model);
    for turn in [0, 1] {
        let start = |(user, chat): (&u32, &mut Chat)| {
            let reply = chat.say(says(*user, turn)).unwrap();
            (*user, std::thread::spawn(move || reply.map(haplovl::Result::unwrap).collect::<String>()))
        };
        let replies = Vec::from_iter(chats.iter_mut().map(start));
        for (user, reply) in replies {
            assert_eq!(reply.join().unwrap(), expected[&user][turn as usize], "user {user}, turn {turn}");
        }
    }
    for (user, chat) in &chats {
        let conversation = chat.conversation();
        let texts = Vec::from_iter(conversation.messages.iter().flat_map(Message::texts));
        assert_eq!([texts[1], texts[3]], [&expected[user][0], &expected[user][1]]);
    }
}

#[test]
fn one_answerer_can_be_shared_by_threads() {
    let folder = checkpoint();
    let answerer = VisualQuestionAnswerer::new(&load(folder.path()).unwrap());
    let ask = |seed| answerer.ask([sample_image(seed).into()], "a b c").unwrap().sequence;
    let expected = [3, 90, 7].map(ask);
    std::thread::scope(|scope| {
        let threads = [3, 90, 7].map(|seed| scope.spawn(move || ask(seed)));
        assert_eq!(threads.map(|thread| thread.join().unwrap()), expected);
    });
}

#[test]
fn a_chat_rejects_a_turn_while_it_replies() {
    let folder = checkpoint();
    let mut chat = Chat::new(&load(folder.path()).unwrap());
    let mut reply = chat.say(["a b".into()]).unwrap();
    let error = chat.ask(["c".into()]).unwrap_err();
    assert!(matches!(error, Error::Generation(_)) && error.to_string().contains("still under way"), "{error}");
    assert_eq!(chat.conversation().messages.len(), 1);
    // A finished reply no longer blocks the chat, even before it is dropped.
    reply.by_ref().for_each(|piece| drop(piece.unwrap()));
    let second = chat.ask(["c".into()]).unwrap();
    assert!(second.timings.cached_tokens > 0);
    drop(reply);
    assert_eq!(chat.conversation().messages.len(), 4);
}

#[test]
fn non_finite_weights_are_named() {
    for value in [f32::NAN, f32::INFINITY] {
        let folder = checkpoint();
        let file = folder.path().join("model.safetensors");
        let mut tensors =
            std::collections::BTreeMap::from_iter(candle_core::safetensors::load(&file, &Device::Cpu).unwrap());
        let name = tensors.keys().find(|name| name.ends_with("self_attn.q_proj.weight")).unwrap().clone();
        let (rows, columns) = tensors[&name].dims2().unwrap();
        let mut values = tensors[&name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values[columns + 1] = value;
        tensors.insert(name.clone(), candle_core::Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap());
        save_safetensors(folder.path(), &tensors, &SaveOptions::default()).unwrap();

        let output = folder.path().join("q8_0");
        let error = quantize_folder(folder.path(), &output, haplovl::options::Quantization::Q8_0).unwrap_err();
        let expected = format!("tensor `{name}` is NaN or infinite from element {} on", columns + 1);
        assert!(matches!(error, Error::Weights(_)) && error.to_string().contains(&expected), "{error}");
        assert!(!output.exists());

        let conversation = Conversation::from(Message::user([sample_image(3).into(), "a b c".into()]));
        let layer = name.split('.').find_map(|part| part.parse().ok()).unwrap();
        let error = load(folder.path()).unwrap().word_attention(&conversation, "b", layer, None).unwrap_err();
        let expected = format!("`model.layers.{layer}.self_attn`");
        assert!(matches!(error, Error::Weights(_)) && error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn an_embedding_is_the_mean_of_the_pre_decoder_s_states() {
    let folder = checkpoint();
    let model = LoadedModel::from_folder(folder.path(), LoadOptions::default()).unwrap();
    let embedder = Embedder::new(&model);
    let sequence = model.processor().text_sequence("a b c").unwrap();
    let spec = BatchSpec::new(model.model().config());
    let batch = MultimodalBatch::new(&[sequence], spec, PaddingSide::Left, &Device::Cpu).unwrap();
    let mean = model.model().hidden_states(&batch, &[]).unwrap().pre_decoder_output.mean(1).unwrap();
    let mean: Vec<f32> = mean.flatten_all().unwrap().to_vec1().unwrap();
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    let text = embedder.embed(&"a b c".into()).unwrap();
    assert_eq!(text.tokens, 3);
    assert!(text.vector.iter().zip(&mean).all(|(found, mean)| (found - mean / length).abs() < 1e-5));
    let image = |level| Content::from(RgbImage::from_pixel(40, 30, image::Rgb([level, 9, 200])));
    let (dark, light) = (embedder.embed(&image(3)).unwrap(), embedder.embed(&image(250)).unwrap());
    assert!(dark.tokens > 1 && dark.vector != light.vector);
    let frames = Content::from(vec![RgbImage::new(20, 20), RgbImage::new(20, 20)]);
    assert!(embedder.embed(&frames).unwrap().tokens > 1);
    assert!(matches!(embedder.embed(&"".into()), Err(Error::Prompt(_))));
    assert!(embedder.embed(&"a ".repeat(5000).into()).unwrap_err().to_string().contains("context"));
}
