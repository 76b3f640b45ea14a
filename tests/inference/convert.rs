//! Model folders that are made of others: with random weights, and language halves for llama.cpp.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use haplovl::batch::SequenceLayout;
use haplovl::config::{DecoderConfig, HaploVlConfig, RopeScaling, TextEmbedding};
use haplovl::model::{HaploVl, LanguageModel};
use haplovl::options::Quantization;
use haplovl::pipeline::{Captioner, export_llama_cpp, quantize_folder, random_folder};
use haplovl::processor::TextTokenizer;
use haplovl::weights::{GgufFile, GgufValue, LlmSource, Parameters, TensorSource, open_weights};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::pipeline::{checkpoint_with, load, sample_image, write};

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

#[test]
fn random_weights_are_those_of_a_new_model_and_the_same_every_time() {
    let config = HaploVlConfig::tiny();
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), checkpoint_with(&config, 1.0));
    let [first, second, other] = [("first", 3), ("second", 3), ("other", 4)].map(|(name, seed)| {
        let output = folder.path().join(name);
        random_folder(&config, tokenizer.path(), &output, seed, None).unwrap();
        std::fs::read(output.join("model.safetensors")).unwrap()
    });
    assert!(first == second && first != other);
    let parameters = Parameters::new();
    HaploVl::new(&config, parameters.var_builder(3, DType::F32, &Device::Cpu)).unwrap();
    let source = open_weights(folder.path().join("first")).unwrap();
    for (name, var) in parameters.iter() {
        assert_eq!(source.stored_dtype(&name), Some(DType::BF16));
        let expected = values(&var.to_dtype(DType::BF16).unwrap());
        assert_eq!(values(&source.load_tensor(&name, DType::F32, &Device::Cpu).unwrap()), expected, "{name}");
    }
    let again = random_folder(&config, tokenizer.path(), folder.path().join("first"), 3, None).unwrap_err();
    assert!(again.to_string().contains("is not empty"), "{again}");
}

#[test]
fn a_model_with_random_weights_answers_also_quantised() {
    let config = HaploVlConfig { text_embedding: TextEmbedding::Projected, ..HaploVlConfig::tiny() };
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), checkpoint_with(&config, 1.0));
    let [floats, straight, later] = ["floats", "straight", "later"].map(|name| folder.path().join(name));
    random_folder(&config, tokenizer.path(), &floats, 3, None).unwrap();
    let caption =
        |folder: &Path| Captioner::new(&load(folder).unwrap()).with_prompt("a b").caption(sample_image(3)).unwrap();
    assert!(!caption(&floats).sequence.tokens.is_empty());
    random_folder(&config, tokenizer.path(), &straight, 3, Some(Quantization::Q8_0)).unwrap();
    quantize_folder(&floats, &later, Quantization::Q8_0).unwrap();
    let model = load(&straight).unwrap();
    assert!(model.model().front().embeddings().embed_tokens().tensor().is_err(), "the table is mapped");
    assert!(!caption(&straight).sequence.tokens.is_empty());
    // The values of one were rounded to bf16 in between.
    let table = |folder: &Path| {
        let file = GgufFile::open(folder.join(GgufFile::MODEL)).unwrap();
        values(&file.load_tensor("model.embed_tokens.weight", DType::F32, &Device::Cpu).unwrap())
    };
    let (straight, later) = (table(&straight), table(&later));
    assert!(straight != later && straight.iter().zip(&later).all(|(a, b)| (a - b).abs() < 0.01));
}

/// Rows of the models here, more than tokens.
const ROWS: usize = 304;

/// Special tokens behind `first` others, for a vocabulary and for a list of added tokens.
fn special(first: usize) -> (Vec<(String, Value)>, Value) {
    let tokens = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"].into_iter().zip(first..);
    let added = tokens.clone().map(|(token, id)| {
        json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    });
    let added = added.collect();
    (tokens.map(|(token, id)| (token.to_string(), json!(id))).collect(), added)
}

/// A tokenizer over bytes, as GPT-2 has it, with two merges.
fn byte_tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256).filter(|byte| !printable(*byte));
    let characters = (0..256).filter(|byte| printable(*byte)).chain(others.enumerate().map(|(i, _)| 256 + i as u32));
    let tokens = characters.map(|c| char::from_u32(c).unwrap().to_string()).chain(["th", "the"].map(String::from));
    let mut vocab: Map<String, Value> = tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let (special, added) = special(vocab.len());
    vocab.extend(special);
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": ["t h", "th e"] },
    })
}

