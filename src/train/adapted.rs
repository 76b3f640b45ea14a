//! Building of a stage that trains an adapter over frozen weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Init;

use super::NextToken;
use super::export::generation_of;
use super::memory::MemoryNeeds;
use super::parameter_groups::trained_names;
use super::recipe::{AdapterConfig, InitFrom, Recipe, in_recipe};
use super::stage::{BuiltStage, activations_of, mapped_rows};
use crate::config::HaploVlConfig;
use crate::model::{ADAPTER_PREFIX, Adapter, HaploVl, save_companions};
use crate::options::Quantization;
use crate::processor::{Processor, TextTokenizer};
use crate::weights::{
    InitReport, OverlaySource, Parameters, SaveOptions, TensorSource, check_source, load_unpadded, open_decoder_weights,
};
use crate::{Error, Result};

/// Builds the stage of a recipe with `adapter`: the frozen model, and the adapter's parameters.
///
/// # Errors
/// [`Error::Config`] naming the field, and the errors of the sources of `stage.init_from`.
pub(super) fn build_adapted(
    recipe: &Recipe,
    settings: &AdapterConfig,
    config: &HaploVlConfig,
    tokenizer: &TextTokenizer,
    device: &Device,
    needs: &MemoryNeeds,
) -> Result<BuiltStage> {
    let lora = settings.lora(&base_name(recipe));
    let shapes = Adapter::shapes(&lora, config).map_err(in_recipe)?;
    let trained = trained_names(recipe, config, &shapes.keys().cloned().collect::<Vec<_>>())?;
    let is_saved = |name: &str| shapes.contains_key(&format!("{ADAPTER_PREFIX}{name}"));
    let Base { source, report, is_grown } = base_weights(recipe, config, tokenizer, is_saved)?;
    let quantization = settings.quantization()?;
    let bytes = frozen_bytes(config, &*source, quantization)?;
    let size = |name: &String| shapes.get(name).into_iter().flatten().map(|side| *side as f64).product::<f64>();
    let all = bytes / size_of::<f32>() as f64 + shapes.keys().map(size).sum::<f64>();
    needs.check_model(all, trained.iter().map(size).sum(), device)?;
    let (compute, precision, activations) = activations_of(recipe, device);
    let base = HaploVl::frozen_from_source(config, Arc::clone(&source), quantization, device)?
        .with_compute_dtype(compute)
        .with_precision(precision)
        .with_activations(activations);
    let parameters = fresh_parameters(&shapes, &*source, recipe.seed, device)?;
    let is_trained = |name: &str| trained.binary_search_by(|trained| trained.as_str().cmp(name)).is_ok();
    let adapter = Adapter::new(lora.clone(), config, tensors(&parameters, is_trained))?;
    let objective = Box::new(NextToken::new(base.clone().with_adapter(&adapter)?));
    // The same tensors without a graph, for answers during training and the export.
    let adapter = Adapter::new(lora, config, tensors(&parameters, |_| false))?;
    let mut model = base.with_adapter(&adapter)?;
    // Magnitudes start as the norms of the weights as they are held, so that a fresh DoRA adapter changes nothing, too.
    model.adapted_norms()?.iter().try_for_each(|(name, norms)| parameters.set(name, norms))?;
    let frozen = Some(Frozen { model, adapter, bytes, is_grown });
    Ok(BuiltStage { objective, parameters, trained, report: Some(report), frozen })
}

/// The parameters' tensors, which change with them; detached unless they are tracked.
fn tensors(parameters: &Parameters, is_tracked: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
    let tensor = |(name, var): (String, Var)| {
        let tensor = if is_tracked(&name) { var.as_tensor().clone() } else { var.as_detached_tensor() };
        (name, tensor)
    };
    parameters.iter().map(tensor).collect()
}

/// The frozen part of a run that trains an adapter.
pub(super) struct Frozen {
    /// The model with the adapter, whose values change with the run's parameters.
    pub model: HaploVl,
    /// The adapter.
    pub adapter: Adapter,
    /// Bytes of the frozen weights.
    pub bytes: f64,
    /// Whether the run has other tokens than the base model.
    pub is_grown: bool,
}

/// The name of the base model in the adapter's configuration, which is information only.
fn base_name(recipe: &Recipe) -> String {
    recipe.stage.init_from().and_then(|sources| sources.stage.clone()).unwrap_or_default()
}

