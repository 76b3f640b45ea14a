//! Builds what a stage trains: model, teachers, parameters, objective.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::export::{clip_of, llm_of, save_clip, save_distilled, save_llm, save_model};
use super::recipe::{ComputeDtype, Inherit, Recipe, Stage};
use super::samples::SampleForm;
use super::{Contrastive, Distillation, Language, NextToken, Objective};
use crate::Result;
use crate::config::HaploVlConfig;
use crate::model::{
    ClipTeacher, ClipVision, DistillationHeads, HaploVl, LanguageModel, PreDecoderModel, VisionTeacher,
};
use crate::nn::CheckpointScope;
use crate::processor::Processor;
use crate::weights::{
    ClipSource, InheritReport, LlmSource, Parameters, SafetensorsFiles, inherit_clip, inherit_llm,
    inherit_text_embedding, resolve_model,
};

/// A stage, ready to be trained.
pub(super) struct BuiltStage {
    pub objective: Box<dyn Objective + Send>,
    /// All parameters of the model, trained or not.
    pub parameters: Parameters,
    /// Names of those that are trained, sorted.
    pub trained: Vec<String>,
    pub scope: Option<Arc<CheckpointScope>>,
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

    /// Whether a parameter of the model is trained.
    fn trains(&self, name: &str) -> bool {
        match self {
            Self::Align { .. } => name.starts_with("model.pre_connector."),
            _ => true,
        }
    }

    /// Where the gradients of recomputed layers go.
    fn checkpoint_scope(&self, parameters: &Parameters) -> Arc<CheckpointScope> {
        let trained = parameters.iter().filter(|(name, _)| self.trains(name)).map(|(_, var)| var);
        CheckpointScope::new(&trained.collect::<Vec<_>>())
    }
}

/// Builds the stage of a recipe; what it inherits is loaded here.
pub(super) fn build(recipe: &Recipe, config: &HaploVlConfig, device: &Device) -> Result<BuiltStage> {
    let parameters = Parameters::new();
    let vb = || parameters.var_builder(recipe.seed, DType::F32, device);
    let compute = match recipe.update.compute {
        ComputeDtype::F32 => DType::F32,
        ComputeDtype::Bf16 => DType::BF16,
    };
    let (mut report, mut scope) = (None, None);
    let checkpointing = || recipe.update.gradient_checkpointing.then(|| recipe.stage.checkpoint_scope(&parameters));
    let objective: Box<dyn Objective + Send> = match &recipe.stage {
        Stage::Vision { projection_dim } => {
            Box::new(Contrastive::new(&clip_of(config), &llm_of(config), *projection_dim, vb())?)
        }
        Stage::Language => Box::new(Language::new(LanguageModel::new(&llm_of(config), vb())?)),
        Stage::Distill { inherit, vision_teacher, teacher_layer, text_teacher, weights } => {
            let teacher = open_teacher(vision_teacher, *teacher_layer, device)?;
            let text = LlmSource::open(resolve_llm(text_teacher)?)?.embedding(config.vocab_size, DType::F32, device)?;
            let heads = DistillationHeads::new(config.pre_decoder.hidden_size, teacher.width(), text.dim(1)?, vb())?;
            let model = PreDecoderModel::new(config, vb())?.with_compute_dtype(compute);
            report = inherit_into(inherit, config, &parameters)?;
            scope = checkpointing();
            let model = model.with_checkpointing(scope.clone());
            Box::new(Distillation::new(config, model, heads, Box::new(teacher), text, *weights)?)
        }
        Stage::Align { inherit } | Stage::Tune { inherit } => {
            // Once to create and fill every parameter, and once more with the frozen ones detached.
            HaploVl::new(config, vb())?;
            report = inherit_into(inherit, config, &parameters)?;
            let stage = recipe.stage.clone();
            let trainable = move |name: &str| stage.trains(name);
            let vb = parameters.var_builder_where(recipe.seed, DType::F32, device, trainable);
            let model = HaploVl::new(config, vb)?.with_compute_dtype(compute);
            scope = checkpointing();
            let model = model.with_checkpointing(scope.clone());
            Box::new(NextToken::new(model))
        }
    };
    let trained = parameters.names().into_iter().filter(|name| recipe.stage.trains(name)).collect();
    Ok(BuiltStage { objective, parameters, trained, scope, report })
}

fn open_teacher(source: &str, layer: isize, device: &Device) -> Result<ClipTeacher> {
    let source = ClipSource::open(resolve_model(source, None)?)?;
    let vb = Arc::clone(source.files()).var_builder(DType::F32, device);
    ClipTeacher::new(ClipVision::new(source.config(), vb)?, layer)
}

/// Fills the parameters that the sources have; others keep their random start.
fn inherit_into(inherit: &Inherit, config: &HaploVlConfig, parameters: &Parameters) -> Result<Option<InheritReport>> {
    let mut reports = Vec::new();
    if let Some(llm) = &inherit.llm {
        let source = LlmSource::open(resolve_llm(llm)?)?;
        // Stage 1 holds no post-decoder that could take in more than the words.
        let whole = parameters.get("model.norm.weight").is_some();
        let inherit_from = if whole { inherit_llm } else { inherit_text_embedding };
        reports.push(inherit_from(&source, config, parameters, inherit.text)?);
    }
    if let Some(clip) = &inherit.clip {
        reports.push(inherit_clip(&ClipSource::open(resolve_model(clip, None)?)?, config, parameters)?);
    }
    if let Some(stage) = &inherit.stage {
        reports.push(inherit_stage(stage, parameters)?);
    }
    Ok(reports.into_iter().reduce(InheritReport::merge))
}

/// A GGUF file is given by its path; all else is a folder or hub id.
fn resolve_llm(source: &str) -> Result<std::path::PathBuf> {
    let path = Path::new(source);
    if path.is_file() { Ok(path.to_path_buf()) } else { resolve_model(source, None) }
}

/// Copies every parameter of an earlier stage's export.
fn inherit_stage(folder: &Path, parameters: &Parameters) -> Result<InheritReport> {
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

/// Writes what the stage has made.
pub(super) fn export(
    stage: &Stage,
    folder: &Path,
    config: &HaploVlConfig,
    parameters: &Parameters,
    processor: &Processor,
) -> Result<()> {
    match stage {
        Stage::Vision { .. } => save_clip(folder, &clip_of(config), parameters),
        Stage::Language => save_llm(folder, &llm_of(config), parameters, processor),
        Stage::Distill { .. } => save_distilled(folder, config, parameters),
        Stage::Align { .. } | Stage::Tune { .. } => save_model(folder, config, parameters, processor),
    }
}
