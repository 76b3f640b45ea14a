//! Model folders that are made of others: with random weights, and language halves for llama.cpp.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use haplovl::config::{DecoderConfig, HaploVlConfig, RopeScaling, TextEmbedding};
use haplovl::model::HaploVl;
use haplovl::options::Quantization;
use haplovl::pipeline::{Captioner, export_llama_cpp, quantize_folder, random_folder};
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

/// A tokenizer over bytes, as GPT-2 has it, without merges.
fn byte_tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256).filter(|byte| !printable(*byte));
    let characters = (0..256).filter(|byte| printable(*byte)).chain(others.enumerate().map(|(i, _)| 256 + i as u32));
    let mut vocab: Map<String, Value> =
        characters.enumerate().map(|(id, c)| (char::from_u32(c).unwrap().to_string(), json!(id))).collect();
    let special = [(256, "<|im_start|>"), (257, "<|im_end|>"), (258, "<image>"), (259, "<video>")];
    vocab.extend(special.map(|(id, token)| (token.to_string(), json!(id))));
    let added = special.map(|(id, token)| {
        json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// A model whose post-decoder can be exported, with a tokenizer over bytes.
fn exportable(decoder: DecoderConfig) -> (HaploVlConfig, TempDir) {
    let config = HaploVlConfig {
        vocab_size: 264,
        image_token_index: 258,
        video_token_index: 259,
        text_embedding: TextEmbedding::Projected,
        post_decoder: decoder,
        ..HaploVlConfig::tiny()
    };
    let folder = checkpoint_with(&config, 1.0);
    write(folder.path(), "tokenizer.json", &byte_tokenizer());
    write(folder.path(), "tokenizer_config.json", &json!({ "eos_token": "<|im_end|>" }));
    write(folder.path(), "generation_config.json", &json!({ "eos_token_id": 257 }));
    (config, folder)
}

#[test]
fn a_language_half_is_read_as_the_language_model_that_it_is() {
    let tiny = HaploVlConfig::tiny().post_decoder;
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let no_bias = DecoderConfig { qkv_bias: false, output_bias: false, mlp_bias: false, ..tiny.clone() };
    for (architecture, decoder) in [
        ("llama", tiny.clone()),
        ("llama", DecoderConfig { rope_scaling: Some(llama3), rope_theta: 5e5, ..no_bias.clone() }),
        ("qwen2", DecoderConfig { qkv_bias: true, ..no_bias.clone() }),
        (
            "qwen2",
            DecoderConfig {
                qkv_bias: true,
                rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
                ..no_bias.clone()
            },
        ),
        ("qwen3", DecoderConfig { qk_norm: true, head_dim: Some(8), ..no_bias }),
    ] {
        let (config, folder) = exportable(decoder);
        let path = folder.path().join("half.gguf");
        assert!(export_llama_cpp(folder.path(), &path, None, None).unwrap().is_empty());
        let half = LlmSource::open(&path).unwrap();
        assert_eq!(half.config().decoder, config.post_decoder);
        assert_eq!((half.config().vocab_size, half.config().max_position_embeddings), (264, 256));
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.metadata()["general.architecture"], GgufValue::Text(architecture.into()));
        assert_eq!(file.metadata()["tokenizer.ggml.model"], GgufValue::Text("gpt2".into()));
        assert_eq!(file.metadata()["tokenizer.ggml.eos_token_id"], GgufValue::Unsigned(257));
        let tokens = file.tokens().unwrap().unwrap();
        assert_eq!((tokens.len(), tokens[257].as_str(), tokens[263].as_str()), (264, "<|im_end|>", "[PAD263]"));
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
