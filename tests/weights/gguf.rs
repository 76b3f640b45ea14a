//! GGUF: the parity fixtures in llama.cpp's format, and hostile headers.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use haplovl::config::RopeScaling;
use haplovl::weights::{GgufFile, GgufValue, LlmSource, TensorSource};

use super::inherit::fixture;

const PARTS: [(&str, &str); 11] = [
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// HF folder of a fixture.
fn hf_folder(name: &str) -> PathBuf {
    if name == "qwen3" { fixture("../bring/qwen3") } else { fixture("llm").join(name) }
}

fn gguf_name(hf: &str) -> String {
    let mut name = hf.replace("model.layers.", "blk.");
    for (hf, gguf) in PARTS {
        name = name.replace(hf, gguf);
    }
    for (hf, gguf) in [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")] {
        name = name.replace(hf, gguf);
    }
    name
}

/// Permutes rows from HF's to GGUF's order: row `2 i + s` of a head is HF's row `s * half + i`.
fn interleave(tensor: &Tensor, heads: usize) -> Tensor {
    let rows = tensor.dims()[0];
    let half = rows / heads / 2;
    let order: Vec<u32> = (0..rows)
        .map(|row| {
            let (head, within) = (row / (2 * half), row % (2 * half));
            (head * 2 * half + (within % 2) * half + within / 2) as u32
        })
        .collect();
    tensor.index_select(&Tensor::new(order, &Device::Cpu).unwrap(), 0).unwrap()
}

/// Writes a fixture as GGUF with additional metadata and tensors.
fn write(path: &Path, name: &str, dtype: GgmlDType, metadata: &[(&str, Value)], tensors: &[(&str, Tensor)]) {
    let source = LlmSource::open(hf_folder(name)).unwrap();
    let decoder = &source.config().decoder;
    let key = |key: &str| format!("{name}.{key}");
    let number = |n: usize| Value::U32(n as u32);
    let mut values = vec![
        ("general.architecture".to_string(), Value::String(name.into())),
        ("tokenizer.ggml.tokens".to_string(), Value::Array(vec![Value::String("a".into()), Value::String("b".into())])),
        ("tokenizer.ggml.scores".to_string(), Value::Array(vec![Value::F32(0.5); 3])),
        (key("block_count"), number(decoder.num_hidden_layers)),
        (key("embedding_length"), number(decoder.hidden_size)),
        (key("feed_forward_length"), number(decoder.intermediate_size)),
        (key("attention.head_count"), number(decoder.num_attention_heads)),
        (key("attention.head_count_kv"), number(decoder.num_key_value_heads)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(decoder.norm_eps as f32)),
        (key("rope.freq_base"), Value::F32(decoder.rope_theta as f32)),
        (key("context_length"), number(source.config().max_position_embeddings)),
    ];
    if decoder.head_dim.is_some() {
        values.push((key("attention.key_length"), number(decoder.head_dim())));
    }
    values.extend(metadata.iter().map(|(key, value)| (key.to_string(), value.clone())));
    let mut stored = Vec::new();
    for hf in source.tensors().tensor_names() {
        let mut tensor = source.tensors().load_tensor(&hf, DType::F32, &Device::Cpu).unwrap();
        if name == "llama" && (hf.contains("q_proj") || hf.contains("k_proj")) {
            tensor = interleave(&tensor, decoder.num_attention_heads);
        }
        // Tensors whose rows are not a multiple of the block size stay f32.
        let dtype =
            if tensor.dims().last().unwrap().is_multiple_of(dtype.block_size()) { dtype } else { GgmlDType::F32 };
        stored.push((gguf_name(&hf), QTensor::quantize(&tensor, dtype).unwrap()));
    }
    for (name, tensor) in tensors {
        stored.push((name.to_string(), QTensor::quantize(tensor, GgmlDType::F32).unwrap()));
    }
    let values: Vec<_> = values.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let stored: Vec<_> = stored.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &values, &stored).unwrap();
}

fn written(
    name: &str,
    metadata: &[(&str, Value)],
    tensors: &[(&str, Tensor)],
) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, name, GgmlDType::F32, metadata, tensors);
    (folder, path)
}

fn open_error(path: &Path) -> String {
    LlmSource::open(path).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn gguf_equals_the_hf_folder() {
    for name in ["llama", "qwen2", "qwen3"] {
        let (_folder, path) = written(name, &[], &[]);
        let (gguf, hf) = (LlmSource::open(&path).unwrap(), LlmSource::open(hf_folder(name)).unwrap());
        assert_eq!(gguf.config(), hf.config());
        assert_eq!(gguf.tensors().tensor_names(), hf.tensors().tensor_names());
        for tensor in hf.tensors().tensor_names() {
            let load = |source: &LlmSource| source.tensors().load_tensor(&tensor, DType::F32, &Device::Cpu).unwrap();
            let (a, b) = (load(&gguf), load(&hf));
            assert_eq!(a.dims(), b.dims(), "{tensor}");
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&a), values(&b), "{tensor}");
        }
    }
}

