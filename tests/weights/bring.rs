//! Weights in the forms in which people have them, against the same weights as safetensors and against independent code.
//!
//! The tests walk `tests/fixtures/bring` and, if `$HAPLOVL_BRING_DIR` is set, every folder of the same shape in that
//! folder. A file `SAME_AS` names the model of the same weights under `tests/fixtures/parity` or `$HAPLOVL_PARITY_DIR`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use haplovl::batch::SequenceLayout;
use haplovl::config::{DecoderConfig, HaploVlConfig, ImageAttention, Rope, TextEmbedding, VisionConfig};
use haplovl::model::{
    ClipTeacher, ClipVision, DecoderStack, HaploVl, LanguageHead, LanguageModel, MultimodalEmbeddings, Pass,
    PostDecoder, VisionTeacher,
};
use haplovl::nn::ops::KeyRanges;
use haplovl::nn::{KvStore, RotaryEmbedding, key_ranges};
use haplovl::weights::{
    ClipSource, LlmSource, Parameters, PickleFiles, SafetensorsFiles, TensorSource, TextInit, init_from_clip,
    init_from_llm, open_weights,
};

const CPU: Device = Device::Cpu;
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// The fixtures, the folder that a variable names, and its subfolders.
fn roots(own: &str, variable: &str) -> Vec<PathBuf> {
    let unseen = std::env::var_os(variable).map(PathBuf::from);
    let unseen = unseen.into_iter().flat_map(|root| [vec![root.clone()], subfolders(&root)].concat());
    std::iter::once(fixtures(own)).chain(unseen).collect()
}

fn brought() -> Vec<PathBuf> {
    let mut found: Vec<_> = roots("bring", "HAPLOVL_BRING_DIR").iter().flat_map(|root| subfolders(root)).collect();
    found.sort();
    found.dedup();
    found
}

/// Folder of the model with the same weights, of one kind.
fn pair(folder: &Path, kind: &str) -> Option<PathBuf> {
    let name = std::fs::read_to_string(folder.join("SAME_AS")).ok()?;
    let candidates = roots("parity", "HAPLOVL_PARITY_DIR").into_iter().map(|root| root.join(kind).join(name.trim()));
    candidates.into_iter().find(|path| path.is_dir())
}

fn say(text: &str) {
    writeln!(std::io::stderr().lock(), "{text}").unwrap();
}

fn load(source: &dyn TensorSource, name: &str) -> Tensor {
    source.load_tensor(name, DType::F32, &CPU).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn max_diff(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let both = bits(found).into_iter().zip(bits(expected)).map(|(a, b)| (f32::from_bits(a), f32::from_bits(b)));
    both.fold(0.0, |worst, (a, b)| if (a - b).is_nan() { f32::NAN } else { f32::max(worst, (a - b).abs()) })
}

fn close(found: &Tensor, expected: &Tensor, tolerance: f32, context: &str) {
    let error = max_diff(found, expected);
    assert!(error <= tolerance, "{context}: off by {error:e}");
}

/// Checks that every tensor is that of the safetensors, bit for bit, or rounded to the dtype in which it is stored.
fn same_tensors(found: &dyn TensorSource, expected: &dyn TensorSource, context: &str) -> bool {
    let mut exact = true;
    for name in expected.tensor_names() {
        if name.ends_with("position_ids") || name.ends_with("inv_freq") || !found.has_tensor(&name) {
            continue;
        }
        let (found, expected) = (load(found, &name), load(expected, &name));
        if bits(&found) != bits(&expected) {
            exact = false;
            let rounded = |dtype| bits(&expected.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap());
            let is_rounded = [DType::F16, DType::BF16].into_iter().any(|dtype| rounded(dtype) == bits(&found));
            assert!(is_rounded, "{context}: `{name}` differs");
        }
    }
    exact
}

/// The tensors of every file of expectations of a model.
fn cases(folder: &Path) -> Vec<SafetensorsFiles> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let is_case = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".safetensors") && !name.starts_with("model")
    };
    files.iter().filter(|path| is_case(path)).map(|path| SafetensorsFiles::open(path).unwrap()).collect()
}

fn logits(source: &LlmSource, case: &SafetensorsFiles) -> Tensor {
    let model = LanguageModel::new(source.config(), source.var_builder(DType::F32, &CPU)).unwrap();
    let ids = case.load("input_ids", DType::I64, &CPU).unwrap().to_dtype(DType::U32).unwrap();
    let (batch, seq) = ids.dims2().unwrap();
    let states = model.hidden_states(&model.embed(&ids).unwrap(), &SequenceLayout::text(batch, seq)).unwrap();
    model.lm_head().forward(&states).unwrap()
}

