//! Initialisation of the pre-decoder and the patch embedding from a CLIP or SigLIP vision transformer.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::InitReport;
use super::check::Compatibility;
use super::config_file::read_config;
use super::resample::resample_grid;
use super::transfer::Transfer;
use super::vision_config::{ClipConfig, VisionFamily};
use crate::config::{HaploVlConfig, MlpKind};
use crate::weights::renamed::VISION;
use crate::weights::siglip::PixelNorm;
use crate::weights::{Parameters, TensorSource, folder_of, open_weights, source_var_builder};
use crate::{Error, Result};

const PATCHES: &str = "vision_model.embeddings.patch_embedding.weight";
const POSITIONS: &str = "vision_model.embeddings.position_embedding.weight";
/// Tensor that only checkpoints of open_clip have.
const OPEN_CLIP: &str = "visual.conv1.weight";
/// Configuration file of open_clip.
const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";

/// A CLIP or SigLIP vision transformer as a source of weights or a teacher.
#[derive(Clone)]
pub struct ClipSource {
    config: ClipConfig,
    tensors: Arc<dyn TensorSource>,
}

impl ClipSource {
    /// Opens an HF folder: `config.json`, and weights in a format of [`open_weights`]; or one file of weights beside its
    /// `config.json`. The names of the vision
    /// transformer begin with `vision_model.`; what larger models put before them is taken off.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] or [`Error::Config`] naming the part that is missing, damaged or not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = folder_of(path);
        if folder.join(OPEN_CLIP_CONFIG).is_file() && !folder.join("config.json").is_file() {
            return Err(open_clip(folder));
        }
        let config = ClipConfig::from_hf(&read_config(path)?)?;
        let tensors = open_weights(path)?;
        if tensors.has_tensor(OPEN_CLIP) {
            return Err(open_clip(folder));
        }
        Ok(Self { config, tensors: VISION.apply(tensors)? })
    }

    /// The configuration of the model.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The tensors of the model, by HF name.
    pub fn tensors(&self) -> &dyn TensorSource {
        self.tensors.as_ref()
    }

    /// A builder that returns the tensors of the model as constants, without gradients.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        source_var_builder(Arc::clone(&self.tensors), BTreeSet::new(), dtype, device)
    }
}

fn open_clip(folder: &Path) -> Error {
    let message = "is a checkpoint of open_clip, whose tensors have other names: use the same model in the form of \
                   Hugging Face's transformers (config.json with model_type `clip`)";
    Error::format(folder, message)
}

/// Copies a CLIP or SigLIP vision transformer into the patch projection, positions, first norm and pre-decoder of the model
/// that `parameters` belong to.
///
/// A gated pre-decoder reproduces CLIP's plain MLP exactly: `down(act(gate(x)) * up(x))` with `up(x) = 1`. The position
/// embedding of the class token is dropped, and the grid of patch positions is interpolated bicubically if the tile
/// sizes differ.
///
/// A SigLIP has no norm before its first layer: [`HaploVlConfig`]'s first norm is left as it is, so that the first layer
/// sees normalised patches. The bias of its patch projection is added to the positions, and its pixel normalisation (mean
/// and standard deviation 0.5) becomes part of the patch projection, which then takes pixels normalised as for CLIP.
///
/// # Errors
/// [`Error::Weights`] listing every field of `config` that is incompatible with the CLIP, or naming a missing tensor.
pub fn init_from_clip(source: &ClipSource, config: &HaploVlConfig, parameters: &Parameters) -> Result<InitReport> {
    check(source, config)?;
    let mut transfer = Transfer::new(source.tensors(), parameters);
    match source.config.family {
        VisionFamily::Clip => {
            transfer.copy(PATCHES, "model.patch_embed.proj.weight")?;
            let positions = transfer.take(POSITIONS)?;
            transfer.put("model.pre_pos_embed", &grid_positions(source, config, &positions)?)?;
            transfer.copy_layer("vision_model.pre_layrnorm", "model.pre_norm", true)?;
        }
        VisionFamily::Siglip => copy_siglip_patches(&mut transfer, source, config)?,
    }
    for layer in 0..config.pre_decoder.num_hidden_layers {
        copy_layer(&mut transfer, config.pre_decoder.mlp, layer)?;
    }
    // Patch states already resemble the features of a teacher that is the same CLIP.
    let unchanged = Tensor::eye(config.pre_decoder.hidden_size, DType::F32, &Device::Cpu)?;
    transfer.start_head("distillation.vision.proj", &unchanged)?;
    Ok(transfer.finish())
}

