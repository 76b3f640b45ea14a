//! Parity of LoRA and DoRA adapters with PEFT: logits, loss, gradients, merged weights and files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::{BatchSpec, MultimodalBatch};
use haplovl::config::{HaploVlConfig, LoraConfig};
use haplovl::model::{Adapter, HaploVl, MergedSource};
use haplovl::nn::{Linear, Lora};
use haplovl::weights::{SafetensorsFiles, SaveOptions, TensorSource};

use crate::model::{check_gradient, read_config, sequences, shifted_loss};
use crate::{Case, Summary, files, folders, max_diff, read_json};

/// The base model of an adapter, in the `model` folder of the same root.
fn base_of(folder: &Path) -> PathBuf {
    let base = read_json(&folder.join("cases.json"))["base"].as_str().unwrap().to_string();
    folder.parent().and_then(Path::parent).unwrap().join("model").join(base)
}

/// The adapter with each tensor as a variable.
fn trained(folder: &Path, config: &HaploVlConfig) -> (Adapter, BTreeMap<String, Var>) {
    let tensors = Adapter::open(folder, config).unwrap().tensors();
    let vars: BTreeMap<String, Var> =
        tensors.into_iter().map(|(name, tensor)| (name, Var::from_tensor(&tensor).unwrap())).collect();
    let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    (Adapter::new(LoraConfig::from_folder(folder).unwrap(), config, tensors).unwrap(), vars)
}

#[test]
fn logits_loss_and_gradients_match_peft() {
    let mut summary = Summary::default();
    for folder in folders("lora") {
        let base = base_of(&folder);
        let config = read_config(&base);
        let source = Arc::new(SafetensorsFiles::open(&base).unwrap());
        let (adapter, vars) = trained(&folder, &config);
        let model = HaploVl::new(&config, source.var_builder(DType::F32, &Device::Cpu)).unwrap();
        let model = model.with_adapter(&adapter).unwrap();
        for (name, expected) in files(&folder, ".expected.safetensors") {
            let context = format!("{} {name}", folder.display());
            let case = Case::open(&base.join(format!("{name}.safetensors")));
            let (rows, side) = sequences(&case, &config);
            let batch = MultimodalBatch::new(&rows, BatchSpec::new(&config), side, &Device::Cpu).unwrap();
            let logits = model.forward(&batch).unwrap();
            summary.check("logits", max_diff(&logits, &expected.get("logits")), 2e-4, &context);
            let loss = shifted_loss(&logits, batch.labels.as_ref().unwrap());
            let of_peft = expected.get("loss").reshape(()).unwrap();
            summary.check("loss", max_diff(&loss, &of_peft), 1e-5, &context);
            let grads = loss.backward().unwrap();
            for (parameter, expected) in expected.iter().filter_map(|(n, t)| Some((n.strip_prefix("grad.")?, t))) {
                let context = format!("{context} {parameter}");
                let var = vars.get(parameter).unwrap_or_else(|| panic!("{context}: no such parameter"));
                let grad = grads.get(var).unwrap_or_else(|| panic!("{context}: no gradient"));
                check_gradient(&mut summary, grad, expected, &context);
            }
            summary.case();
        }
    }
    summary.print("lora");
}

#[test]
fn merged_weights_match_peft_and_files_come_back() {
    let mut summary = Summary::default();
    for folder in folders("lora") {
        let (base, context) = (base_of(&folder), folder.display().to_string());
        let adapter = Adapter::open(&folder, &read_config(&base)).unwrap();
        let merged = MergedSource::new(Arc::new(SafetensorsFiles::open(&base).unwrap()), adapter.clone()).unwrap();
        let expected = Case::open(&folder.join("merged.safetensors"));
        assert_eq!(merged.tensor_names().len(), expected.iter().count());
        for (name, expected) in expected.iter() {
            let found = merged.load_tensor(name, DType::F32, &Device::Cpu).unwrap();
            summary.check("merged weights", max_diff(&found, expected), 1e-6, &format!("{context} {name}"));
        }
        let copy = tempfile::tempdir().unwrap();
        adapter.save(copy.path(), &SaveOptions::default()).unwrap();
        assert_eq!(LoraConfig::from_folder(copy.path()).unwrap(), *adapter.config());
        let [saved, original] = [copy.path(), &folder].map(|folder| {
            let file = folder.join("adapter_model.safetensors");
            let tensors = SafetensorsFiles::open(&file).unwrap().load_all(&Device::Cpu).unwrap();
            tensors.into_iter().collect::<BTreeMap<String, Tensor>>()
        });
        assert_eq!(saved.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
        assert!(saved.iter().all(|(name, tensor)| max_diff(tensor, &original[name]) == 0.0));
        summary.case();
    }
    summary.print("lora, merged");
}

/// Values of `peft_dora.py`.
#[test]
fn a_layer_adapted_by_dora_matches_peft() {
    let case = Case::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dora.safetensors"));
    let names = ["x", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"];
    let vars = names.map(|name| Var::from_tensor(&case.get(name)).unwrap());
    let of = |[a, b, magnitude]: [Tensor; 3]| Lora::new(a, b, 3.0 / 2.0).unwrap().with_magnitude(magnitude).unwrap();
    let [x, adapter @ ..] = vars.each_ref().map(|var| var.as_tensor().clone());
    let constant = of(adapter.each_ref().map(Tensor::detach));
    let lora = of(adapter);
    let layer = |lora: Lora| {
        let mut layer = Linear::from_tensors(case.get("weight"), Some(case.get("bias")));
        layer.set_lora(Some(lora)).unwrap();
        layer
    };
    let y = layer(lora.clone()).forward(&x).unwrap();
    assert!(max_diff(&y, &case.get("y")) < 1e-5);
    let grads = (y * case.get("g")).unwrap().sum_all().unwrap().backward().unwrap();
    for (name, var) in names.iter().zip(&vars) {
        let error = max_diff(grads.get(var).unwrap(), &case.get(&format!("grad.{name}")));
        assert!(error < 1e-5, "{name}: {error}");
    }
    let fixed = layer(constant.fixed(false).unwrap());
    assert!(max_diff(&fixed.forward(&x.detach()).unwrap(), &case.get("y")) < 1e-5);
    let y = fixed.forward(&x).unwrap();
    let grads = (y * case.get("g")).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(max_diff(grads.get(&vars[0]).unwrap(), &case.get("grad.x")) < 1e-5);
    assert!(max_diff(&lora.merged_rows(&case.get("weight"), 0).unwrap(), &case.get("merged")) < 1e-6);
}