fn states(source: &ClipSource, case: &SafetensorsFiles) -> Vec<Tensor> {
    let clip = ClipVision::new(source.config(), source.var_builder(DType::F32, &CPU)).unwrap();
    clip.hidden_states(&load(case, "pixel_values"), source.config().decoder.num_hidden_layers).unwrap()
}

#[test]
fn pickles_are_the_models_of_the_safetensors() {
    let mut run = 0;
    for folder in brought() {
        let context = folder.display().to_string();
        if let Some(same) = pair(&folder, "llm") {
            let (found, expected) = (LlmSource::open(&folder).unwrap(), LlmSource::open(&same).unwrap());
            let exact = same_tensors(found.tensors(), expected.tensors(), &context);
            for case in cases(&same) {
                let (found, reference) = (logits(&found, &case), logits(&expected, &case));
                assert!(!exact || bits(&found) == bits(&reference), "{context}");
                if exact && !case.has_tensor("attention_mask") {
                    close(&found, &load(&case, "logits"), 1e-4, &context);
                }
            }
        } else if let Some(same) = pair(&folder, "clip_vit") {
            let (found, expected) = (ClipSource::open(&folder).unwrap(), ClipSource::open(&same).unwrap());
            let exact = same_tensors(found.tensors(), expected.tensors(), &context);
            for case in cases(&same) {
                let both = states(&found, &case).into_iter().zip(states(&expected, &case));
                for (layer, (found, reference)) in both.enumerate() {
                    assert!(!exact || bits(&found) == bits(&reference), "{context}");
                    if exact {
                        close(&found, &load(&case, &format!("hidden_states.{layer}")), 1e-4, &context);
                    }
                }
            }
        } else {
            continue;
        }
        run += 1;
    }
    assert!(run >= 4, "{run} cases");
    say(&format!("bring, models as pickles: {run} cases"));
}

#[test]
fn one_file_of_weights_is_opened_beside_its_configuration() {
    let folder = ClipSource::open(fixtures("bring/clip_bin")).unwrap();
    let file = ClipSource::open(fixtures("bring/clip_bin/pytorch_model.bin")).unwrap();
    assert_eq!(file.config(), folder.config());
    assert_eq!(file.tensors().tensor_names(), folder.tensors().tensor_names());
    let file = LlmSource::open(fixtures("bring/qwen3/model.safetensors")).unwrap();
    assert!(file.config().decoder.qk_norm && file.tensors().has_tensor("model.layers.0.self_attn.k_norm.weight"));
}

#[test]
fn evil_pickles_are_refused_by_name() {
    let evil = brought().into_iter().filter(|folder| folder.file_name().unwrap().to_string_lossy().contains("evil"));
    let mut run = 0;
    for folder in evil {
        let message = open_weights(&folder).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("Python object `") && message.contains("nothing of the file was run"), "{message}");
        assert!(message.len() < 300 && !Path::new("PWNED").exists(), "{message}");
        assert!(ClipSource::open(&folder).is_err() && LlmSource::open(&folder).is_err());
        run += 1;
    }
    assert!(open_weights(fixtures("bring/evil_bin")).map(|_| ()).unwrap_err().to_string().contains("`posix.system`"));
    say(&format!("bring, evil pickles: {run} cases"));
}

fn forms() -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(fixtures("bring/pickle_forms")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "bin"));
    assert_eq!(files.len(), 6);
    files
}

#[test]
fn every_form_of_a_pickle_gives_the_tensors_that_pytorch_gives() {
    let expected = SafetensorsFiles::open(fixtures("bring/pickle_forms/expected.safetensors")).unwrap();
    for path in forms() {
        let found = PickleFiles::open(&path).unwrap();
        assert_eq!(found.tensor_names(), expected.tensor_names(), "{}", path.display());
        for name in found.tensor_names() {
            let context = format!("{} {name}", path.display());
            assert_eq!(found.tensor_shape(&name), expected.tensor_shape(&name), "{context}");
            match name.as_str() {
                "position_ids" => {
                    let ids = found.load_tensor(&name, DType::I64, &CPU).unwrap().flatten_all().unwrap();
                    assert_eq!(ids.to_vec1::<i64>().unwrap(), [0, 1, 2, 3, 4], "{context}");
                    let error = found.load_tensor(&name, DType::F32, &CPU).unwrap_err().to_string();
                    assert!(error.contains("has dtype int64"), "{error}");
                }
                "flags" | "int32" => {}
                _ => {
                    assert_eq!(bits(&load(&found, &name)), bits(&load(&expected, &name)), "{context}");
                    found.check_finite(&name).unwrap();
                }
            }
        }
    }
}

