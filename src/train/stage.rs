//! Builds what a stage trains: model, teachers, parameters, objective.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::collate::SampleForm;
use super::connector::connector_of_text;
use super::export::{clip_of, llm_of, save_clip, save_distilled, save_llm, save_model};
use super::init::{lay_out_positions, whiten_patches};
use super::recipe::{ConnectorStart, Inherit, Recipe, Stage};
use super::{Contrastive, Distillation, Language, NextToken, Objective};
use crate::batch::{MultimodalBatch, Visual};
use crate::config::{HaploVlConfig, MlpKind, NormKind};
use crate::model::{
    ClipTeacher, ClipVision, DistillationHeads, HaploVl, LanguageModel, PreDecoderModel, VisionTeacher,
};
use crate::nn::Activations;
use crate::optim::trainable;
use crate::processor::Processor;
use crate::weights::{
    ClipSource, InheritReport, LlmSource, Parameters, SafetensorsFiles, SaveOptions, check_model_folder, inherit_clip,
    inherit_llm, inherit_text_embedding, resolve_model,
};
use crate::{Error, Result};

/// A stage, ready to be trained.
pub(super) struct BuiltStage {
    pub objective: Box<dyn Objective>,
    /// All parameters of the model, trained or not.
    pub parameters: Parameters,
    /// Names of those that are trained, sorted.
    pub trained: Vec<String>,
    pub report: Option<InheritReport>,
}

impl Stage {
    pub(super) fn sample_form(&self) -> SampleForm {
        match self {
            Self::Vision { .. } => SampleForm::CaptionPair,
            Self::Language => SampleForm::Words,
            Self::Distill { .. } | Self::Align { .. } | Self::Tune { .. } => SampleForm::Dialogue,
        }
    }

    /// Whether pictures are read by parameters that nothing sets but chance.
    fn sees_from_scratch(&self) -> bool {
        match self {
            Self::Vision { .. } => true,
            Self::Language => false,
            Self::Distill { inherit, .. } | Self::Align { inherit } | Self::Tune { inherit } => {
                inherit.clip.is_none() && inherit.stage.is_none()
            }
        }
    }

    /// Whether the stage trains a parameter of the model.
    fn trains(&self, name: &str) -> bool {
        match self {
            Self::Align { .. } => name.starts_with("model.pre_connector."),
            _ => true,
        }
    }
}

/// Builds an objective over the parameters of a builder.
type Blueprint<'a> = Box<dyn Fn(VarBuilder) -> Result<Box<dyn Objective>> + 'a>;

/// Builds the stage of a recipe; what it inherits is loaded here.
///
/// `pictures` gives some of the training data, for parameters that start from it.
pub(super) fn build(
    recipe: &Recipe,
    config: &HaploVlConfig,
    device: &Device,
    pictures: impl FnOnce() -> Vec<Visual>,
) -> Result<BuiltStage> {
    check_form(&recipe.stage, config)?;
    let parameters = Parameters::new();
    let objective = blueprint(recipe, config, device)?;
    // Once to create every parameter, and once more with the frozen ones detached, which then cost nothing.
    objective(parameters.var_builder(recipe.seed, DType::F32, device))?;
    if recipe.stage.sees_from_scratch() {
        lay_out_positions(config, &parameters)?;
        whiten_patches(config, &parameters, &pictures())?;
    }
    let report = recipe.stage.inherit().map(|inherit| inherit_into(inherit, config, &parameters)).transpose()?;
    let names: Vec<String> = parameters.names().into_iter().filter(|name| recipe.stage.trains(name)).collect();
    let trained = trainable(&recipe.optimizer.groups, &names)?;
    if trained.is_empty() {
        return Err(Error::config("optimizer.groups", "freeze every parameter: leave some to be trained"));
    }
    let learns = trained.clone();
    let learns = move |name: &str| learns.binary_search_by(|trained| trained.as_str().cmp(name)).is_ok();
    let objective = objective(parameters.var_builder_where(recipe.seed, DType::F32, device, learns))?;
    Ok(BuiltStage { objective, parameters, trained, report: report.flatten() })
}

/// Refuses what the export of a stage could not say: a CLIP has layer norms and no grouped keys, a Qwen2 is gated.
fn check_form(stage: &Stage, config: &HaploVlConfig) -> Result<()> {
    let (pre, post) = (&config.pre_decoder, &config.post_decoder);
    let demands = match stage {
        Stage::Vision { .. } => [
            ("pre_decoder.norm_mode", pre.norm_mode == NormKind::LayerNorm, "layernorm"),
            (
                "pre_decoder.num_key_value_heads",
                pre.num_key_value_heads == pre.num_attention_heads,
                "num_attention_heads",
            ),
        ],
        Stage::Language => [
            ("post_decoder.norm_mode", post.norm_mode == NormKind::RmsNorm, "rmsnorm"),
            ("post_decoder.mlp", post.mlp == MlpKind::Gated, "gated"),
        ],
        _ => return Ok(()),
    };
    match demands.into_iter().find(|(_, met, _)| !met) {
        Some((field, _, expected)) => Err(Error::config(
            field,
            format!("must be {expected} for the stage `{}`, whose export knows no other", stage.name()),
        )),
        None => Ok(()),
    }
}

