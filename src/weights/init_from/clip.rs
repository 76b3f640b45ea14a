//! Initialisation of the pre-decoder and the patch embedding from a CLIP vision transformer.

use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::InitReport;
use super::check::Compatibility;
use super::config_file::read_config;
use super::resample::resample_grid;
use super::transfer::Transfer;
use crate::config::{Activation, DecoderConfig, HaploVlConfig, MlpKind, NormKind, Rope, from_value};
use crate::weights::{Parameters, SafetensorsFiles};
use crate::{Error, Result};

/// Largest image side in pixels, the limit of HaploVL's own tiles.
const MAX_IMAGE_SIZE: usize = 1 << 14;

/// Configuration of a CLIP vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Configuration of its layers, as a decoder without RoPE.
    pub decoder: DecoderConfig,
    /// Side of its input images, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
}

/// The fields of HF's configuration that are used, with HF's defaults for absent fields.
#[derive(Deserialize)]
#[serde(default)]
struct HfConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
    image_size: usize,
    patch_size: usize,
    num_channels: usize,
}

impl Default for HfConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            image_size: 224,
            patch_size: 32,
            num_channels: 3,
        }
    }
}

impl ClipConfig {
    /// Reads HF's configuration of a vision model alone (`clip_vision_model`), or of a whole CLIP with a
    /// `vision_config`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is of the wrong type, out of range or unsupported.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        if !["clip", "clip_vision_model"].contains(&model_type) {
            let message = format!("is `{model_type}`, expected `clip` or `clip_vision_model`");
            return Err(Error::config("model_type", message));
        }
        let vision = config.get("vision_config").unwrap_or(config);
        let hf: HfConfig = from_value("vision_config", "that of a CLIP vision model", vision)?;
        if hf.num_channels != 3 {
            return Err(Error::config("vision_config.num_channels", format!("is {}, expected 3", hf.num_channels)));
        }
        if hf.image_size > MAX_IMAGE_SIZE {
            let message = format!("is {}, expected at most {MAX_IMAGE_SIZE}", hf.image_size);
            return Err(Error::config("vision_config.image_size", message));
        }
        if hf.patch_size == 0 || hf.image_size < hf.patch_size {
            let message = format!("is {}, expected between 1 and image_size = {}", hf.patch_size, hf.image_size);
            return Err(Error::config("vision_config.patch_size", message));
        }
        let clip = Self { decoder: hf.decoder(), image_size: hf.image_size, patch_size: hf.patch_size };
        clip.decoder.validate("vision_config")?;
        Ok(clip)
    }

    /// Patches along one side of an image.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }
}

impl HfConfig {
    fn decoder(&self) -> DecoderConfig {
        DecoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            norm_mode: NormKind::LayerNorm,
            norm_eps: self.layer_norm_eps,
            mlp: MlpKind::Plain,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            rope: Rope::None,
            rope_theta: 10_000.0,
            rope_scaling: None,
        }
    }
}

/// A CLIP vision transformer as a source of weights or a teacher.
#[derive(Debug, Clone)]
pub struct ClipSource {
    config: ClipConfig,
    files: Arc<SafetensorsFiles>,
}

impl ClipSource {
    /// Opens an HF folder: `config.json` and safetensors whose names begin with `vision_model.`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] or [`Error::Config`] naming the part that is missing, damaged or not supported.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config = ClipConfig::from_hf(&read_config(folder)?)?;
        Ok(Self { config, files: Arc::new(SafetensorsFiles::open(folder)?) })
    }

    /// The configuration of the model.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The tensors of the model, by HF name.
    pub fn files(&self) -> &Arc<SafetensorsFiles> {
        &self.files
    }
}

/// Copies a CLIP vision transformer into the patch projection, positions, first norm and pre-decoder of the model that
/// `parameters` belong to.
///
/// A gated pre-decoder reproduces CLIP's plain MLP exactly: `down(act(gate(x)) * up(x))` with `up(x) = 1`. The position
/// embedding of the class token is dropped, and the grid of patch positions is interpolated bicubically if the tile
/// sizes differ.
///
/// # Errors
/// [`Error::Weights`] listing every field of `config` that is incompatible with the CLIP, or naming a missing tensor.
pub fn init_from_clip(source: &ClipSource, config: &HaploVlConfig, parameters: &Parameters) -> Result<InitReport> {
    check(source, config)?;
    let mut transfer = Transfer::new(source.files.as_ref(), parameters);
    transfer.copy("vision_model.embeddings.patch_embedding.weight", "model.patch_embed.proj.weight")?;
    let positions = transfer.take("vision_model.embeddings.position_embedding.weight")?;
    transfer.put("model.pre_pos_embed", &grid_positions(source, config, &positions)?)?;
    transfer.copy_layer("vision_model.pre_layrnorm", "model.pre_norm", true)?;
    for layer in 0..config.pre_decoder.num_hidden_layers {
        copy_layer(&mut transfer, config.pre_decoder.mlp, layer)?;
    }
    Ok(transfer.finish())
}

fn check(source: &ClipSource, config: &HaploVlConfig) -> Result<()> {
    let mut checks = Compatibility::of("pre_decoder", &config.pre_decoder, &source.config.decoder);
    if config.vision.patch_size != source.config.patch_size {
        checks.problem(format!("vision.patch_size is {}, not {}", config.vision.patch_size, source.config.patch_size));
    }
    checks.finish(&source.files.path().display().to_string())
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

/// CLIP's position table `[1 + n * n, width]`, class token first, converted to HaploVL's `[1, m * m, width]`.
fn grid_positions(source: &ClipSource, config: &HaploVlConfig, table: &Tensor) -> Result<Tensor> {
    let (theirs, ours) = (source.config.patches_per_side(), config.vision.patches_per_side());
    let width = source.config.decoder.hidden_size;
    let expected = [theirs.saturating_mul(theirs).saturating_add(1), width];
    if table.dims() != expected {
        return Err(Error::weights(format!(
            "{}: the position embedding is {:?}, but the configuration says {expected:?}",
            source.files.path().display(),
            table.dims()
        )));
    }
    let grid = table.narrow(0, 1, theirs * theirs)?.reshape((theirs, theirs, width))?;
    Ok(resample_grid(&grid, ours)?.reshape((1, ours * ours, width))?)
}
