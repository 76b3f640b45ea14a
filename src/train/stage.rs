//! Building of a stage: model, teachers, parameters and objective.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::adapted::{Frozen, build_adapted};
use super::collate::SampleForm;
use super::connector::connector_of_text;
use super::export::{clip_of, llm_of, save_clip, save_llm, save_model, save_parameters};
use super::init::{lay_out_positions, whiten_patches};
use super::memory::MemoryNeeds;
use super::parameter_groups::trained_names;
use super::recipe::{ConnectorStart, InitFrom, Recipe, Stage};
use super::vocabulary::{SourceVocabulary, row_map};
use super::{Contrastive, Distillation, Language, NextToken, Objective};
use crate::batch::{MultimodalBatch, Visual};
use crate::config::{HaploVlConfig, MlpKind, NormKind};
use crate::model::{
    ClipTeacher, ClipVision, DistillationHeads, HaploVl, LanguageModel, PreDecoderModel, VisionTeacher,
};
use crate::nn::Activations;
use crate::options::Precision;
use crate::processor::{Processor, TextTokenizer};
use crate::weights::{
    ClipSource, InitReport, LlmSource, ParameterShapes, Parameters, RowMap, SaveOptions, TensorSource,
    check_model_folder, folder_of, init_from_clip, init_from_llm, init_text_embedding, is_known_buffer,
    open_decoder_weights,
};
use crate::{Error, Result};

/// Parameters with one row for each token.
const ROWS_OF_TOKENS: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// Stage that is ready to be trained.
pub(super) struct BuiltStage {
    pub objective: Box<dyn Objective>,
    /// All parameters of the model, trained or not.
    pub parameters: Parameters,
    /// Names of the trained parameters, sorted.
    pub trained: Vec<String>,
    pub report: Option<InitReport>,
    /// The frozen part of a run that trains an adapter.
    pub frozen: Option<Frozen>,
}

impl Stage {
    pub(super) fn sample_form(&self) -> SampleForm {
        match self {
            Self::Vision { .. } => SampleForm::CaptionPair,
            Self::Language => SampleForm::Words,
            Self::Distill { .. } | Self::Align { .. } | Self::Tune { .. } => SampleForm::Dialogue,
        }
    }

    /// Whether the parameters that read images are initialised at random.
    fn sees_from_scratch(&self) -> bool {
        match self {
            Self::Vision { .. } => true,
            Self::Language => false,
            Self::Distill { init_from, .. } | Self::Align { init_from } | Self::Tune { init_from, .. } => {
                init_from.clip.is_none() && init_from.stage.is_none()
            }
        }
    }

    /// Whether the stage trains a parameter of the model.
    pub(super) fn trains(&self, name: &str) -> bool {
        match self {
            Self::Align { .. } => name.starts_with("model.pre_connector."),
            _ => true,
        }
    }
}

/// Builds an objective over the parameters of a builder.
type Blueprint<'a> = Box<dyn Fn(VarBuilder) -> Result<Box<dyn Objective>> + 'a>;

/// Builds the objective of another model than a HaploVL, see [`Run::with_objective`](super::Run::with_objective).
pub(super) type OwnObjective<'a> = &'a dyn Fn(&HaploVlConfig, VarBuilder) -> Result<Box<dyn Objective>>;

/// Checks that a stage can train another model: only `tune` does not name parts of a HaploVL.
fn check_own(stage: &Stage) -> Result<()> {
    let Stage::Tune { init_from, pre_decoder_lr_scale } = stage else {
        let message = format!("is `{}`, expected `tune` for an objective of your own", stage.name());
        return Err(Error::config("stage.kind", message));
    };
    if *pre_decoder_lr_scale != 1.0 {
        let message = "is of a HaploVL's part: name the parameters of your model in `optimizer.groups`";
        return Err(Error::config("stage.pre_decoder_lr_scale", message));
    }
    let halves = [("stage.init_from.clip", &init_from.clip), ("stage.init_from.llm", &init_from.llm)];
    match halves.into_iter().find_map(|(field, source)| Some((field, source.as_ref()?))) {
        Some((field, source)) => Err(Error::config(
            field,
            format!("is {source}, but names parts of a HaploVL: set `stage.init_from.stage`, which copies by name"),
        )),
        None => Ok(()),
    }
}