/// How to build the objective of a stage; teachers are opened here, once.
fn blueprint<'a>(recipe: &'a Recipe, config: &'a HaploVlConfig, device: &Device) -> Result<Blueprint<'a>> {
    let (compute, precision) = recipe.update.compute.on(device);
    let activations =
        if recipe.update.gradient_checkpointing { Activations::Recomputed } else { Activations::Released };
    Ok(match &recipe.stage {
        Stage::Vision { projection_dim } => {
            Box::new(move |vb| Ok(Box::new(Contrastive::new(&clip_of(config), &llm_of(config), *projection_dim, vb)?)))
        }
        Stage::Language => Box::new(|vb| Ok(Box::new(Language::new(LanguageModel::new(&llm_of(config), vb)?)))),
        Stage::Distill { vision_teacher, teacher_layer, text_teacher, weights, .. } => {
            let teacher = field("vision_teacher", || open_teacher(vision_teacher, *teacher_layer, device))?;
            let text =
                field("text_teacher", || open_llm(text_teacher)?.embedding(config.vocab_size, DType::F32, device))?;
            Box::new(move |vb| {
                let (teacher, text) = (Box::new(teacher.clone()), text.clone());
                let (width, words) = (config.pre_decoder.hidden_size, text.dim(1)?);
                let heads = DistillationHeads::new(width, teacher.width(), words, vb.clone())?;
                let model = PreDecoderModel::new(config, vb)?
                    .with_compute_dtype(compute)
                    .with_precision(precision)
                    .with_activations(activations);
                Ok(Box::new(Distillation::new(config, model, heads, teacher, text, *weights)?))
            })
        }
        Stage::Align { .. } | Stage::Tune { .. } => Box::new(move |vb| {
            let model = HaploVl::new(config, vb)?
                .with_compute_dtype(compute)
                .with_precision(precision)
                .with_activations(activations);
            Ok(Box::new(NextToken::new(model)))
        }),
    })
}

/// Says in a failure which field of the stage names what could not be used.
fn field<T>(name: &str, use_it: impl FnOnce() -> Result<T>) -> Result<T> {
    use_it().map_err(|error| Error::config(format!("stage.{name}"), error.to_string()))
}

fn open_teacher(source: &str, layer: isize, device: &Device) -> Result<ClipTeacher> {
    let source = open_clip(source)?;
    let vb = Arc::clone(source.files()).var_builder(DType::F32, device);
    ClipTeacher::new(ClipVision::new(source.config(), vb)?, layer)
}

/// Fills the parameters that the sources have; others keep their random start.
fn inherit_into(inherit: &Inherit, config: &HaploVlConfig, parameters: &Parameters) -> Result<Option<InheritReport>> {
    let mut reports = Vec::new();
    if let Some(llm) = &inherit.llm {
        // Stage 1 holds no post-decoder that could take in more than the words.
        let whole = parameters.get("model.norm.weight").is_some();
        let inherit_from = if whole { inherit_llm } else { inherit_text_embedding };
        reports.push(field("inherit.llm", || inherit_from(&open_llm(llm)?, config, parameters, inherit.text))?);
    }
    if let Some(clip) = &inherit.clip {
        reports.push(field("inherit.clip", || inherit_clip(&open_clip(clip)?, config, parameters))?);
    }
    if let Some(stage) = &inherit.stage {
        reports.push(field("inherit.stage", || inherit_stage(stage, parameters))?);
    }
    Ok(reports.into_iter().reduce(InheritReport::merge))
}

fn open_clip(source: &str) -> Result<ClipSource> {
    ClipSource::open(resolve_model(source, None)?)
}

/// A GGUF file is given by its path; all else is a folder or hub id.
fn open_llm(source: &str) -> Result<LlmSource> {
    if Path::new(source).is_file() { LlmSource::open(source) } else { LlmSource::open(resolve_model(source, None)?) }
}

/// Copies every parameter of an earlier stage's export.
fn inherit_stage(folder: &Path, parameters: &Parameters) -> Result<InheritReport> {
    check_model_folder(folder)?;
    let files = SafetensorsFiles::open(folder)?;
    let mut report = InheritReport::default();
    for (name, var) in parameters.iter() {
        if files.shape(&name).is_none() {
            report.fresh.push(name);
            continue;
        }
        parameters.set(&name, &files.load(&name, var.dtype(), var.device())?)?;
        report.copied.push(name);
    }
    report.unused = files.names().filter(|name| parameters.get(name).is_none()).map(String::from).collect();
    Ok(report)
}

/// What the stage gives the connector to start from, fitted on the texts of some batches.
pub(super) fn connector(
    stage: &Stage,
    config: &HaploVlConfig,
    parameters: &Parameters,
    device: &Device,
    batches: impl Iterator<Item = MultimodalBatch>,
) -> Result<Option<Tensor>> {
    let Stage::Distill { text_teacher, connector: ConnectorStart::Text, .. } = stage else { return Ok(None) };
    let table = field("text_teacher", || open_llm(text_teacher)?.embedding(config.vocab_size, DType::F32, device))?;
    // A teacher may be another model than the one that stage 2 goes on with.
    if table.dim(1)? != config.post_decoder.hidden_size {
        return Ok(None);
    }
    let model = PreDecoderModel::new(config, parameters.var_builder_where(0, DType::F32, device, |_| false))?;
    connector_of_text(&model, &table, batches)
}

/// Writes what the stage has made.
pub(super) fn export(
    recipe: &Recipe,
    folder: &Path,
    config: &HaploVlConfig,
    parameters: &Parameters,
    connector: Option<Tensor>,
    processor: &Processor,
) -> Result<()> {
    let options = SaveOptions { dtype: Some(recipe.run.export.dtype()), ..SaveOptions::default() };
    match &recipe.stage {
        Stage::Vision { .. } => save_clip(folder, &clip_of(config), parameters, &options),
        Stage::Language => save_llm(folder, &llm_of(config), parameters, processor, &options),
        Stage::Distill { .. } => save_distilled(folder, config, parameters, connector, &options),
        Stage::Align { .. } | Stage::Tune { .. } => save_model(folder, config, parameters, processor, &options),
    }
}