/// Writes a part of a split file with one tensor.
fn write_part(path: &Path, part: u16, name: &str) {
    let tensor = Tensor::new(&[f32::from(part); 8], &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
    let values =
        [("split.no", Value::U16(part)), ("split.count", Value::U16(2)), ("split.tensors.count", Value::I32(2))];
    let values: Vec<_> = values.iter().map(|(key, value)| (*key, value)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &values, &[(name, &tensor)]).unwrap();
}

#[test]
fn every_part_of_a_split_file_opens_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let part = |number: usize| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
    let error = |path: &Path| GgufFile::open(path).unwrap_err().to_string();
    write_part(&part(1), 0, "a");
    assert!(error(&part(1)).contains("`m-00002-of-00002.gguf` is not beside it"), "{}", error(&part(1)));
    write_part(&part(2), 1, "b");
    for number in [1, 2] {
        let file = GgufFile::open(part(number)).unwrap();
        assert_eq!(file.tensor_names(), ["a", "b"]);
        let values = file.load_tensor("b", DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, [1.0; 8]);
    }
    write_part(&part(2), 1, "a");
    assert!(error(&part(1)).contains("two tensors"), "{}", error(&part(1)));
    write_part(&part(2), 0, "b");
    assert!(error(&part(1)).contains("is part 1 of 2 by its content, expected part 2 of 2"), "{}", error(&part(1)));
    let alone = folder.path().join("alone.gguf");
    write_part(&alone, 0, "a");
    assert!(error(&alone).contains("is one of 2 parts, but is not named like one"), "{}", error(&alone));
}

#[test]
fn quantised_tensors_are_dequantised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (dtype, tolerance) in [(GgmlDType::F16, 1e-3), (GgmlDType::BF16, 1e-2)] {
        write(&path, "qwen2", dtype, &[], &[]);
        let (gguf, hf) = (LlmSource::open(&path).unwrap(), LlmSource::open(fixture("llm/qwen2")).unwrap());
        let rows = |source: &LlmSource| source.config().vocab_size;
        let embedding = |source: &LlmSource| source.embedding(rows(source), DType::F32, &Device::Cpu).unwrap();
        let (a, b) = (embedding(&gguf), embedding(&hf));
        let worst = (a - &b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let largest = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst > 0.0 && worst < tolerance * largest, "{worst} of {largest}");
    }
    let blocks = Tensor::new((0..256).map(|i| (i as f32 * 0.1).sin()).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let quantised = [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q5_0, GgmlDType::Q4K, GgmlDType::Q6K];
    let stored = quantised.map(|dtype| (format!("{dtype:?}"), QTensor::quantize(&blocks, dtype).unwrap()));
    let stored: Vec<_> = stored.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let architecture = ("general.architecture", &Value::String("qwen2".into()));
    gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &[architecture], &stored).unwrap();
    let file = GgufFile::open(&path).unwrap();
    for dtype in quantised {
        let tensor = file.load_tensor(&format!("{dtype:?}"), DType::F32, &Device::Cpu).unwrap();
        let worst = (tensor - &blocks).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 0.15, "{dtype:?}: {worst}");
    }
}

#[test]
fn metadata_can_be_read() {
    let (_folder, path) = written("llama", &[], &[]);
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata()["llama.block_count"], GgufValue::Unsigned(3));
    assert_eq!(file.metadata()["llama.attention.layer_norm_rms_epsilon"], GgufValue::Float(1e-5));
    assert_eq!(file.metadata()["tokenizer.ggml.tokens"], GgufValue::Array(2));
    assert_eq!(file.shape("model.layers.0.mlp.down_proj.weight"), Some([48, 112].as_slice()));
    assert_eq!(file.tokens().unwrap().unwrap(), ["a", "b"]);
}

#[test]
fn llama_3_1_rope_scaling_is_detected() {
    // Heads 8 wide, theta 500000: wavelengths 2 pi times 1, 26.6, 707.1, 18803. The first two are shorter than 8192 / 4
    // and keep their frequency, the frequency of the last (longer than 8192) is divided by 8, and the third is
    // interpolated.
    let smooth = (8192.0 / (2.0 * std::f64::consts::PI * 500_000f64.sqrt()) - 1.0) / 3.0;
    let third = 1.0 / ((1.0 - smooth) / 8.0 + smooth);
    let open = |third: f64| {
        let divisors = Tensor::new(&[1.0, 1.0, third as f32, 8.0], &Device::Cpu).unwrap();
        let theta = ("llama.rope.freq_base", Value::F32(500_000.0));
        let (_folder, path) = written("llama", &[theta], &[("rope_freqs.weight", divisors)]);
        LlmSource::open(&path)
    };
    let source = open(third).unwrap();
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(source.config().decoder.rope_scaling, Some(expected));
    assert!(!source.tensors().tensor_names().contains(&"rope_freqs.weight".to_string()));
    let message = open(third * 1.1).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("not the scaling of Llama 3.1"), "{message}");
}