/// Opens a file and loads all of its tensors.
fn read_all(path: &Path) -> haplovl::Result<()> {
    let found = PickleFiles::open(path)?;
    found.tensor_names().iter().try_for_each(|name| found.load_tensor(name, DType::F32, &CPU).map(drop))
}

#[test]
fn damaged_pickles_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.bin");
    let evil = fixtures("bring/evil_bin/pytorch_model.bin");
    let mut runs = 0;
    for form in forms().into_iter().chain([evil]) {
        let whole = std::fs::read(&form).unwrap();
        let mut attempt = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            runs += 1;
            read_all(&path).map_or_else(|e| e.to_string(), |()| String::new())
        };
        for length in (0..whole.len()).step_by(whole.len() / 97 + 1) {
            let message = attempt(&whole[..length]);
            assert!(!message.is_empty() && message.len() < 300, "{} cut to {length}: {message}", form.display());
        }
        let mut state = 12345u64;
        for _ in 0..300 {
            let mut bytes = whole.clone();
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] ^= 1 << (state >> 20 & 7);
            attempt(&bytes);
        }
    }
    say(&format!("damaged pickles: {runs} files"));
}

#[test]
fn damage_of_the_elements_is_noticed_by_the_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let mut bytes = std::fs::read(fixtures("bring/clip_bin/pytorch_model.bin")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let source = PickleFiles::open(&path).unwrap();
    let failed = |name: &&String| source.check_finite(name).is_err();
    let names = source.tensor_names();
    let damaged: Vec<_> = names.iter().filter(failed).collect();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    let error = source.load_tensor(damaged[0], DType::F32, &CPU).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn safetensors_win_and_folders_without_weights_say_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let message = open_weights(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors") && message.contains("pytorch_model.bin"), "{message}");
    std::fs::write(folder.path().join("pytorch_model.bin"), "nonsense").unwrap();
    assert!(open_weights(folder.path()).map(|_| ()).unwrap_err().to_string().contains("torch.save"));
    std::fs::copy(fixtures("bring/siglip/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert!(open_weights(folder.path()).unwrap().has_tensor("vision_model.post_layernorm.weight"));
    for file in ["x.zip", "weights"] {
        std::fs::write(folder.path().join(file), "x").unwrap();
        let message = open_weights(folder.path().join(file)).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(".safetensors, .gguf, .bin"), "{message}");
    }
}

#[test]
fn files_under_other_names_and_pointers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = || open_weights(folder.path()).map(|_| ()).unwrap_err().to_string();
    std::fs::write(folder.path().join("qwen-q8_0.gguf"), "x").unwrap();
    assert!(message().contains("holds `qwen-q8_0.gguf`") && message().contains("to model.gguf"), "{}", message());
    std::fs::write(folder.path().join("b.ckpt"), "x").unwrap();
    assert!(message().contains("rename it to pytorch_model.bin") && message().len() < 300, "{}", message());
    std::fs::write(folder.path().join("adapter_model.safetensors"), "x").unwrap();
    assert!(message().contains("name its model"), "{}", message());
    std::fs::write(folder.path().join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(message().contains("model.safetensors: is a Git LFS pointer"), "{}", message());
}

#[test]
fn qwen3_is_inherited_exactly() {
    let source = LlmSource::open(fixtures("bring/qwen3")).unwrap();
    let case = SafetensorsFiles::open(fixtures("bring/qwen3/expected.safetensors")).unwrap();
    close(&logits(&source, &case), &load(&case, "logits"), 1e-4, "qwen3");
    let llm = source.config();
    let config = HaploVlConfig {
        vocab_size: llm.vocab_size,
        image_token_index: 58,
        video_token_index: 59,
        text_embedding: TextEmbedding::Projected,
        post_decoder: llm.decoder.clone(),
        ..HaploVlConfig::tiny()
    };
    let written = serde_json::to_value(&config).unwrap();
    assert_eq!((&written["post_decoder"]["head_dim"], &written["post_decoder"]["qk_norm"]), (&8.into(), &true.into()));
    assert!(written["pre_decoder"].get("head_dim").is_none() && written["pre_decoder"].get("qk_norm").is_none());
    assert_eq!(HaploVlConfig::from_json(written).unwrap(), config);
    let parameters = Parameters::new();
    let vb = || parameters.var_builder(0, DType::F32, &CPU);
    HaploVl::new(&config, vb()).unwrap();
    let report = init_from_llm(&source, &config, &parameters, TextInit::Random).unwrap();
    assert!(report.unused.is_empty(), "{:?}", report.unused);
    let decoder = PostDecoder::new(&config.post_decoder, config.pre_decoder.num_hidden_layers, vb()).unwrap();
    let head = LanguageHead::new(llm.decoder.hidden_size, config.vocab_size, vb()).unwrap();
    let embeddings = load(&case, "inputs_embeds");
    let (batch, seq, _) = embeddings.dims3().unwrap();
    let layout = SequenceLayout::text(batch, seq);
    let ranges = key_ranges(&layout, ImageAttention::Causal);
    let angles = RotaryEmbedding::new(&config.post_decoder).angles(&layout.positions(), &CPU).unwrap();
    let (states, _) = decoder.forward(&embeddings, &mut Pass::new(&ranges, Some(angles))).unwrap();
    close(&head.forward(&states).unwrap(), &load(&case, "logits"), 1e-4, "post-decoder from qwen3");
    let other = HaploVlConfig { post_decoder: DecoderConfig { qk_norm: false, ..llm.decoder.clone() }, ..config };
    let error = init_from_llm(&source, &other, &Parameters::new(), TextInit::Random).unwrap_err().to_string();
    assert!(error.contains("post_decoder.qk_norm is false, not true"), "{error}");
}

/// Pixels normalised as for CLIP, from those normalised as for SigLIP.
fn clip_pixels(siglip: &Tensor) -> Tensor {
    let channels =
        |values: [f64; 3]| Tensor::new(&values.map(|value| value as f32), &CPU).unwrap().reshape((1, 3, 1, 1)).unwrap();
    let plain = ((siglip * 0.5).unwrap() + 0.5).unwrap();
    plain.broadcast_sub(&channels(CLIP_MEAN)).unwrap().broadcast_div(&channels(CLIP_STD)).unwrap()
}

#[test]
fn siglip_is_a_teacher_and_a_source() {
    let source = ClipSource::open(fixtures("bring/siglip")).unwrap();
    let case = SafetensorsFiles::open(fixtures("bring/siglip/expected.safetensors")).unwrap();
    let expected: Vec<_> = (0..=2).map(|layer| load(&case, &format!("hidden_states.{layer}"))).collect();
    for (found, expected) in states(&source, &case).iter().zip(&expected) {
        close(found, expected, 1e-4, "siglip");
    }
    let clip = || ClipVision::new(source.config(), source.var_builder(DType::F32, &CPU)).unwrap();
    let pixels = load(&case, "pixel_values");
    close(&clip().patches(&pixels).unwrap(), &load(&case, "patches"), 1e-4, "siglip patches");
    assert!(clip().pooled(&pixels).unwrap_err().to_string().contains("no class token"));
    // Images of 44 pixels have 3 x 3 whole patches of 14.
    let teacher = ClipTeacher::new(clip(), -1).unwrap();
    assert_eq!(teacher.tile_and_patch(), (42, 14));
    let pixels = pixels.narrow(2, 0, 42).unwrap().narrow(3, 0, 42).unwrap();
    close(&teacher.features(&clip_pixels(&pixels)).unwrap(), &expected[2], 1e-3, "siglip teacher");

    let vision = source.config();
    let config = HaploVlConfig {
        vision: VisionConfig {
            patch_size: vision.patch_size,
            image_size: vision.side_of_patches(),
            image_grid_pinpoints: VisionConfig::default_pinpoints(vision.side_of_patches()),
            ..HaploVlConfig::tiny().vision
        },
        pre_decoder: DecoderConfig { rope: Rope::None, ..vision.decoder.clone() },
        ..HaploVlConfig::tiny()
    };
    let parameters = Parameters::new();
    let vb = || parameters.var_builder(0, DType::F32, &CPU);
    HaploVl::new(&config, vb()).unwrap();
    let report = init_from_clip(&source, &config, &parameters).unwrap();
    assert!(report.fresh.contains(&"model.pre_norm.weight".to_string()));
    assert!(report.unused.iter().all(|name| name.contains(".head.") || name.contains("post_layernorm")));
    let layers = DecoderStack::new(&config.pre_decoder, 0, vb().pp("model.layers")).unwrap();
    let (tiles, tokens, width) = expected[0].dims3().unwrap();
    let ranges = KeyRanges::full(tiles, tokens, tokens);
    let mut x = expected[0].clone();
    for (layer, expected) in layers.layers().iter().zip(&expected[1..]) {
        x = layer.forward(&x, None, &ranges, KvStore::None).unwrap();
        close(&x, expected, 1e-4, "pre-decoder from siglip");
    }
    // Patches of the student, which takes pixels as for CLIP, with the positions that were copied.
    let patches = MultimodalEmbeddings::new(&config, vb()).unwrap().patches(&clip_pixels(&pixels)).unwrap();
    assert_eq!(patches.dims(), [tiles, tokens, width]);
    close(&patches, &expected[0], 1e-4, "patches from siglip");
}
