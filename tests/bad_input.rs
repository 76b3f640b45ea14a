//! Invalid input: it is rejected with a message that names the problem, without a panic, and without large allocations
//! that an inconsistent header asks for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed helper fails its test")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence, Visual};
use haplovl::config::{GenerationConfig, HaploVlConfig, PreprocessorConfig, ProcessorConfig};
use haplovl::model::{ClipVision, HaploVl, LanguageModel};
use haplovl::patch_grid::{PatchGrid, Size};
use haplovl::processor::{Conversation, ImageDecoder, RgbImage};
use haplovl::weights::{ClipConfig, LlmConfig, LlmSource, ParameterShapes, Parameters, SafetensorsFiles};
use image::ImageFormat;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// The system allocator, recording the largest single request of the process.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every request is forwarded to the system allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// All inputs here are small; a larger allocation trusts an unchecked size.
const MOST_BYTES: usize = 64 << 20;

fn assert_bounded(what: &str) {
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < MOST_BYTES, "{what}: {largest} bytes were requested at once");
}

// --- configurations ---------------------------------------------------------------------------------------------

fn own() -> Value {
    serde_json::to_value(HaploVlConfig::tiny()).unwrap()
}

fn official() -> Value {
    HaploVlConfig::tiny().to_official().unwrap()
}