/// A tokenizer as Llama 2 has it: characters, merges, and tokens for the bytes of what is no token.
fn sentencepiece_tokenizer() -> Value {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let merges = ["t h", "th e", "\u{2581} the", "e r"];
    let characters = "\u{2581}theocrasn123:'".chars().map(String::from);
    let tokens = ["<unk>".to_string()].into_iter().chain(bytes).chain(characters);
    let tokens = tokens.chain(merges.map(|merge| merge.replace(' ', "")));
    let mut vocab: Map<String, Value> = tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let (special, added) = special(vocab.len());
    vocab.extend(special);
    let steps = [
        json!({ "type": "Prepend", "prepend": "\u{2581}" }),
        json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" }),
    ];
    json!({
        "version": "1.0", "added_tokens": added, "normalizer": { "type": "Sequence", "normalizers": steps },
        "model": { "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": true,
                   "byte_fallback": true },
    })
}

/// A model whose post-decoder can be exported, with this tokenizer.
fn exportable_with(decoder: DecoderConfig, tokenizer: &Value) -> (HaploVlConfig, TempDir) {
    let id = |token: &str| tokenizer["model"]["vocab"][token].as_u64().unwrap() as u32;
    let config = HaploVlConfig {
        vocab_size: ROWS,
        image_token_index: id("<image>"),
        video_token_index: id("<video>"),
        text_embedding: TextEmbedding::Projected,
        post_decoder: decoder,
        ..HaploVlConfig::tiny()
    };
    let folder = checkpoint_with(&config, 1.0);
    write(folder.path(), "tokenizer.json", tokenizer);
    write(folder.path(), "tokenizer_config.json", &json!({ "eos_token": "<|im_end|>" }));
    write(folder.path(), "generation_config.json", &json!({ "eos_token_id": id("<|im_end|>") }));
    (config, folder)
}

fn exportable(decoder: DecoderConfig) -> (HaploVlConfig, TempDir) {
    exportable_with(decoder, &byte_tokenizer())
}

/// Decoders of every architecture that can be exported.
fn decoders() -> Vec<(&'static str, DecoderConfig)> {
    let tiny = DecoderConfig { hidden_size: 32, intermediate_size: 64, ..HaploVlConfig::tiny().post_decoder };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let no_bias = DecoderConfig { qkv_bias: false, output_bias: false, mlp_bias: false, ..tiny.clone() };
    let linear = Some(RopeScaling::Linear { factor: 2.0 });
    vec![
        ("llama", tiny),
        ("llama", DecoderConfig { rope_scaling: Some(llama3), rope_theta: 5e5, ..no_bias.clone() }),
        ("qwen2", DecoderConfig { qkv_bias: true, ..no_bias.clone() }),
        ("qwen2", DecoderConfig { qkv_bias: true, rope_scaling: linear, ..no_bias.clone() }),
        ("qwen3", DecoderConfig { qk_norm: true, head_dim: Some(16), ..no_bias }),
    ]
}

/// The most likely tokens after a prompt, by this crate.
fn greedy(path: &Path, prompt: &[u32], count: usize) -> Vec<u32> {
    let source = LlmSource::open(path).unwrap();
    let model = LanguageModel::new(source.config(), source.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let embeddings = model.embed(&Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu).unwrap()).unwrap();
        let hidden = model.hidden_states(&embeddings, &SequenceLayout::text(1, ids.len())).unwrap();
        let logits = values(&model.lm_head().forward(&hidden.narrow(1, ids.len() - 1, 1).unwrap()).unwrap());
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

/// Prints the tokens of a text and the most likely ones after it.
const LLAMA_CPP: &str = r#"
import itertools, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=256, type_k=0, type_v=0, verbose=False)
prompt = model.tokenize(sys.argv[2].encode(), add_bos=False, special=False)
print(*prompt)
print(*itertools.islice(model.generate(prompt, top_k=1, temp=0.0), int(sys.argv[3])))
"#;