/// Builds the stage of a recipe and loads its pretrained weights.
///
/// `images` gives some of the training data, from which a patch projection without pretrained weights is initialised.
/// The objective is `own`, if there is one, in place of the stage's.
pub(super) fn build(
    own: Option<OwnObjective<'_>>,
    recipe: &Recipe,
    config: &HaploVlConfig,
    tokenizer: &TextTokenizer,
    device: &Device,
    needs: &MemoryNeeds,
    images: impl FnOnce() -> Vec<Visual>,
) -> Result<BuiltStage> {
    if let Some(settings) = &recipe.adapter {
        if own.is_some() {
            return Err(Error::config("adapter", "cannot be combined with an objective of your own: leave it out"));
        }
        return build_adapted(recipe, settings, config, tokenizer, device, needs);
    }
    check_form(&recipe.stage, config)?;
    let objective: Blueprint<'_> = match own {
        Some(own) => {
            check_own(&recipe.stage)?;
            Box::new(move |vb| own(config, vb))
        }
        None => blueprint(recipe, config, tokenizer, device)?,
    };
    let trained = trained_parameters(recipe, config, device, needs, &objective)?;
    let parameters = Parameters::new();
    // Built once to create every parameter, and once more with the frozen parameters detached, which then need no
    // gradients.
    objective(parameters.var_builder(recipe.seed, DType::F32, device))?;
    // Pretrained weights overwrite what an own model finds at its initial values.
    if recipe.stage.sees_from_scratch() || own.is_some() {
        lay_out_positions(config, &parameters)?;
        whiten_patches(config, &parameters, &images())?;
    }
    let report =
        recipe.stage.init_from().map(|sources| load_pretrained(recipe, sources, config, tokenizer, &parameters));
    let learns = trained.clone();
    let learns = move |name: &str| learns.binary_search_by(|trained| trained.as_str().cmp(name)).is_ok();
    let objective = objective(parameters.var_builder_where(recipe.seed, DType::F32, device, learns))?;
    Ok(BuiltStage { objective, parameters, trained, report: report.transpose()?.flatten(), frozen: None })
}

/// Names of the trained parameters, sorted, found without allocating any.
///
/// # Errors
/// [`Error::Config`] if the model does not fit in memory, or nothing is left to train.
fn trained_parameters(
    recipe: &Recipe,
    config: &HaploVlConfig,
    device: &Device,
    needs: &MemoryNeeds,
    objective: &Blueprint<'_>,
) -> Result<Vec<String>> {
    let recorded = ParameterShapes::default();
    objective(recorded.var_builder())?;
    let shapes = recorded.shapes();
    let size = |name: &str| shapes.get(name).into_iter().flatten().map(|&side| side as f64).product::<f64>();
    let names: Vec<String> = shapes.keys().filter(|name| recipe.stage.trains(name)).cloned().collect();
    let trained = trained_names(recipe, config, &names)?;
    if trained.is_empty() {
        return Err(Error::config("optimizer.groups", "freeze every parameter: leave some to be trained"));
    }
    let all = shapes.keys().map(|name| size(name)).sum();
    needs.check_model(all, trained.iter().map(|name| size(name)).sum(), device)?;
    Ok(trained)
}

/// Rejects configurations that the stage's export format cannot express: a CLIP has layer norms and no grouped-query
/// attention, a Qwen2 has a gated MLP.
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
            format!("must be {expected} for stage `{}`: its export format supports nothing else", stage.name()),
        )),
        None => Ok(()),
    }
}

/// Dtype and treatment of activations, and precision of matmuls.
pub(super) fn activations_of(recipe: &Recipe, device: &Device) -> (DType, Precision, Activations) {
    let (compute, precision) = recipe.update.compute_dtype.on(device);
    let activations =
        if recipe.update.gradient_checkpointing { Activations::Recomputed } else { Activations::Released };
    (compute, precision, activations)
}