/// The error of a configuration with a changed value at a JSON pointer.
fn config_error(mut config: Value, pointer: &str, value: Value) -> String {
    let shown = format!("{pointer} = {value}");
    *config.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    match HaploVlConfig::from_json(config) {
        Ok(_) => panic!("{shown} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn inconsistent_and_extreme_configurations_name_the_field() {
    let huge = 1u64 << 60;
    for (pointer, value, field, what) in [
        ("/vocab_size", json!(0), "vocab_size", "is 0, expected at least 1"),
        ("/vocab_size", json!(huge), "vocab_size", "expected at most"),
        ("/max_position_embeddings", json!(0), "max_position_embeddings", "is 0"),
        ("/max_position_embeddings", json!(huge), "max_position_embeddings", "expected at most"),
        ("/image_token_index", json!(96), "image_token_index", "is 96, outside the vocabulary of 96"),
        ("/video_token_index", json!(94), "video_token_index", "the same as image_token_index"),
        ("/pre_decoder/hidden_size", json!(0), "pre_decoder.hidden_size", "is 0"),
        (
            "/pre_decoder/hidden_size",
            json!(17),
            "pre_decoder.hidden_size",
            "is 17, not a multiple of num_attention_heads",
        ),
        ("/pre_decoder/hidden_size", json!(huge), "pre_decoder.hidden_size", "expected at most"),
        ("/pre_decoder/hidden_size", json!(14), "pre_decoder.hidden_size", "heads of width 7, but rotary"),
        ("/pre_decoder/num_attention_heads", json!(0), "pre_decoder.num_attention_heads", "is 0"),
        ("/post_decoder/num_key_value_heads", json!(3), "post_decoder.num_attention_heads", "is 4, not a multiple of"),
        ("/post_decoder/num_key_value_heads", json!(0), "post_decoder.num_key_value_heads", "is 0"),
        ("/post_decoder/intermediate_size", json!(0), "post_decoder.intermediate_size", "is 0"),
        ("/post_decoder/intermediate_size", json!(huge), "post_decoder.intermediate_size", "expected at most"),
        ("/post_decoder/num_hidden_layers", json!(huge), "post_decoder.num_hidden_layers", "expected at most"),
        ("/post_decoder/norm_eps", json!(0.0), "post_decoder.norm_eps", "finite number above 0"),
        ("/post_decoder/rope_theta", json!(-1.0), "post_decoder.rope_theta", "is -1"),
        ("/pre_decoder/rope", json!("shared"), "pre_decoder.rope", "the heads are 8 and 6 wide"),
        ("/tie_word_embeddings", json!(true), "tie_word_embeddings", "the table is 16 wide and the head 24"),
        ("/vision/patch_size", json!(0), "vision.patch_size", "is 0"),
        ("/vision/patch_size", json!(13), "vision.image_size", "is 28, not a multiple of patch_size = 13"),
        ("/vision/image_size", json!(0), "vision.image_size", "is 0"),
        ("/vision/image_size", json!(1 << 20), "vision.image_size", "expected at most"),
        ("/vision/image_grid_pinpoints", json!([]), "vision.image_grid_pinpoints", "is empty"),
        ("/vision/image_grid_pinpoints", json!([[28, 0]]), "vision.image_grid_pinpoints[0]", "is 0"),
        ("/vision/image_grid_pinpoints", json!([[28, 30]]), "vision.image_grid_pinpoints[0]", "is 30, not a multiple"),
        ("/vision/image_grid_pinpoints", json!([[huge, 28]]), "vision.image_grid_pinpoints[0]", "expected at most"),
        ("/vision/image_grid_pinpoints", json!([[65520, 65520]]), "vision.image_grid_pinpoints[0]", "expected at most"),
        ("/vision/image_aspect_ratio", json!("anyres_max_0"), "vision.image_aspect_ratio", "is 0"),
        (
            "/vision/image_aspect_ratio",
            json!("anyres_max_18446744073709551615"),
            "vision.image_aspect_ratio",
            "expected at most",
        ),
    ] {
        let message = config_error(own(), pointer, value.clone());
        assert!(message.starts_with(&format!("configuration field `{field}")), "{pointer} = {value}: {message}");
        assert!(message.contains(what), "{pointer} = {value}: {message}");
    }
    assert_bounded("configurations");
}

#[test]
fn large_total_sizes_are_rejected() {
    let mut config = own();
    for decoder in ["pre_decoder", "post_decoder"] {
        config[decoder]["num_hidden_layers"] = json!(4096);
        config[decoder]["hidden_size"] = json!(1 << 16);
        config[decoder]["intermediate_size"] = json!(1 << 20);
    }
    let message = config_error(config, "/post_decoder/num_attention_heads", json!(2));
    assert!(message.contains("(number of parameters)") && message.contains("expected at most"), "{message}");
}

#[test]
fn unknown_names_and_wrong_types_name_the_field() {
    for (pointer, value, field, what) in [
        (
            "/pre_decoder/hidden_act",
            json!("swishy"),
            "pre_decoder.hidden_act",
            "unknown variant `swishy`, expected one",
        ),
        ("/pre_decoder/norm_mode", json!("batchnorm"), "pre_decoder.norm_mode", "expected `layernorm` or `rmsnorm`"),
        ("/pre_decoder/mlp", json!("moe"), "pre_decoder.mlp", "expected `gated` or `plain`"),
        ("/image_attention", json!("sideways"), "image_attention", "expected `bidirectional` or `causal`"),
        (
            "/vision/image_aspect_ratio",
            json!("square"),
            "vision.image_aspect_ratio",
            "expected `anyres` or `anyres_max_N`",
        ),
        ("/model_type", json!("llava"), "model_type", "is `llava`, expected `haplovl` or `haplo`"),
        ("/vocab_size", json!("many"), "vocab_size", "string \"many\", expected usize"),
        ("/vocab_size", json!(-3), "vocab_size", "integer `-3`, expected usize"),
        ("/vocab_size", json!(1.5), "vocab_size", "floating point `1.5`, expected usize"),
        ("/pre_decoder", json!([1, 2]), "pre_decoder", "expected struct DecoderConfig"),
        ("/vision/image_grid_pinpoints", json!([[28, 28], [28]]), "vision.image_grid_pinpoints[1]", "invalid length 1"),
    ] {
        let message = config_error(own(), pointer, value.clone());
        assert!(message.starts_with(&format!("configuration field `{field}`")), "{pointer} = {value}: {message}");
        assert!(message.contains(what), "{pointer} = {value}: {message}");
    }
    let mut unknown = own();
    unknown["pre_decoder"]["hiden_size"] = json!(16);
    let message = HaploVlConfig::from_json(unknown).unwrap_err().to_string();
    assert!(message.contains("`pre_decoder.hiden_size`: unknown field"), "{message}");
    let mut missing = own();
    missing["pre_decoder"].as_object_mut().unwrap().remove("mlp");
    let message = HaploVlConfig::from_json(missing).unwrap_err().to_string();
    assert!(message.contains("`pre_decoder`: missing field `mlp`"), "{message}");
}

#[test]
fn official_configurations_name_the_part_and_the_field() {
    for (pointer, value, field, what) in [
        ("/model_type", json!("llava"), "model_type", "is `llava`, expected `haplo`"),
        ("/base_config", json!(7), "base_config", "is not an object"),
        ("/base_config/hidden_act", json!("swishy"), "base_config.hidden_act", "is \"swishy\": unknown variant"),
        ("/base_config/vocab_size", json!("many"), "base_config.vocab_size", "is \"many\""),
        ("/base_config/vocab_size", json!(null), "base_config.vocab_size", "is null"),
        ("/pre_config/norm_mode", json!(3), "pre_config.norm_mode", "is 3"),
        ("/pre_config/num_attention_heads", json!(3), "pre_decoder.hidden_size", "not a multiple"),
        ("/base_config/image_grid_pinpoints", json!("336"), "base_config.image_grid_pinpoints", "is \"336\""),
        ("/base_config/attention_rope", json!("yes"), "base_config.attention_rope", "is \"yes\""),
    ] {
        let message = config_error(official(), pointer, value.clone());
        assert!(message.starts_with(&format!("configuration field `{field}`")), "{pointer} = {value}: {message}");
        assert!(message.contains(what), "{pointer} = {value}: {message}");
    }
    let mut contradiction = official();
    contradiction["pre_config"]["patch_size"] = json!(7);
    let message = HaploVlConfig::from_json(contradiction).unwrap_err().to_string();
    assert!(message.contains("pre_config.patch_size") && message.contains("base_config.patch_size is 14"), "{message}");
    let mut headless = official();
    headless.as_object_mut().unwrap().remove("pre_config");
    let message = HaploVlConfig::from_json(headless).unwrap_err().to_string();
    assert!(message.contains("`pre_config`: is missing"), "{message}");
    for other in [json!(null), json!([]), json!("config"), json!({})] {
        let message = HaploVlConfig::from_json(other).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.contains("expected an official `base_config`"), "{message}");
    }
}

// --- prompts, images and batches --------------------------------------------------------------------------------

fn picture(height: usize, width: usize) -> Visual {
    let config = HaploVlConfig::tiny();
    let size = Size::new(height, width);
    let tiles = PatchGrid::new(&config.vision, size).unwrap().num_tiles();
    Visual::Image { pixel_values: Tensor::zeros((tiles, 3, 28, 28), DType::F32, &Device::Cpu).unwrap(), size }
}

fn batched(input_ids: Vec<u32>, visuals: Vec<Visual>) -> haplovl::Result<MultimodalBatch> {
    let config = HaploVlConfig::tiny();
    let sequence = Sequence { input_ids, labels: None, visuals };
    MultimodalBatch::new(&[sequence], BatchSpec::new(&config), PaddingSide::Left, &Device::Cpu)
}

#[test]
fn mismatched_placeholders_are_counted() {
    let tokens = picture(28, 28).tokens(&HaploVlConfig::tiny().vision).unwrap();
    let image = |n: usize| [vec![1], vec![94; n], vec![2]].concat();
    let video = vec![95; tokens];
    for (ids, pictures, expected) in [
        (image(tokens), 0, "6 image or video placeholder tokens are left over after its 0 image(s)"),
        (image(2 * tokens), 1, "6 image or video placeholder tokens are left over after its 1 image(s)"),
        (image(tokens), 2, "image 2 of 2 needs 6 placeholder tokens, but 0 stand in its place (6 in the whole prompt)"),
        (image(tokens - 1), 1, "image 1 of 1 needs 6 placeholder tokens, but 5 stand in its place"),
        (video, 1, "image 1 of 1 needs 6 placeholder tokens, but 0 stand in its place"),
        (vec![1, 2], 1, "but 0 stand in its place (0 in the whole prompt): give one `<image>` for each image"),
    ] {
        let message = batched(ids, vec![picture(28, 28); pictures]).unwrap_err().to_string();
        assert!(message.starts_with("prompt: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn empty_overlong_and_mismatched_batches_are_errors() {
    let config = HaploVlConfig::tiny();
    let empty = MultimodalBatch::new(&[], BatchSpec::new(&config), PaddingSide::Left, &Device::Cpu).unwrap_err();
    assert!(empty.to_string().contains("is empty, expected at least one sequence"), "{empty}");
    let empty = batched(vec![], vec![]).unwrap_err().to_string();
    assert!(empty.contains("is empty"), "{empty}");
    let long = batched(vec![1; 257], vec![]).unwrap_err().to_string();
    assert!(long.contains("is 257 tokens long") && long.contains("context of 256: shorten it"), "{long}");
    let labels = Some(vec![1]);
    let unequal = [Sequence { input_ids: vec![1, 2], labels, visuals: vec![] }];
    let unequal = MultimodalBatch::new(&unequal, BatchSpec::new(&config), PaddingSide::Right, &Device::Cpu);
    let unequal = unequal.unwrap_err().to_string();
    assert!(unequal.contains("1 labels for 2 tokens: give one label per token"), "{unequal}");

    let parameters = Parameters::new();
    let model = HaploVl::new(&config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
    let message = model.forward(&batched(vec![1, 1000], vec![]).unwrap()).unwrap_err().to_string();
    assert!(message.contains("token id 1000 is outside the model's table of 96"), "{message}");
    let tokens = picture(28, 28).tokens(&config.vision).unwrap();
    let other_tiles = Tensor::zeros((4, 3, 28, 28), DType::F32, &Device::Cpu).unwrap();
    let foreign = Visual::Image { pixel_values: other_tiles, size: Size::new(28, 28) };
    let message = model.forward(&batched(vec![94; tokens], vec![foreign]).unwrap()).unwrap_err().to_string();
    assert!(message.contains("needs 1 tiles, found 4: use the ImageProcessor of the same model"), "{message}");
    let error = model.cache(1, 1 << 40).unwrap_err().to_string();
    assert!(error.contains("exceeds the model's context of 256"), "{error}");
    assert_bounded("batches");
}

#[test]
fn images_of_any_shape_reach_the_logits() {
    let config = HaploVlConfig::tiny();
    let parameters = Parameters::new();
    let model = HaploVl::new(&config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
    let processor = common::tiny_processor();
    for (width, height) in [(1, 1), (1, 10_000), (10_000, 1), (3, 2), (1000, 700)] {
        let conversation = Conversation::ask([RgbImage::new(width, height)], "What?");
        let batch = processor.batch(&[conversation], &Device::Cpu).unwrap();
        let logits = model.forward(&batch).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()), "{width}x{height}");
    }
}

// --- properties: reading any mutation of a valid file neither panics nor exhausts memory -------------------------

/// The content with some bytes changed, inserted, removed, repeated or truncated.
fn mutate(valid: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        // Most mutations are at the start, where the headers are.
        let reach = if rng.random_bool(0.7) { bytes.len().min(512) } else { bytes.len() };
        let at = rng.random_range(0..reach.max(1)).min(bytes.len());
        let end = (at + rng.random_range(1..=8)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at..end].iter_mut().for_each(|byte| *byte = rng.random()),
            1 => bytes[at..end].fill(if rng.random() { 0xFF } else { 0 }),
            2 => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Reads `rounds` mutations of a valid content.
fn survives(what: &str, valid: &[u8], rounds: u64, read: impl Fn(&[u8])) {
    for round in 0..rounds {
        let bytes = mutate(valid, &mut ChaCha8Rng::seed_from_u64(round));
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        assert!(outcome.is_ok(), "{what}: round {round} panics");
        assert_bounded(&format!("{what}, round {round}"));
    }
}

fn fixture(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(path)
}

#[test]
fn mutated_safetensors_never_panic() {
    let tensors = [("a", vec![1f32; 6]), ("b.weight", vec![2.0; 4])];
    let tensors = tensors.map(|(name, values)| (name, Tensor::new(values, &Device::Cpu).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path).unwrap();
    let valid = std::fs::read(&path).unwrap();
    survives("safetensors", &valid, 600, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        match SafetensorsFiles::open(&path) {
            Ok(files) => drop(files.load_all(&Device::Cpu)),
            Err(error) => assert!(error.to_string().contains("model.safetensors"), "{error}"),
        }
    });
}

#[test]
fn mutated_gguf_never_panics() {
    use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
    let text = |text: &str| gguf_file::Value::String(text.into());
    let number = gguf_file::Value::U32;
    let metadata = [
        ("general.architecture", text("llama")),
        ("llama.embedding_length", number(8)),
        ("llama.feed_forward_length", number(16)),
        ("llama.block_count", number(1)),
        ("llama.context_length", number(64)),
        ("llama.attention.head_count", number(2)),
        ("llama.attention.layer_norm_rms_epsilon", gguf_file::Value::F32(1e-5)),
        ("llama.vocab_size", number(4)),
    ];
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let table = Tensor::ones((4, 8), DType::F32, &Device::Cpu).unwrap();
    let table = QTensor::quantize(&table, GgmlDType::F32).unwrap();
    let mut valid = Cursor::new(Vec::new());
    gguf_file::write(&mut valid, &metadata, &[("token_embd.weight", &table)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, valid.get_ref()).unwrap();
    LlmSource::open(&path).unwrap().embedding(4, DType::F32, &Device::Cpu).unwrap();
    survives("GGUF", valid.get_ref(), 300, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(source) = LlmSource::open(&path) {
            let _ = source.embedding(1 << 20, DType::F32, &Device::Cpu);
            let shapes = ParameterShapes::default();
            let _ = LanguageModel::new(source.config(), shapes.var_builder());
        }
    });
}

#[test]
fn mutated_images_never_panic() {
    let picture = RgbImage::from_fn(23, 17, |x, y| image::Rgb([(x * y) as u8, x as u8, y as u8]));
    let decoder = ImageDecoder { max_pixels: 1 << 16, ..ImageDecoder::default() };
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Tiff] {
        let mut valid = Cursor::new(Vec::new());
        image::DynamicImage::from(picture.clone()).write_to(&mut valid, format).unwrap();
        survives(&format!("{format:?}"), valid.get_ref(), 200, |bytes| {
            let _ = decoder.decode(bytes, "mutated");
            let _ = decoder.frames(bytes, "mutated").map(|frames| frames.take(3).count());
        });
    }
}

/// A hostile value for a field.
fn hostile(rng: &mut ChaCha8Rng) -> Value {
    let choices = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(7),
        json!(14),
        json!(-1),
        json!(1 << 12),
        json!(1 << 16),
        json!(1 << 20),
        json!(1u64 << 32),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.0),
        json!(1e-320),
        json!(1e308),
        json!(-0.5),
        json!(""),
        json!("silu"),
        json!("shared"),
        json!("none"),
        json!("anyres"),
        json!("anyres_max_1"),
        json!("anyres_max_18446744073709551615"),
        json!([]),
        json!([[28, 28]]),
        json!([[0, 0]]),
        json!([[65536, 65536]]),
        json!({}),
        json!({ "rope_type": "linear", "factor": 1e300 }),
        json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": u64::MAX }),
    ];
    choices[rng.random_range(0..choices.len())].clone()
}

/// Replaces some values of an object, at any depth.
fn meddle(value: &mut Value, rng: &mut ChaCha8Rng) {
    let Value::Object(map) = value else {
        *value = hostile(rng);
        return;
    };
    let chosen = rng.random_range(0..map.len().max(1));
    match map.values_mut().nth(chosen) {
        Some(field) if field.is_object() => meddle(field, rng),
        Some(field) => *field = hostile(rng),
        None => {}
    }
}

/// All uses of a configuration that need no weights.
fn use_config(config: &HaploVlConfig) {
    HaploVl::parameter_shapes(config).unwrap();
    for (height, width) in [(1, 1), (1, 100_000), (640, 480), (100_000, 100_000)] {
        let grid = PatchGrid::new(&config.vision, Size::new(height, width)).unwrap();
        assert!(grid.tokens() > 0 && grid.num_tiles() > 0);
    }
    if let Ok(official) = config.to_official() {
        let ours = HaploVlConfig::from_json(official).unwrap();
        assert_eq!(ours.pre_decoder, config.pre_decoder);
    }
    let json = serde_json::to_value(config).unwrap();
    assert_eq!(&HaploVlConfig::from_json(json).unwrap(), config);
}

/// Reads `rounds` versions of a valid JSON file with some values replaced.
fn survives_meddling(what: &str, valid: &Value, rounds: u64, read: impl Fn(Value)) {
    for round in 0..rounds {
        let mut rng = ChaCha8Rng::seed_from_u64(round);
        let mut changed = valid.clone();
        (0..rng.random_range(1..=3)).for_each(|_| meddle(&mut changed, &mut rng));
        let outcome = catch_unwind(AssertUnwindSafe(|| read(changed.clone())));
        assert!(outcome.is_ok(), "{what}: round {round} panics: {changed}");
        assert_bounded(&format!("{what}, round {round}: {changed}"));
    }
}

#[test]
fn configurations_with_any_values_never_panic() {
    for (what, valid) in [("own", own()), ("official", official())] {
        survives_meddling(what, &valid, 600, |value| {
            if let Ok(config) = HaploVlConfig::from_json(value) {
                use_config(&config);
            }
        });
    }
    let vision = HaploVlConfig::tiny().vision;
    survives_meddling("preprocessor", &PreprocessorConfig::image(&vision).to_json(), 300, |value| {
        let _ = PreprocessorConfig::from_json(value, &vision);
    });
    survives_meddling("processor", &ProcessorConfig::new(&vision).to_json(), 300, |value| {
        let _ = ProcessorConfig::from_json(value, &vision);
    });
}

#[test]
fn sources_with_any_values_never_panic() {
    let read = |path: &str| serde_json::from_slice::<Value>(&std::fs::read(fixture(path)).unwrap()).unwrap();
    let shapes = || ParameterShapes::default().var_builder();
    survives_meddling("CLIP", &read("clip_vit/tiny/config.json"), 300, |value| {
        if let Ok(config) = ClipConfig::from_hf(&value) {
            ClipVision::new(&config, shapes()).unwrap();
        }
    });
    survives_meddling("LLM", &read("llm/qwen2/config.json"), 300, |value| {
        if let Ok(config) = LlmConfig::from_hf(&value) {
            LanguageModel::new(&config, shapes()).unwrap();
        }
    });
}

#[test]
fn mutated_json_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = Arc::new(folder.path().join("config.json"));
    let write = |bytes: &[u8]| std::fs::write(path.as_path(), bytes).unwrap();
    for (what, valid) in [("own", own()), ("official", official())] {
        survives(what, valid.to_string().as_bytes(), 300, |bytes| {
            write(bytes);
            if let Ok(config) = HaploVlConfig::from_file(path.as_path()) {
                use_config(&config);
            }
        });
    }
    let generation = serde_json::to_vec(&GenerationConfig::default()).unwrap();
    survives("generation", &generation, 300, |bytes| {
        write(bytes);
        let _ = GenerationConfig::from_file(path.as_path());
    });
    let deep = "[".repeat(1 << 20);
    write(deep.as_bytes());
    let error = HaploVlConfig::from_file(path.as_path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}
