//! Folders of models for tests: the built-in model with tokens for all of ASCII, so that it can write JSON, and adapters.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, safetensors};
use haplovl::config::{LoraConfig, ModuleNames};
use haplovl::model::Adapter;
use haplovl::pipeline::LoadedModel;
use haplovl::weights::SaveOptions;
use serde_json::{Value, json};

/// Tables with a row for each token.
const TABLES: [&str; 2] = ["lm_head.weight", "model.embed_tokens.weight"];

/// Writes the built-in model's folder with more tokens: each printable character of ASCII as it stands within a word, and
/// some that begin a text. The model has learned nothing of them.
pub fn write_spelling_model(folder: &Path) {
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/builtin");
    std::fs::create_dir_all(folder.join("video_processor")).unwrap();
    for name in [
        "chat_template.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer_config.json",
        "video_processor/preprocessor_config.json",
    ] {
        std::fs::copy(builtin.join(name), folder.join(name)).unwrap();
    }
    let characters = (b' '..=b'~').map(|byte| format!("##{}", char::from(byte)));
    let tokens = Vec::from_iter(characters.chain(["{", "[", "\"", "1"].map(Into::into)));
    let read = |name: &str| serde_json::from_slice::<Value>(&std::fs::read(builtin.join(name)).unwrap()).unwrap();
    let (mut config, mut tokenizer) = (read("config.json"), read("tokenizer.json"));
    let size = config["base_config"]["vocab_size"].as_u64().unwrap() as usize;
    config["base_config"]["vocab_size"] = json!(size + tokens.len());
    tokens.iter().zip(size..).for_each(|(token, id)| tokenizer["model"]["vocab"][token] = json!(id));
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();

    let mut weights: HashMap<_, _> = safetensors::load(builtin.join("model.safetensors"), &Device::Cpu).unwrap();
    for name in TABLES {
        let table = &weights[name];
        let more = Tensor::zeros((tokens.len(), table.dims()[1]), table.dtype(), &Device::Cpu).unwrap();
        weights.insert(name.into(), Tensor::cat(&[table, &more], 0).unwrap());
    }
    safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
}

/// Writes an adapter of a model that changes its answers, with updates of size `alpha`.
pub fn write_adapter(folder: &Path, model: &LoadedModel, alpha: f64) {
    let lora = LoraConfig::new(4, alpha, ModuleNames::Pattern("all-linear".into()));
    let config = model.model().config();
    let shapes = Adapter::shapes(&lora, config).unwrap();
    let tensors = shapes.into_iter().map(|(name, shape)| (name.clone(), values(&name, &shape))).collect();
    Adapter::new(lora, config, tensors).unwrap().save(folder, &SaveOptions::default()).unwrap();
}

/// Smooth values, the same on every machine.
fn values(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().map(f32::from).sum::<f32>();
    let data = (0..shape.iter().product()).map(|i| ((i as f32 * 0.7311 + seed) * 1.9).sin() * 0.1).collect::<Vec<_>>();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

/// Writes what `openai_client.py` is run against beside the built-in model; see there.
#[test]
#[ignore = "writes folders, and checks nothing"]
fn folders_for_clients() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spelling");
    write_spelling_model(&folder);
    let model = LoadedModel::from_folder(&folder, haplovl::pipeline::LoadOptions::default()).unwrap();
    write_adapter(&folder.join("adapter"), &model, 20.0);
    println!("{}", folder.display());
}
