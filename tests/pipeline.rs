//! Captioner, question answerer and chat on a small checkpoint folder made here.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use std::path::Path;

use candle_core::{DType, Device};
use haplovl::Error;
use haplovl::config::{GenerationConfig, HaploVlConfig, TextEmbedding};
use haplovl::generation::{CancelToken, FinishReason};
use haplovl::model::HaploVl;
use haplovl::options::{CacheChoice, DeviceChoice};
use haplovl::pipeline::{Captioner, Chat, LoadOptions, LoadedModel, VisualQuestionAnswerer};
use haplovl::processor::{Content, Conversation, Message, RgbImage, Role};
use haplovl::weights::{Parameters, SaveOptions, save_safetensors};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Words are tokens: `a` to `z`, then `a2` to `z2` and so on, up to the special tokens at the end.
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

/// A checkpoint whose weights are large enough that answers depend on what is seen.
fn checkpoint() -> TempDir {
    checkpoint_of(12.0)
}

fn checkpoint_of(scale: f64) -> TempDir {
    checkpoint_with(&HaploVlConfig::tiny(), scale)
}

fn checkpoint_with(config: &HaploVlConfig, scale: f64) -> TempDir {
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

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

fn load(folder: &Path) -> haplovl::Result<LoadedModel> {
    LoadedModel::from_folder(folder, LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() })
}

fn picture(seed: u32) -> RgbImage {
    RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * seed) as u8, (y * 7 + seed) as u8, (x * y) as u8]))
}

#[test]
fn a_folder_loads_and_describes_pictures_alone_and_together() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    assert_eq!(model.generation().eos_token_id, [91]);
    let captioner = Captioner::new(&model).with_prompt("a b c");
    let pictures = [picture(3), picture(90)];
    let alone = pictures.clone().map(|p| captioner.caption(p).unwrap());
    assert_ne!(alone[0].text(), alone[1].text(), "the picture makes no difference");
    let together = captioner.caption_all(pictures.map(Content::from)).unwrap();
    for (alone, together) in alone.iter().zip(&together.sequences) {
        assert_eq!(alone.sequence, *together);
    }
    let prompt: Vec<String> = captioner.stream(picture(3)).unwrap().map(|piece| piece.unwrap()).collect();
    assert_eq!(prompt.concat(), alone[0].sequence.text);
    assert!(matches!(captioner.caption_all([]), Err(Error::Batch { .. })));
}

#[test]
fn without_generation_config_the_tokenizer_says_what_ends_an_answer() {
    let folder = checkpoint();
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    assert_eq!(load(folder.path()).unwrap().generation().eos_token_id, [91]);
}

#[test]
fn questions_take_several_pictures_or_none() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let config = GenerationConfig { max_new_tokens: Some(5), ..model.generation().clone() };
    let answerer = VisualQuestionAnswerer::new(&model).with_generation(config);
    let two = || [picture(3).into(), picture(90).into()];
    let answer = answerer.ask(two(), "what differs").unwrap();
    assert!(answer.timings.new_tokens <= 5);
    assert!(answer.timings.prompt_tokens > answerer.ask([], "what differs").unwrap().timings.prompt_tokens);
    let error = answerer.ask(two(), "what is in <image>").unwrap_err();
    assert!(matches!(error, Error::Prompt { .. }), "{error}");
    let error = answerer.ask([], &"a ".repeat(300)).unwrap_err();
    assert!(error.to_string().contains("context of 256"), "{error}");
}

#[test]
fn a_chat_remembers_and_reuses_its_cache() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let opening = Conversation::from(Message::system("b c"));
    let mut chat = Chat::new(&model).with_conversation(opening.clone());
    let first = chat.ask([picture(3).into(), "a b".into()]).unwrap();
    assert_eq!(first.timings.cached_tokens, 0);
    let second = chat.ask(["d e".into()]).unwrap();
    assert!(second.timings.cached_tokens >= first.timings.prompt_tokens, "{:?}", second.timings);
    // The same as without a cache.
    let mut whole = opening;
    whole.push(Message::user([picture(3).into(), "a b".into()]));
    whole.push(Message::assistant(first.sequence.text));
    whole.push(Message::user(["d e".into()]));
    let fresh = model.generator().generate(&model.batch(&[whole]).unwrap(), model.generation()).unwrap();
    assert_eq!(fresh.sequences[0], second.sequence);
    let roles = Vec::from_iter(chat.conversation().messages.iter().map(|m| m.role));
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User, Role::Assistant]);
}