/// Copies a patch projection with bias, for pixels that are normalised as for CLIP.
fn copy_siglip_patches(transfer: &mut Transfer<'_>, source: &ClipSource, config: &HaploVlConfig) -> Result<()> {
    let (weight, bias) = PixelNorm::siglip_of_clip().fold(&transfer.take(PATCHES)?)?;
    transfer.put("model.patch_embed.proj.weight", &weight)?;
    let bias = (bias + transfer.take("vision_model.embeddings.patch_embedding.bias")?)?;
    let positions = transfer.take(POSITIONS)?.broadcast_add(&bias)?;
    transfer.put("model.pre_pos_embed", &grid_positions(source, config, &positions)?)
}

fn check(source: &ClipSource, config: &HaploVlConfig) -> Result<()> {
    let mut checks = Compatibility::of("pre_decoder", &config.pre_decoder, &source.config.decoder);
    if config.vision.patch_size != source.config.patch_size {
        checks.problem(format!("vision.patch_size is {}, not {}", config.vision.patch_size, source.config.patch_size));
    }
    checks.finish(&source.tensors.path().display().to_string())
}

fn copy_layer(transfer: &mut Transfer<'_>, mlp: MlpKind, layer: usize) -> Result<()> {
    let from = |name: &str| format!("vision_model.encoder.layers.{layer}.{name}");
    let to = |name: &str| format!("model.layers.{layer}.{name}");
    for (theirs, ours) in [
        ("layer_norm1", "input_layernorm"),
        ("self_attn.q_proj", "self_attn.q_proj"),
        ("self_attn.k_proj", "self_attn.k_proj"),
        ("self_attn.v_proj", "self_attn.v_proj"),
        ("self_attn.out_proj", "self_attn.o_proj"),
        ("layer_norm2", "post_attention_layernorm"),
    ] {
        transfer.copy_layer(&from(theirs), &to(ours), true)?;
    }
    let (first, second) = match mlp {
        MlpKind::Plain => ("mlp.fc1", "mlp.fc2"),
        MlpKind::Gated => ("mlp.gate_proj", "mlp.down_proj"),
    };
    transfer.copy_layer(&from("mlp.fc1"), &to(first), true)?;
    transfer.copy_layer(&from("mlp.fc2"), &to(second), true)?;
    if mlp == MlpKind::Gated {
        transfer.fill(&to("mlp.up_proj.weight"), 0.0)?;
        transfer.fill(&to("mlp.up_proj.bias"), 1.0)?;
    }
    Ok(())
}

/// The position table `[n * n, width]`, for a CLIP with the class token before it, converted to HaploVL's `[1, m * m, width]`.
fn grid_positions(source: &ClipSource, config: &HaploVlConfig, table: &Tensor) -> Result<Tensor> {
    let (theirs, ours) = (source.config.patches_per_side(), config.vision.patches_per_side());
    let width = source.config.decoder.hidden_size;
    let class = source.config.class_tokens();
    let expected = [theirs.saturating_mul(theirs).saturating_add(class), width];
    if table.dims() != expected {
        return Err(Error::weights(format!(
            "{}: the position embedding is {:?}, but the configuration says {expected:?}",
            source.tensors.path().display(),
            table.dims()
        )));
    }
    let grid = table.narrow(0, class, theirs * theirs)?.reshape((theirs, theirs, width))?;
    Ok(resample_grid(&grid, ours)?.reshape((1, ours * ours, width))?)
}
