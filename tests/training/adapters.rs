//! LoRA adapters through the public API: what they compute, merged and unmerged, over float and quantised weights; their
//! files; training from recipes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence};
use haplovl::config::{GenerationConfig, HaploVlConfig, LoraConfig, ModuleNames, VisionConfig};
use haplovl::data::shapes::token_ids;
use haplovl::model::{Adapter, HaploVl, MergedSource};
use haplovl::nn::gradients_of;
use haplovl::nn::ops::QuantizedWeight;
use haplovl::options::Quantization;
use haplovl::pipeline::{Captioner, DeviceChoice, LoadOptions, LoadedModel, merge_folder, quantize_folder};
use haplovl::train::{Outcome, Recipe, Run};
use haplovl::weights::{Parameters, SafetensorsFiles, SaveOptions, TensorSource, save_safetensors_file};
use serde_json::{Value, json};

/// Smooth values in about [-0.1, 0.1], the same on every machine.
fn values(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().map(f32::from).sum::<f32>();
    let count = shape.iter().product::<usize>();
    let data = (0..count).map(|i| ((i as f32 * 0.7311 + seed) * 1.9).sin() * 0.1).collect::<Vec<_>>();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn all_linear() -> LoraConfig {
    LoraConfig::new(4, 8.0, ModuleNames::Pattern("all-linear".into()))
}

/// LoRA and DoRA of all linear layers.
fn both_kinds() -> [LoraConfig; 2] {
    let mut dora = all_linear();
    dora.use_dora = true;
    [all_linear(), dora]
}

/// An adapter whose tensors change the result of every target.
fn adapter(lora: &LoraConfig, config: &HaploVlConfig) -> Adapter {
    let shapes = Adapter::shapes(lora, config).unwrap();
    let tensors = shapes.into_iter().map(|(name, shape)| (name.clone(), values(&name, &shape))).collect();
    Adapter::new(lora.clone(), config, tensors).unwrap()
}

/// A model of [`HaploVlConfig::tiny`] in a file.
fn base(folder: &Path) -> Arc<SafetensorsFiles> {
    let parameters = Parameters::new();
    HaploVl::new(&HaploVlConfig::tiny(), parameters.var_builder(3, DType::F32, &Device::Cpu)).unwrap();
    let path = folder.join("base.safetensors");
    save_safetensors_file(&path, &parameters.tensors(), &SaveOptions::default()).unwrap();
    Arc::new(SafetensorsFiles::open(path).unwrap())
}

fn load(source: Arc<SafetensorsFiles>, kind: Option<Quantization>) -> HaploVl {
    HaploVl::from_source(&HaploVlConfig::tiny(), source, kind, DType::F32, &Device::Cpu).unwrap()
}

fn text(rows: &[&[u32]], side: PaddingSide) -> MultimodalBatch {
    let sequence = |ids: &&[u32]| Sequence { input_ids: ids.to_vec(), labels: None, visuals: vec![] };
    let rows: Vec<Sequence> = rows.iter().map(sequence).collect();
    MultimodalBatch::new(&rows, BatchSpec::new(&HaploVlConfig::tiny()), side, &Device::Cpu).unwrap()
}

fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// Norms of the rows of a weight, as it is held.
fn row_norms(source: &SafetensorsFiles, weight: &str, kind: Option<Quantization>) -> Tensor {
    let weight = source.load_tensor(weight, DType::F32, &Device::Cpu).unwrap();
    let held =
        kind.map_or(weight.clone(), |kind| QuantizedWeight::quantize(&weight, kind).unwrap().dequantize().unwrap());
    held.sqr().unwrap().sum(1).unwrap().sqrt().unwrap()
}

#[test]
fn a_fresh_adapter_changes_nothing_and_a_trained_one_does() {
    let (folder, config) = (tempfile::tempdir().unwrap(), HaploVlConfig::tiny());
    let source = base(folder.path());
    let batch = text(&[&[1, 2, 3, 4, 5]], PaddingSide::Right);
    for kind in [None, Some(Quantization::Q8_0)] {
        for lora in both_kinds() {
            let context = format!("{kind:?}, DoRA: {}", lora.use_dora);
            let model = load(source.clone(), kind);
            let plain = model.forward(&batch).unwrap();
            let start = |(name, shape): (String, Vec<usize>)| {
                let layer = name.strip_prefix("base_model.model.").unwrap().strip_suffix(".lora_magnitude_vector");
                let tensor = match layer {
                    Some(layer) => row_norms(&source, &format!("{layer}.weight"), kind),
                    None if name.contains("lora_A") => values(&name, &shape),
                    None => Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap(),
                };
                (name, tensor)
            };
            let fresh = Adapter::shapes(&lora, &config).unwrap().into_iter().map(start).collect();
            let fresh = model.clone().with_adapter(&Adapter::new(lora.clone(), &config, fresh).unwrap()).unwrap();
            let change = max_diff(&fresh.forward(&batch).unwrap(), &plain);
            // Activations below a quantised weight are rounded, which a last bit of a norm decides.
            let allowed = if lora.use_dora { kind.map_or(1e-5, |_| 0.1) } else { 0.0 };
            assert!(change <= allowed, "{context}: {change}");
            let adapted = model.clone().with_adapter(&adapter(&lora, &config)).unwrap();
            assert!(max_diff(&adapted.forward(&batch).unwrap(), &plain) > 1e-3, "{context}");
            assert_eq!(max_diff(&model.forward(&batch).unwrap(), &plain), 0.0, "the base is shared and unchanged");
            let again = adapted.with_adapter(&adapter(&lora, &config)).unwrap_err().to_string();
            assert!(again.contains("an adapter already"), "{again}");
        }
    }
}

#[test]
fn merged_and_unmerged_agree() {
    let (folder, config) = (tempfile::tempdir().unwrap(), HaploVlConfig::tiny());
    let source = base(folder.path());
    let batch = text(&[&[1, 2, 3, 4, 5]], PaddingSide::Right);
    for lora in both_kinds() {
        let of_file = folder.path().join("adapter");
        adapter(&lora, &config).save(&of_file, &SaveOptions::default()).unwrap();
        let names = SafetensorsFiles::open(of_file.join(Adapter::WEIGHTS)).unwrap();
        let expected = Adapter::shapes(&lora, &config).unwrap();
        assert!(names.names().eq(expected.keys().map(String::as_str)), "PEFT knows a tensor by its name");
        let half = folder.path().join("half");
        let options = SaveOptions { dtype: Some(DType::BF16), ..SaveOptions::default() };
        adapter(&lora, &config).save(&half, &options).unwrap();
        let half = SafetensorsFiles::open(half.join(Adapter::WEIGHTS)).unwrap();
        for name in half.names() {
            let expected = if name.ends_with("magnitude_vector") { DType::F32 } else { DType::BF16 };
            assert_eq!(half.stored_dtype(name), Some(expected), "{name}");
        }
        let adapter = adapter(&lora, &config);
        let adapted = load(source.clone(), None).with_adapter(&adapter).unwrap();
        let unmerged = adapted.forward(&batch).unwrap();
        let of_file = load(source.clone(), None).with_adapter(&Adapter::open(of_file, &config).unwrap()).unwrap();
        assert!(max_diff(&of_file.forward(&batch).unwrap(), &unmerged) < 1e-5);
        let merged = Arc::new(MergedSource::new(source.clone(), adapter.clone()).unwrap());
        let merged = HaploVl::from_source(&config, merged, None, DType::F32, &Device::Cpu).unwrap();
        assert!(max_diff(&merged.forward(&batch).unwrap(), &unmerged) < 1e-4);
        let quantized = load(source.clone(), Some(Quantization::Q8_0)).with_adapter(&adapter).unwrap();
        assert!(max_diff(&quantized.forward(&batch).unwrap(), &unmerged) < 0.1);
    }
}

#[test]
fn caches_and_company_change_no_bit_of_an_answer() {
    let (folder, config) = (tempfile::tempdir().unwrap(), HaploVlConfig::tiny());
    let source = base(folder.path());
    for kind in [None, Some(Quantization::Q8_0)] {
        for lora in both_kinds() {
            let file = folder.path().join("adapter");
            adapter(&lora, &config).save(&file, &SaveOptions::default()).unwrap();
            for adapter in [adapter(&lora, &config), Adapter::open(&file, &config).unwrap()] {
                let model = load(source.clone(), kind).with_cache_dtype(DType::F32).with_adapter(&adapter).unwrap();
                assert_company_changes_nothing(&model, kind);
            }
        }
    }
}

fn assert_company_changes_nothing(model: &HaploVl, kind: Option<Quantization>) {
    let ids: &[u32] = &[1, 2, 3, 4, 5, 6];
    let whole = model.forward(&text(&[ids], PaddingSide::Right)).unwrap();
    let mut cache = model.cache(1, 8).unwrap();
    model.prefill(&text(&[&ids[..5]], PaddingSide::Left), &mut cache).unwrap();
    let last = model.decode(&ids[5..], &mut cache).unwrap();
    let expected = whole.narrow(1, 5, 1).unwrap().squeeze(1).unwrap();
    assert!(max_diff(&last, &expected) < if kind.is_some() { 2e-2 } else { 1e-5 }, "{kind:?}");
    let others: Vec<Vec<u32>> = (0..5).map(|i| vec![i + 7; 6]).collect();
    let rows: Vec<&[u32]> = std::iter::once(ids).chain(others.iter().map(Vec::as_slice)).collect();
    let decode = |rows: &[&[u32]]| {
        let mut cache = model.cache(rows.len(), 8).unwrap();
        let prompts: Vec<&[u32]> = rows.iter().map(|ids| &ids[..5]).collect();
        model.prefill(&text(&prompts, PaddingSide::Left), &mut cache).unwrap();
        let last: Vec<u32> = rows.iter().map(|ids| ids[5]).collect();
        model.decode(&last, &mut cache).unwrap().narrow(0, 0, 1).unwrap()
    };
    assert_eq!(max_diff(&decode(&rows), &decode(&[ids])), 0.0, "{kind:?}");
}

/// Gradients of every matrix by finite differences of the loss, over float, 16-bit and quantised weights.
#[test]
fn gradients_match_finite_differences() {
    let (folder, config) = (tempfile::tempdir().unwrap(), HaploVlConfig::tiny());
    let source = base(folder.path());
    let batch = text(&[&[1, 2, 3, 4, 5]], PaddingSide::Right);
    let lora = LoraConfig::new(2, 4.0, ModuleNames::List(vec!["v_proj".into(), "down_proj".into(), "lm_head".into()]));
    let shapes = Adapter::shapes(&lora, &config).unwrap();
    let vars: BTreeMap<String, Var> = shapes
        .into_iter()
        .map(|(name, shape)| (name.clone(), Var::from_tensor(&values(&name, &shape)).unwrap()))
        .collect();
    let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let adapter = Adapter::new(lora, &config, tensors).unwrap();
    let model = load(source, None).with_adapter(&adapter).unwrap();
    let loss = || model.forward(&batch).unwrap().sqr().unwrap().mean_all().unwrap();
    let found = gradients_of(loss(), vars.values()).unwrap();
    for (name, var) in vars.iter().step_by(3) {
        let gradient = found[&var.id()].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let before = var.as_tensor().copy().unwrap();
        let data = before.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let at = data.len() / 2;
        let moved = |delta: f32| {
            let mut data = data.clone();
            data[at] += delta;
            var.set(&Tensor::from_vec(data, before.dims(), &Device::Cpu).unwrap()).unwrap();
            f64::from(loss().to_scalar::<f32>().unwrap())
        };
        let expected = (moved(0.02) - moved(-0.02)) / 0.04;
        var.set(&before).unwrap();
        let error = (f64::from(gradient[at]) - expected).abs();
        assert!(error < 2e-3 + 0.02 * expected.abs(), "{name}: {} and {expected}", gradient[at]);
    }
}

#[cfg(feature = "builtin")]
#[test]
fn an_engine_answers_with_several_adapters_as_each_alone() {
    use haplovl::data::shapes::{ShapesConfig, Split};
    use haplovl::pipeline::{Engine, EngineConfig, ModelSource, Request, SubmitError};
    use haplovl::processor::Conversation;

    let options = LoadOptions::default().with_device(DeviceChoice::Cpu);
    let model = LoadedModel::load(&ModelSource::Builtin, options).unwrap();
    let folders = [1.0, 20.0].map(|alpha| {
        let folder = tempfile::tempdir().unwrap();
        let lora = LoraConfig::new(4, alpha, ModuleNames::Pattern("all-linear".into()));
        adapter(&lora, model.model().config()).save(folder.path(), &SaveOptions::default()).unwrap();
        folder
    });
    let named = ["weak", "strong"].into_iter().zip(&folders).map(|(name, folder)| (name, folder.path()));
    let engine = Engine::with_adapters(model.clone(), named, EngineConfig::default()).unwrap();
    let scene = Split::Test.scene(4, &ShapesConfig::default()).render(64);
    let ask = |adapter: Option<&str>| {
        let question = Conversation::ask([scene.clone()], "describe the image.");
        engine.submit(Request::new(question, short(&model)).with_adapter(adapter.map(String::from)))
    };
    let choices = [None, Some("weak"), Some("strong")];
    let alone: Vec<String> = choices.iter().map(|name| ask(*name).unwrap().answer().unwrap().text().into()).collect();
    assert!(alone[0] != alone[2], "the strong adapter changes nothing: {alone:?}");
    let together: Vec<_> = choices.iter().cycle().take(6).map(|name| ask(*name).unwrap()).collect();
    let together: Vec<String> = together.into_iter().map(|handle| handle.answer().unwrap().text().into()).collect();
    assert_eq!(together, [&alone[..], &alone[..]].concat());
    let unknown = ask(Some("other")).err().unwrap();
    assert!(matches!(&unknown, SubmitError::Invalid(e) if e.to_string().contains("weak, strong")), "{unknown}");
}

/// Writes an adapter's folder and lets `spoil` change it; returns the error of opening it.
fn error(spoil: impl FnOnce(&Path)) -> String {
    let (folder, config) = (tempfile::tempdir().unwrap(), HaploVlConfig::tiny());
    adapter(&all_linear(), &config).save(folder.path(), &SaveOptions::default()).unwrap();
    spoil(folder.path());
    let message = Adapter::open(folder.path(), &config).unwrap_err().to_string();
    assert!(message.len() < 300 && !message.contains('\n'), "{message}");
    message
}

fn set(folder: &Path, field: &str, value: Value) {
    let path = folder.join("adapter_config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[field] = value;
    std::fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn broken_adapters_are_refused_by_name() {
    let weights = "adapter_model.safetensors";
    assert!(error(|folder| std::fs::remove_file(folder.join(weights)).unwrap()).contains("adapter_model.bin"));
    assert!(error(|folder| std::fs::write(folder.join(weights), b"12345678").unwrap()).contains(weights));
    assert!(error(|folder| std::fs::write(folder.join("adapter_config.json"), b"{").unwrap()).contains("not JSON"));
    assert!(error(|folder| set(folder, "r", json!(5))).contains("misshapen"));
    assert!(error(|folder| set(folder, "target_modules", json!(["q_proj"]))).contains("unexpected"));
    assert!(error(|folder| set(folder, "target_modules", json!("(q"))).contains("target_modules"));
    assert!(error(|folder| set(folder, "modules_to_save", json!(["norm"]))).contains("missing"));
    assert!(error(|folder| set(folder, "use_dora", json!(true))).contains("lora_magnitude_vector"));
    assert!(error(|folder| set(folder, "lora_bias", json!(true))).contains("lora_bias"));
    assert!(error(|folder| set(folder, "r", json!(1u64 << 60))).contains("`r`"));
}

/// Changes the tensors of an adapter's file.
fn change(folder: &Path, f: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = folder.join("adapter_model.safetensors");
    let mut tensors = SafetensorsFiles::open(&path).unwrap().load_all(&Device::Cpu).unwrap();
    std::fs::remove_file(&path).unwrap();
    f(&mut tensors);
    save_safetensors_file(path, &tensors, &SaveOptions::default()).unwrap();
}

#[test]
fn broken_tensors_are_refused_by_name() {
    let nan = error(|folder| {
        change(folder, |tensors| {
            let first = tensors.values_mut().next().unwrap();
            *first = (first.zeros_like().unwrap() / 0.0).unwrap();
        });
    });
    assert!(nan.contains("NaN") && nan.contains("lora_A"), "{nan}");
    let twice = error(|folder| {
        change(folder, |tensors| {
            let norm = Tensor::ones(HaploVlConfig::tiny().post_decoder.hidden_size, DType::F32, &Device::Cpu).unwrap();
            tensors.insert("base_model.model.model.norm.weight".into(), norm.clone());
            tensors.insert("base_model.model.model.norm.base_layer.weight".into(), norm);
        });
    });
    assert!(twice.contains("two tensors that are `model.norm.weight`"), "{twice}");
    let foreign = error(|folder| {
        change(folder, |tensors| drop(tensors.insert("x".into(), Tensor::ones(1, DType::F32, &Device::Cpu).unwrap())));
    });
    assert!(foreign.contains("`x` is no tensor of an adapter"), "{foreign}");
    let lacking = error(|folder| change(folder, |tensors| drop(tensors.pop_first())));
    assert!(lacking.contains("1 missing"), "{lacking}");
}

#[test]
fn saved_modules_replace_those_of_the_model() {
    let (folder, config) = (tempfile::tempdir().unwrap(), HaploVlConfig::tiny());
    let mut lora = LoraConfig::new(2, 2.0, ModuleNames::List(vec!["q_proj".into()]));
    lora.modules_to_save = ["pre_connector", "image_newline", "norm", "embed_tokens"].map(String::from).to_vec();
    adapter(&lora, &config).save(folder.path(), &SaveOptions::default()).unwrap();
    let opened = Adapter::open(folder.path(), &config).unwrap();
    let names = opened.tensors();
    assert!(names.contains_key("base_model.model.model.pre_connector.weight"));
    assert!(names.contains_key("base_model.model.model.image_newline"));
    let source = base(folder.path());
    let batch = text(&[&[1, 2, 3]], PaddingSide::Right);
    let unmerged = load(source.clone(), None).with_adapter(&opened).unwrap().forward(&batch).unwrap();
    let merged = Arc::new(MergedSource::new(source, opened).unwrap());
    let merged = HaploVl::from_source(&config, merged, None, DType::F32, &Device::Cpu).unwrap();
    assert!(max_diff(&merged.forward(&batch).unwrap(), &unmerged) < 1e-4);
}

/// A model for shapes world with tiles of 32 pixels and patches of 8.
fn shapes_config() -> HaploVlConfig {
    let (ids, tiny) = (token_ids(), HaploVlConfig::tiny());
    let vision =
        VisionConfig { patch_size: 8, image_size: 32, image_grid_pinpoints: vec![[32, 32]], ..tiny.vision.clone() };
    HaploVlConfig {
        vocab_size: ids.vocab_size,
        image_token_index: ids.image,
        video_token_index: ids.video,
        max_position_embeddings: 512,
        vision,
        ..tiny
    }
}

/// A recipe with these steps and tables beside `stage` and `data`.
fn recipe(folder: &Path, name: &str, start: &str, adapter: &str, steps: u64) -> haplovl::Result<Recipe> {
    let config = folder.join("config.json");
    std::fs::write(&config, serde_json::to_string(&shapes_config()).unwrap()).unwrap();
    let source =
        |split| format!(r#"{{ kind = "shapes", split = "{split}", scenes = 50, side = 32, content = "mixed" }}"#);
    let text = format!(
        r#"
        output = "{output}"
        config = "{config}"
        tokenizer = "shapes"
        seed = 5
        stage = {{ kind = "tune" {start} }}
        data = {{ max_length = 512, max_eval_samples = 6, train = [{train}], validation = {validation} }}
        update = {{ steps = {steps}, batch_size = 2, gradient_accumulation_steps = 2, learning_rate = 1e-2 }}
        run = {{ save_steps = 2, eval_steps = 2, num_eval_samples = 1 }}
        {adapter}
        "#,
        output = folder.join(name).display(),
        config = config.display(),
        train = source("train"),
        validation = source("validation"),
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    Recipe::read(&path, &[])
}

fn train(recipe: Recipe, resume: bool) -> PathBuf {
    let outcome = Run::new(recipe, Device::Cpu).unwrap().with_default_observers().train(resume).unwrap();
    let Outcome::Finished { export } = outcome else { panic!("{outcome:?}") };
    export
}

fn stored(folder: &Path) -> BTreeMap<String, Vec<u32>> {
    let files = SafetensorsFiles::open(folder.join("adapter_model.safetensors")).unwrap();
    let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    files.load_all(&Device::Cpu).unwrap().into_iter().map(|(name, t)| (name, bits(t))).collect()
}

fn short(model: &LoadedModel) -> GenerationConfig {
    GenerationConfig { max_new_tokens: Some(5), ..model.generation().clone() }
}

const SETTINGS: &str = r#"adapter = { rank = 4, alpha = 8, KIND, dropout = 0.1, modules_to_save = ["pre_connector", "image_newline"] QUANTIZE }"#;

#[test]
fn recipes_train_adapters_that_resume_to_the_bit_and_load_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let base = train(recipe(folder.path(), "base", "", "", 4).unwrap(), false);
    let start = format!(r#", init_from = {{ stage = "{}" }}"#, base.display());
    let q8_0 = r#", quantize = "q8_0""#;
    for (tag, kind, quantize) in
        [("float", "use_dora = false", ""), ("q8_0", "use_dora = false", q8_0), ("dora", "use_dora = true", q8_0)]
    {
        let settings = SETTINGS.replace("KIND", kind).replace("QUANTIZE", quantize);
        let of = |name: &str, steps| recipe(folder.path(), &format!("{name}-{tag}"), &start, &settings, steps).unwrap();
        let whole = train(of("whole", 4), false);
        let mut stopped = Run::new(of("halves", 4), Device::Cpu).unwrap();
        stopped.stop_after(2);
        assert!(matches!(stopped.train(false).unwrap(), Outcome::Stopped { step: 2, .. }));
        let mut checkpointed = of("halves", 4);
        checkpointed.update.gradient_checkpointing = true;
        let halves = train(checkpointed, true);
        assert!(stored(&whole) == stored(&halves), "{tag}: a resumed run differs");
        let names = stored(&whole);
        assert!(names.keys().all(|name| name.starts_with("base_model.model.")), "{names:?}");
        assert!(names.contains_key("base_model.model.model.image_newline"));
        let checkpoint = folder.path().join(format!("whole-{tag}/checkpoints/step-00000004/parameters.safetensors"));
        assert_eq!(SafetensorsFiles::open(checkpoint).unwrap().names().count(), names.len());
        assert!(of("whole", 4).finished_run().unwrap().is_some());
        let options = LoadOptions::default().with_device(DeviceChoice::Cpu);
        let model = LoadedModel::from_folder(&base, options).unwrap();
        let image = image::RgbImage::from_pixel(32, 32, image::Rgb([200, 10, 10]));
        let caption = |model: &LoadedModel| {
            let captioner = Captioner::new(model).with_generation(short(model));
            captioner.caption(image.clone()).unwrap().text().to_string()
        };
        let plain = caption(&model);
        let adapted = model.clone().with_adapter(&whole).unwrap();
        let merged = folder.path().join(format!("merged-{tag}"));
        merge_folder(&base, &whole, &merged, None).unwrap();
        assert_eq!(caption(&adapted), caption(&LoadedModel::from_folder(&merged, options).unwrap()));
        assert_eq!(caption(&adapted.without_adapter()), plain);
    }
}

#[test]
fn an_adapter_trains_over_the_mapped_weights_of_a_quantised_folder() {
    let folder = tempfile::tempdir().unwrap();
    let base = train(recipe(folder.path(), "base", "", "", 2).unwrap(), false);
    let quantized = folder.path().join("quantized");
    quantize_folder(&base, &quantized, Quantization::Q8_0).unwrap();
    let start = format!(r#", init_from = {{ stage = "{}" }}"#, quantized.display());
    let mut recipe = recipe(folder.path(), "adapter", &start, "adapter = { rank = 4 }", 2).unwrap();
    recipe.update.gradient_checkpointing = true;
    let export = train(recipe, false);
    assert!(stored(&export).iter().any(|(name, _)| name.ends_with("lora_B.weight")));
    let options = LoadOptions::default().with_device(DeviceChoice::Cpu);
    let image = image::RgbImage::from_pixel(32, 32, image::Rgb([200, 10, 10]));
    let caption = |model: &LoadedModel| {
        let captioner = Captioner::new(model).with_generation(short(model));
        captioner.caption(image.clone()).unwrap().text().to_string()
    };
    let model = LoadedModel::from_folder(&quantized, options).unwrap();
    let plain = caption(&model);
    let adapted = model.with_adapter(&export).unwrap();
    caption(&adapted);
    assert_eq!(caption(&adapted.without_adapter()), plain);
    let merged = folder.path().join("merged");
    merge_folder(&quantized, &export, &merged, None).unwrap();
    caption(&LoadedModel::from_folder(&merged, options).unwrap());
}

#[test]
fn adapters_hold_the_tables_of_new_words() {
    let folder = tempfile::tempdir().unwrap();
    let base = train(recipe(folder.path(), "base", "", "", 2).unwrap(), false);
    let start = format!(r#", init_from = {{ stage = "{}" }}"#, base.display());
    let grown = |settings: &str| {
        let mut recipe = recipe(folder.path(), "grown", &start, settings, 2).unwrap();
        recipe.tokenizer.add.push("zebra".into());
        recipe
    };
    let error = Run::new(grown("adapter = { rank = 2 }"), Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("modules_to_save") && error.len() < 300, "{error}");
    let settings = r#"adapter = { rank = 2, modules_to_save = ["embed_tokens", "lm_head"] }"#;
    let export = train(grown(settings), false);
    let options = LoadOptions::default().with_device(DeviceChoice::Cpu);
    let model = LoadedModel::from_folder(&base, options).unwrap();
    let before = model.model().config().vocab_size;
    let adapted = model.clone().with_adapter(&export).unwrap();
    assert_eq!(adapted.model().config().vocab_size, before + 1);
    assert!(adapted.processor().tokenizer().id("zebra").is_some());
    let merged = folder.path().join("merged");
    merge_folder(&base, &export, &merged, None).unwrap();
    let image = image::RgbImage::from_pixel(32, 32, image::Rgb([200, 10, 10]));
    let caption = |model: &LoadedModel| {
        let captioner = Captioner::new(model).with_generation(short(model));
        captioner.caption(image.clone()).unwrap().text().to_string()
    };
    let quantized = LoadedModel::from_folder(&base, options.with_quantization(Quantization::Q8_0)).unwrap();
    caption(&quantized.with_adapter(&export).unwrap());
    assert_eq!(caption(&adapted), caption(&LoadedModel::from_folder(&merged, options).unwrap()));
    assert_eq!(adapted.without_adapter().model().config().vocab_size, before);
}

#[test]
fn adapters_without_a_base_and_wrong_settings_are_refused_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let error = |adapter: &str| {
        let run = recipe(folder.path(), "wrong", "", adapter, 2).and_then(|recipe| Run::new(recipe, Device::Cpu));
        let message = run.err().unwrap().to_string();
        assert!(message.len() < 300, "{message}");
        message
    };
    assert!(error("adapter = { rank = 4 }").contains("`stage.init_from.stage`"));
    assert!(error("adapter = { rank = 0 }").contains("`adapter.rank`"));
    assert!(error("adapter = { rank = 4, dropout = 1.0 }").contains("`adapter.dropout`"));
    assert!(error(r#"adapter = { rank = 4, quantize = "q5" }"#).contains("`adapter.quantize`"));
    assert!(error(r#"adapter = { rank = 4, target_modules = ["fc9"] }"#).contains("`adapter.target_modules`"));
    assert!(error(r#"adapter = { rank = 4, modules_to_save = ["fc9"] }"#).contains("`adapter.modules_to_save`"));
}