#[test]
fn a_chat_goes_on_after_what_went_wrong_and_after_an_interrupted_reply() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let mut chat = Chat::new(&model);
    assert!(matches!(chat.ask([picture(3).into(), "<image> <image>".into()]), Err(Error::Prompt { .. })));
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
fn broken_folders_name_the_file() {
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
    assert!(shape.contains("mlp.gate_proj.weight"), "{shape}");
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
fn a_quantised_folder_answers_like_the_model_quantised_at_load() {
    use haplovl::options::Quantization;
    use haplovl::pipeline::quantize_folder;

    // Larger weights than random ones usually are would blow up every rounding.
    let folder = checkpoint_of(1.0);
    let original = load(folder.path()).unwrap();
    let batch = original.batch(&[Message::user([Content::from(picture(3)), "a b c".into()]).into()]).unwrap();
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
        let options = LoadOptions { device: DeviceChoice::Cpu, quantization: Some(kind), ..LoadOptions::default() };
        let at_load = LoadedModel::from_folder(folder.path(), options).unwrap();
        // Caches hold halves then, unless asked not to.
        assert_eq!(at_load.model().cache_dtype(), DType::F16);
        assert_eq!(load(&output).unwrap().model().cache_dtype(), DType::F16);
        let full = LoadOptions { cache: CacheChoice::Full, ..options };
        assert_eq!(LoadedModel::from_folder(folder.path(), full).unwrap().model().cache_dtype(), DType::F32);
        let at_load = logits(&at_load);
        // The text table is f16 in the file, so not equal to the bit.
        for (name, found) in [("file", &from_file), ("load", &at_load)] {
            let error = floats.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(error > 0.0 && error < tolerance * scale, "{kind} {name}: {error} of {scale}");
        }
        // What is quantised already cannot be quantised again, nor trained as if it were floats.
        let twice = quantize_folder(&output, folder.path().join("twice"), kind).unwrap_err().to_string();
        assert!(twice.contains("already"), "{twice}");
        assert!(load(&output).unwrap().model().lm_head().weight().is_err());
        // Which of two kinds of weights is meant cannot be known.
        std::fs::copy(folder.path().join("model.safetensors"), output.join("model.safetensors")).unwrap();
        let both = load(&output).err().unwrap().to_string();
        assert!(both.contains("holds both model.gguf and model.safetensors"), "{both}");
    }
}

#[test]
fn a_tied_head_is_quantised_with_the_rest() {
    let tied =
        HaploVlConfig { tie_word_embeddings: true, text_embedding: TextEmbedding::Projected, ..HaploVlConfig::tiny() };
    let folder = checkpoint_with(&tied, 1.0);
    assert!(load(folder.path()).unwrap().model().lm_head().weight().is_ok());
    let output = folder.path().join("q8_0");
    haplovl::pipeline::quantize_folder(folder.path(), &output, haplovl::options::Quantization::Q8_0).unwrap();
    assert!(load(&output).unwrap().model().lm_head().weight().is_err());
}

#[test]
fn a_quantised_model_says_the_same_of_a_picture_alone_and_beside_another() {
    let folder = checkpoint();
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        quantization: Some(haplovl::options::Quantization::Q8_0),
        ..LoadOptions::default()
    };
    let model = LoadedModel::from_folder(folder.path(), options).unwrap();
    let captioner = Captioner::new(&model).with_prompt("a b c");
    let alone = captioner.caption(picture(3)).unwrap();
    let both = captioner.caption_all([picture(3), picture(90)].map(Content::from)).unwrap();
    assert!(!alone.text().is_empty());
    assert_eq!(alone.sequence, both.sequences[0]);
}

#[test]
fn a_second_question_reuses_its_picture_and_no_other() {
    let folder = checkpoint();
    let model = load(folder.path()).unwrap();
    let answerer = VisualQuestionAnswerer::new(&model);
    let ask = |answerer: &VisualQuestionAnswerer<'_>, pictures: &[u32], question: &str| {
        answerer.ask(pictures.iter().map(|seed| picture(*seed).into()), question).unwrap()
    };
    let afresh = |pictures: &[u32], question: &str| ask(&VisualQuestionAnswerer::new(&model), pictures, question);
    let first = ask(&answerer, &[3, 90], "a b c");
    assert_eq!(first.timings.cached_tokens, 0);
    // Both pictures are kept; only the question is new.
    let second = ask(&answerer, &[3, 90], "d e f g");
    assert_eq!(second.sequence, afresh(&[3, 90], "d e f g").sequence);
    assert!(second.timings.prompt_tokens - second.timings.cached_tokens < 10, "{:?}", second.timings);
    // Of the same size, but another: only the first is kept.
    let third = ask(&answerer, &[3, 91], "d e f g");
    assert_eq!(third.sequence, afresh(&[3, 91], "d e f g").sequence);
    assert!(third.timings.cached_tokens < second.timings.cached_tokens && third.timings.cached_tokens > 0);
    let fourth = ask(&answerer, &[7, 91], "d e f g");
    assert_eq!(fourth.sequence, afresh(&[7, 91], "d e f g").sequence);
    assert!(fourth.timings.cached_tokens < third.timings.cached_tokens);
    // Dropped on the way, and two at once.
    let mut stream = answerer.stream([picture(7).into()], "a b c").unwrap();
    stream.next();
    let beside = ask(&answerer, &[7], "a b c");
    drop(stream);
    assert_eq!(beside.sequence, ask(&answerer, &[7], "a b c").sequence);
}