#[test]
fn unsupported_values_are_named() {
    let cases = [
        (("general.architecture", Value::String("gemma".into())), "expected one of llama, qwen2, qwen3"),
        (("llama.rope.dimension_count", Value::U32(4)), "`rope.dimension_count` is 4, expected 8"),
        (("llama.attention.value_length", Value::U32(16)), "`attention.value_length` is 16, expected 8"),
        (("llama.attention.key_length", Value::U32(0)), "llm.head_dim"),
        (("llama.attention.head_count", Value::String("six".into())), "attention.head_count"),
        (("llama.attention.head_count", Value::U32(0)), "num_attention_heads"),
        (("llama.attention.head_count", Value::I32(-6)), "attention.head_count"),
        (("llama.rope.scaling.type", Value::String("yarn".into())), "yarn"),
        (("general.alignment", Value::U32(0)), "power of two"),
        (("general.alignment", Value::U32(3)), "power of two"),
    ];
    for ((key, value), expected) in cases {
        let (_folder, path) = written("llama", &[(key, value)], &[]);
        let message = open_error(&path);
        assert!(message.contains(expected), "{key}: {message}");
    }
}

/// A GGUF header with these counts, followed by `rest`.
fn header(tensors: u64, values: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF", &3u32.to_le_bytes()[..], &tensors.to_le_bytes(), &values.to_le_bytes(), rest].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tensor description.
fn description(shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text("t");
    bytes.extend((shape.len() as u32).to_le_bytes());
    shape.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn inconsistent_headers_are_rejected() {
    let array = |kind: u32, length: u64| {
        [text("k"), 9u32.to_le_bytes().to_vec(), kind.to_le_bytes().to_vec(), length.to_le_bytes().to_vec()].concat()
    };
    let cases = [
        ("nothing", vec![], "not GGUF"),
        ("another file", b"PK\x03\x04 and so on".to_vec(), "not GGUF"),
        ("version 1", [b"GGUF", &1u32.to_le_bytes()[..]].concat(), "version 1"),
        ("big endian", [b"GGUF", &3u32.to_be_bytes()[..]].concat(), "little-endian"),
        ("many tensors", header(u64::MAX, 0, &[]), "truncated"),
        ("many values", header(0, u64::MAX, &[]), "truncated"),
        ("long name", header(0, 1, &u64::MAX.to_le_bytes()), "truncated"),
        ("unknown value", header(0, 1, &[text("k"), 77u32.to_le_bytes().to_vec()].concat()), "unknown kind 77"),
        ("long array", header(0, 1, &array(4, u64::MAX)), "truncated"),
        ("long array of texts", header(0, 1, &array(8, u64::MAX)), "truncated"),
        ("nested array", header(0, 1, &array(9, 1)), "unsupported kind 9"),
        ("dimensions", header(1, 0, &description(&[1; 5], 0, 0)), "5 dimensions"),
        ("huge shape", header(1, 0, &description(&[u64::MAX, u64::MAX], 0, 0)), "does not lie in the file"),
        ("beyond the file", header(1, 0, &description(&[1 << 40], 0, 0)), "does not lie in the file"),
        ("far offset", header(1, 0, &description(&[1], 0, !31)), "does not lie in the file"),
        ("odd offset", header(1, 0, &description(&[1], 0, 1)), "does not lie in the file"),
        ("no elements", header(1, 0, &description(&[0], 0, 0)), "does not lie in the file"),
        ("part of a block", header(1, 0, &description(&[2, 16], 8, 0)), "does not lie in the file"),
        ("unknown dtype", header(1, 0, &description(&[1], 99, 0)), "unknown GGML type 99"),
        ("interleaved vector", header(1, 0, &description(&[256], 0x4876_000c, 0)), "does not lie in the file"),
        ("interleaved part", header(1, 0, &description(&[100, 16], 0x4876_000c, 0)), "does not lie in the file"),
        ("huge interleaved", header(1, 0, &description(&[256, !0], 0x4876_000c, 0)), "does not lie in the file"),
        ("interleaved floats", header(1, 0, &description(&[256, 16], 0x4876_0000, 0)), "unknown GGML type 1215692800"),
        ("known dtype", header(1, 0, &description(&[256], 20, 0)), "GGML type IQ4_NL, which cannot be read: use"),
        ("known dtype", header(1, 0, &description(&[256], 23, 0)), "GGML type IQ4_XS, which cannot be read: use"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.gguf");
    for (what, bytes, expected) in cases {
        std::fs::write(&path, bytes).unwrap();
        let message = open_error(&path);
        assert!(message.contains(expected) && message.contains("hostile.gguf"), "{what}: {message}");
    }
}

#[test]
fn truncated_and_corrupted_files_never_panic() {
    let (_folder, path) = written("qwen2", &[], &[]);
    let whole = std::fs::read(&path).unwrap();
    for length in [4, 8, 24, 100, 1000, 3000, whole.len() / 2, whole.len() - 64] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(open_error(&path).contains("download it again"), "{length}");
    }
    // Only the header is mutated, not the data.
    for position in (0..3000).step_by(3) {
        let mut bytes = whole.clone();
        bytes[position] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        if let Ok(source) = LlmSource::open(&path) {
            let _ = source.embedding(source.config().vocab_size, DType::F32, &Device::Cpu);
        }
    }
}