/// Function that builds the objective of a stage; teachers are opened here, once.
fn blueprint<'a>(
    recipe: &'a Recipe,
    config: &'a HaploVlConfig,
    tokenizer: &TextTokenizer,
    device: &Device,
) -> Result<Blueprint<'a>> {
    let (compute, precision, activations) = activations_of(recipe, device);
    Ok(match &recipe.stage {
        Stage::Vision { projection_dim } => {
            Box::new(move |vb| Ok(Box::new(Contrastive::new(&clip_of(config), &llm_of(config), *projection_dim, vb)?)))
        }
        Stage::Language => Box::new(|vb| Ok(Box::new(Language::new(LanguageModel::new(&llm_of(config), vb)?)))),
        Stage::Distill { vision_teacher, teacher_layer, text_teacher, weights, .. } => {
            let teacher = from_source(recipe, "vision_teacher", vision_teacher, |path| {
                open_teacher(path, *teacher_layer, device)
            })?;
            let text = text_table(recipe, text_teacher, config, tokenizer, device)?;
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

/// Loads something from the model that a field of the stage names; errors name the field.
fn from_source<T>(recipe: &Recipe, field: &str, source: &str, load: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let field = format!("stage.{field}");
    let model = recipe.open_model_source(&field, source)?;
    load(model.path()).map_err(|e| Error::config(field, e.to_string()).caused_by(e))
}

fn open_teacher(path: &Path, layer: isize, device: &Device) -> Result<ClipTeacher> {
    let source = ClipSource::open(path)?;
    ClipTeacher::new(ClipVision::new(source.config(), source.var_builder(DType::F32, device))?, layer)
}

/// Embedding table of the text teacher, (vocab_size, LLM width).
fn text_table(
    recipe: &Recipe,
    teacher: &str,
    config: &HaploVlConfig,
    tokenizer: &TextTokenizer,
    device: &Device,
) -> Result<Tensor> {
    let table = |path: &Path| open_llm(path, tokenizer, config)?.embedding(config.vocab_size, DType::F32, device);
    from_source(recipe, "text_teacher", teacher, table)
}

/// Copies pretrained weights from the sources of `init_from`; other parameters keep their random values.
fn load_pretrained(
    recipe: &Recipe,
    sources: &InitFrom,
    config: &HaploVlConfig,
    tokenizer: &TextTokenizer,
    parameters: &Parameters,
) -> Result<Option<InitReport>> {
    let mut reports = Vec::new();
    if let Some(llm) = &sources.llm {
        // Stage 1 has no post-decoder, so only the text embedding is taken.
        let is_whole_model = parameters.get("model.norm.weight").is_some();
        let load = if is_whole_model { init_from_llm } else { init_text_embedding };
        let load = |path: &Path| load(&open_llm(path, tokenizer, config)?, config, parameters, sources.text);
        reports.push(from_source(recipe, "init_from.llm", llm, load)?);
    }
    if let Some(clip) = &sources.clip {
        let load = |path: &Path| init_from_clip(&ClipSource::open(path)?, config, parameters);
        reports.push(from_source(recipe, "init_from.clip", clip, load)?);
    }
    if let Some(stage) = &sources.stage {
        let load = |path: &Path| load_stage(path, tokenizer, parameters);
        reports.push(from_source(recipe, "init_from.stage", stage, load)?);
    }
    Ok(reports.into_iter().reduce(InitReport::merge))
}

/// Opens a language model, whose rows follow the tokens of the run if it has a vocabulary.
pub(crate) fn open_llm(path: &Path, tokenizer: &TextTokenizer, config: &HaploVlConfig) -> Result<LlmSource> {
    let llm = LlmSource::open(path)?;
    match SourceVocabulary::of_llm(path)? {
        Some(own) => {
            let rows = row_map(&own, llm.config().vocab_size, tokenizer, config.vocab_size)?;
            Ok(llm.with_rows(rows))
        }
        None => Ok(llm),
    }
}

/// Copies every parameter of an earlier stage's export, or of a whole model; rows of its vocabulary follow the tokens of
/// the run.
fn load_stage(path: &Path, tokenizer: &TextTokenizer, parameters: &Parameters) -> Result<InitReport> {
    let files = open_decoder_weights(path)?;
    let maps = mapped_rows(&*files, path, &parameters.shapes(), tokenizer)?;
    let mut report = InitReport::default();
    for (name, var) in parameters.iter() {
        if !files.has_tensor(&name) {
            report.fresh.push(name);
            continue;
        }
        let mut values = files.load_tensor(&name, var.dtype(), var.device())?;
        if let Some(rows) = maps.get(&name) {
            values = rows.apply(&values)?;
            report.rows = vec![rows.counts()];
        }
        parameters.set(&name, &values)?;
        report.copied.push(name);
    }
    let others = files.tensor_names().into_iter().filter(|name| parameters.get(name).is_none());
    (report.ignored, report.unused) = others.partition(|name| is_known_buffer(name));
    Ok(report)
}

/// Rows of the tables of tokens in a model for the tokens of the run.
pub(super) fn mapped_rows(
    files: &dyn TensorSource,
    path: &Path,
    expected: &BTreeMap<String, Vec<usize>>,
    tokenizer: &TextTokenizer,
) -> Result<BTreeMap<String, RowMap>> {
    let folder = folder_of(path);
    check_model_folder(folder)?;
    let own = SourceVocabulary::of_folder(folder)?;
    let mut maps = BTreeMap::new();
    for name in ROWS_OF_TOKENS {
        let (Some([old, _]), Some([new, _])) = (files.tensor_shape(name), expected.get(name).map(Vec::as_slice)) else {
            continue;
        };
        let rows = match &own {
            Some(own) => row_map(own, *old, tokenizer, *new)?,
            None => RowMap::by_id(*old, *new),
        };
        maps.insert(name.to_string(), rows);
    }
    Ok(maps)
}

/// Connector weights for the export of stage 1, fitted on the texts of some batches; `None` for other stages.
pub(super) fn connector(
    recipe: &Recipe,
    config: &HaploVlConfig,
    tokenizer: &TextTokenizer,
    parameters: &Parameters,
    device: &Device,
    batches: impl Iterator<Item = MultimodalBatch>,
) -> Result<Option<Tensor>> {
    let Stage::Distill { text_teacher, connector: ConnectorStart::Text, .. } = &recipe.stage else {
        return Ok(None);
    };
    let table = text_table(recipe, text_teacher, config, tokenizer, device)?;
    // The teacher may be another model than the language model of stage 2.
    if table.dim(1)? != config.post_decoder.hidden_size {
        return Ok(None);
    }
    let model = PreDecoderModel::new(config, parameters.var_builder_where(0, DType::F32, device, |_| false))?;
    connector_of_text(&model, &table, batches)
}

/// Writes the trained model of a stage in the format that the next stage reads; of an own objective, its parameters.
pub(super) fn export(
    is_own: bool,
    recipe: &Recipe,
    folder: &Path,
    config: &HaploVlConfig,
    parameters: &Parameters,
    connector: Option<Tensor>,
    processor: &Processor,
) -> Result<()> {
    let options = SaveOptions { dtype: Some(recipe.run.export_dtype.dtype()), ..SaveOptions::default() };
    match &recipe.stage {
        Stage::Vision { .. } => save_clip(folder, &clip_of(config), parameters, &options),
        Stage::Language => save_llm(folder, &llm_of(config), parameters, processor, &options),
        _ if is_own => save_parameters(folder, config, parameters, None, processor, &options),
        Stage::Distill { .. } => save_parameters(folder, config, parameters, connector, processor, &options),
        Stage::Align { .. } | Stage::Tune { .. } => save_model(folder, config, parameters, processor, &options),
    }
}