/// Opt-in: `HAPLOVL_LLAMA_CPP` is a Python with the package `llama-cpp-python`.
#[test]
fn llama_cpp_tokenises_and_continues_as_this_crate_does() {
    let Some(python) = std::env::var_os("HAPLOVL_LLAMA_CPP") else { return };
    let text = "the other cat's 123 hats: n\u{e4}h";
    let sentencepiece = ("llama", HaploVlConfig::tiny().post_decoder, sentencepiece_tokenizer());
    let over_bytes = decoders().into_iter().map(|(name, decoder)| (name, decoder, byte_tokenizer()));
    for (architecture, decoder, tokenizer) in over_bytes.chain([sentencepiece]) {
        let (_, folder) = exportable_with(DecoderConfig { hidden_size: 32, ..decoder }, &tokenizer);
        let path = folder.path().join("half.gguf");
        export_llama_cpp(folder.path(), &path, None, None).unwrap();
        let output =
            std::process::Command::new(&python).args(["-c", LLAMA_CPP]).arg(&path).args([text, "24"]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<u32>> =
            printed.lines().map(|line| line.split(' ').map(|id| id.parse().unwrap()).collect()).collect();
        let prompt = TextTokenizer::from_folder(folder.path()).unwrap().encode(text).unwrap();
        let expected = vec![prompt.clone(), greedy(&path, &prompt, 24)];
        assert_eq!(lines, expected, "{architecture}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_language_half_is_read_as_the_language_model_that_it_is() {
    for (architecture, decoder) in decoders() {
        let (config, folder) = exportable(decoder);
        let path = folder.path().join("half.gguf");
        assert!(export_llama_cpp(folder.path(), &path, None, None).unwrap().is_empty());
        let half = LlmSource::open(&path).unwrap();
        assert_eq!(half.config().decoder, config.post_decoder);
        assert_eq!((half.config().vocab_size, half.config().max_position_embeddings), (ROWS, 256));
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.metadata()["general.architecture"], GgufValue::Text(architecture.into()));
        assert_eq!(file.metadata()["tokenizer.ggml.model"], GgufValue::Text("gpt2".into()));
        assert_eq!(file.metadata()["tokenizer.ggml.eos_token_id"], GgufValue::Unsigned(259));
        let tokens = file.tokens().unwrap().unwrap();
        assert_eq!((tokens.len(), tokens[259].as_str(), tokens[303].as_str()), (ROWS, "<|im_end|>", "[PAD303]"));
        let whole = open_weights(folder.path()).unwrap();
        let first = config.pre_decoder.num_hidden_layers;
        for name in half.tensors().tensor_names() {
            let own = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
                Some((layer, rest)) => format!("model.layers.{}.{rest}", layer.parse::<usize>().unwrap() + first),
                None => name.clone(),
            };
            let load =
                |source: &dyn TensorSource, name: &str| source.load_tensor(name, DType::F32, &Device::Cpu).unwrap();
            assert_eq!(values(&load(half.tensors(), &name)), values(&load(&*whole, &own)), "{architecture} {name}");
        }
    }
}

#[test]
fn what_llama_cpp_has_not_is_named() {
    let export = |folder: &TempDir, llm: Option<&Path>| {
        let path = folder.path().join("half.gguf");
        let error = export_llama_cpp(folder.path(), &path, Some(Quantization::Q8_0), llm).unwrap_err().to_string();
        assert!(!path.exists() && error.len() < 300, "{error}");
        error
    };
    let words =
        checkpoint_with(&HaploVlConfig { text_embedding: TextEmbedding::Projected, ..HaploVlConfig::tiny() }, 1.0);
    assert!(export(&words, None).contains("of the kind `WordLevel`"));
    let direct = checkpoint_with(&HaploVlConfig::tiny(), 1.0);
    assert!(export(&direct, None).contains("table is 16 wide, the language half 24"), "{}", export(&direct, None));
    let (_, normed) = exportable(DecoderConfig { qk_norm: true, ..HaploVlConfig::tiny().post_decoder });
    assert!(export(&normed, None).contains("post_decoder.qk_norm"));
}

#[test]
fn matrices_without_whole_blocks_stay_floats_and_are_returned() {
    let decoder = DecoderConfig { hidden_size: 64, intermediate_size: 80, ..HaploVlConfig::tiny().post_decoder };
    let (_, folder) = exportable(decoder);
    let path = folder.path().join("half.gguf");
    let floats = export_llama_cpp(folder.path(), &path, Some(Quantization::Q8_0), None).unwrap();
    assert_eq!(floats, ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]);
    let half = LlmSource::open(&path).unwrap();
    assert_eq!(half.tensors().tensor_shape("model.layers.0.mlp.down_proj.weight"), Some([64, 80].as_slice()));
    let again = export_llama_cpp(folder.path(), &path, None, None).unwrap_err().to_string();
    assert!(again.contains("exists already"), "{again}");
}