/// The adapter's parameters: `lora_A` as PEFT's Kaiming-uniform values, `lora_B` zeros, so that a fresh adapter changes
/// nothing, and the modules to save as they are in the base model. Magnitudes are zeros until the model is built.
fn fresh_parameters(
    shapes: &BTreeMap<String, Vec<usize>>,
    source: &dyn TensorSource,
    seed: u64,
    device: &Device,
) -> Result<Parameters> {
    let parameters = Parameters::new();
    let vb = parameters.var_builder(seed, DType::F32, device);
    for (name, shape) in shapes {
        let fan_in = shape.last().copied().unwrap_or(1).max(1) as f64;
        let init = match name.ends_with("lora_A.weight") {
            true => Init::Uniform { lo: -1.0 / fan_in.sqrt(), up: 1.0 / fan_in.sqrt() },
            false => Init::Const(0.0),
        };
        vb.get_with_hints(shape.as_slice(), name, init)?;
        if let Some(replaced) = Adapter::replaced_parameter(name) {
            parameters.set(name, &load_unpadded(source, &replaced, shape, DType::F32, device)?)?;
        }
    }
    Ok(parameters)
}

/// Bytes of the frozen weights as they will be held.
fn frozen_bytes(config: &HaploVlConfig, source: &dyn TensorSource, quantization: Option<Quantization>) -> Result<f64> {
    let matrices = HaploVl::matrices(config)?;
    let bytes = |(name, shape): (String, Vec<usize>)| {
        let elements: f64 = shape.iter().map(|side| *side as f64).product();
        let kind = quantization.or(source.quantization(&name)).filter(|_| matrices.contains(&name));
        let block = kind.map(Quantization::ggml_dtype);
        let stored = || source.stored_dtype(&name).map_or(4, |dtype| dtype.size_in_bytes().min(4)) as f64;
        elements * block.map_or_else(stored, |block| block.type_size() as f64 / block.block_size() as f64)
    };
    Ok(HaploVl::parameter_shapes(config)?.into_iter().map(bytes).sum())
}

/// The weights below an adapter.
struct Base {
    source: Arc<dyn TensorSource>,
    report: InitReport,
    /// Whether the run has other tokens than the model.
    is_grown: bool,
}

/// The weights below the adapter, and the report on where they come from.
///
/// # Errors
/// [`Error::Config`] unless `init_from.stage` alone names a whole model with the tokens of the run: without it, nobody could
/// use the adapter.
fn base_weights(
    recipe: &Recipe,
    config: &HaploVlConfig,
    tokenizer: &TextTokenizer,
    is_saved: impl Fn(&str) -> bool,
) -> Result<Base> {
    const FIELD: &str = "stage.init_from.stage";
    let sources = recipe.stage.init_from().cloned().unwrap_or_default();
    let InitFrom { stage: Some(name), llm: None, clip: None, .. } = &sources else {
        let message =
            "must name the model to adapt, alone: put a model together from others by a run without `adapter`";
        return Err(Error::config(FIELD, message));
    };
    let model = recipe.open_model_source(FIELD, name)?;
    whole_model(model.path(), config, tokenizer, is_saved).map_err(|e| Error::config(FIELD, e.to_string()).caused_by(e))
}

/// The weights of a whole model, read when they are needed.
fn whole_model(
    path: &Path,
    config: &HaploVlConfig,
    tokenizer: &TextTokenizer,
    is_saved: impl Fn(&str) -> bool,
) -> Result<Base> {
    let (files, shapes) = (open_decoder_weights(path)?, HaploVl::parameter_shapes(config)?);
    let (mut tables, mut report) = (BTreeMap::new(), InitReport::default());
    for (name, rows) in mapped_rows(&*files, path, &shapes, tokenizer)? {
        report.rows = vec![rows.counts()];
        if rows.is_identity() {
            continue;
        }
        if !is_saved(&name) {
            let message = format!(
                "{}: has other tokens than the run, which changes `{name}`: add `embed_tokens` and `lm_head` to \
                 `adapter.modules_to_save`, or give the run the model's own tokenizer",
                path.display()
            );
            return Err(Error::weights(message));
        }
        tables.insert(name.clone(), rows.apply(&files.load_tensor(&name, DType::F32, &Device::Cpu)?)?);
    }
    let is_grown = !tables.is_empty();
    let files: Arc<dyn TensorSource> = Arc::new(OverlaySource { base: files, tensors: tables });
    check_source(&*files, &shapes)?;
    report.copied = shapes.into_keys().collect();
    Ok(Base { source: files, report, is_grown })
}

/// Writes the adapter as PEFT's files; with the run's tokenizer and configuration if it has other tokens than the base
/// model.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn export_adapter(
    recipe: &Recipe,
    folder: &Path,
    config: &HaploVlConfig,
    frozen: &Frozen,
    processor: &Processor,
) -> Result<()> {
    if frozen.is_grown {
        save_companions(folder, config, processor, &generation_of(processor))?;
    }
    let dtype = Some(recipe.run.export_dtype.dtype());
    frozen.adapter.save(folder, &SaveOptions { dtype, ..SaveOptions::default() })
}
