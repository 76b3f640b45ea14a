//! Configuration of a vision transformer, read from HF's `config.json`.

use serde::Deserialize;
use serde_json::Value;

use crate::config::{Activation, DecoderConfig, MlpKind, NormKind, Rope, from_value};
use crate::{Error, Result};

/// Largest image side in pixels, the limit of HaploVL's own tiles.
const MAX_IMAGE_SIZE: usize = 1 << 14;

/// Kind of a vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VisionFamily {
    /// CLIP: a class token before the patches, and a layer norm before the first layer.
    Clip,
    /// SigLIP: patches alone, whose projection has a bias. Its pooling head is not used.
    ///
    /// Without a class token there is no summary of the image: only patch features can be learnt from it. Its pixels are
    /// normalised with mean and standard deviation 0.5, not with those of CLIP; teachers and initialisation convert.
    Siglip,
}

/// Configuration of a CLIP or SigLIP vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The kind of the model.
    pub family: VisionFamily,
    /// Configuration of its layers, as a decoder without RoPE.
    pub decoder: DecoderConfig,
    /// Side of its input images, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
}

/// The fields of HF's configuration that are used; absent fields have the default of the family in HF.
#[derive(Deserialize)]
struct HfConfig {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<Activation>,
    layer_norm_eps: Option<f64>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    num_channels: Option<usize>,
}

impl ClipConfig {
    /// Reads HF's configuration of a vision model alone (`clip_vision_model`, `siglip_vision_model`), or of a whole CLIP,
    /// SigLIP or vision-language model with such a `vision_config`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is of the wrong type, out of range or unsupported.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let vision = config.get("vision_config").unwrap_or(config);
        let family = family(config, vision)?;
        let hf: HfConfig = from_value("vision_config", "that of a CLIP or SigLIP vision model", vision)?;
        if let Some(channels) = hf.num_channels.filter(|channels| *channels != 3) {
            return Err(Error::config("vision_config.num_channels", format!("is {channels}, expected 3")));
        }
        let is_clip = family == VisionFamily::Clip;
        let image_size = hf.image_size.unwrap_or(224);
        let patch_size = hf.patch_size.unwrap_or(if is_clip { 32 } else { 16 });
        if image_size > MAX_IMAGE_SIZE {
            let message = format!("is {image_size}, expected at most {MAX_IMAGE_SIZE}");
            return Err(Error::config("vision_config.image_size", message));
        }
        if patch_size == 0 || image_size < patch_size {
            let message = format!("is {patch_size}, expected between 1 and image_size = {image_size}");
            return Err(Error::config("vision_config.patch_size", message));
        }
        let clip = Self { family, decoder: hf.decoder(is_clip), image_size, patch_size };
        clip.decoder.validate("vision_config")?;
        Ok(clip)
    }

    /// Patches along one side of an image.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Side of the square that whole patches cover, in pixels; at most `image_size`.
    pub fn side_of_patches(&self) -> usize {
        self.patches_per_side() * self.patch_size
    }

    /// Tokens before the patches.
    pub fn class_tokens(&self) -> usize {
        usize::from(self.family == VisionFamily::Clip)
    }
}

/// The family, by the `model_type` of the vision half, or of the whole where the half has none.
fn family(config: &Value, vision: &Value) -> Result<VisionFamily> {
    let model_type = |value: &Value| value.get("model_type").and_then(Value::as_str).unwrap_or_default().to_string();
    let (whole, half) = (model_type(config), model_type(vision));
    let found = if half.is_empty() { &whole } else { &half };
    match found.as_str() {
        "clip" | "clip_vision_model" => Ok(VisionFamily::Clip),
        "siglip" | "siglip_vision_model" => Ok(VisionFamily::Siglip),
        "haplo" | "haplovl" => {
            Err(Error::config("model_type", "is that of a HaploVL, which has no CLIP: give it as `init_from.stage`"))
        }
        other => {
            let expected = "`clip`, `clip_vision_model`, `siglip` or `siglip_vision_model`";
            Err(Error::config("model_type", format!("is `{other}`, expected {expected}")))
        }
    }
}

impl HfConfig {
    fn decoder(&self, is_clip: bool) -> DecoderConfig {
        let num_attention_heads = self.num_attention_heads.unwrap_or(12);
        let (hidden_act, norm_eps) =
            if is_clip { (Activation::QuickGelu, 1e-5) } else { (Activation::GeluPytorchTanh, 1e-6) };
        DecoderConfig {
            hidden_size: self.hidden_size.unwrap_or(768),
            intermediate_size: self.intermediate_size.unwrap_or(3072),
            num_hidden_layers: self.num_hidden_layers.unwrap_or(12),
            num_attention_heads,
            num_key_value_heads: num_attention_heads,
            head_dim: None,
            qk_norm: false,
            hidden_act: self.hidden_act.unwrap_or(hidden_act),
            norm_mode: NormKind::LayerNorm,
            norm_eps: self.layer_norm_eps.unwrap_or(norm_eps),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn families_and_their_defaults() {
        let siglip = json!({"model_type": "siglip", "vision_config": {"hidden_size": 384}});
        let siglip = ClipConfig::from_hf(&siglip).unwrap();
        assert_eq!((siglip.family, siglip.patch_size, siglip.class_tokens()), (VisionFamily::Siglip, 16, 0));
        assert_eq!((siglip.decoder.hidden_act, siglip.decoder.norm_eps), (Activation::GeluPytorchTanh, 1e-6));
        let llava =
            json!({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model", "patch_size": 14}});
        let llava = ClipConfig::from_hf(&llava).unwrap();
        assert_eq!((llava.family, llava.patch_size, llava.class_tokens()), (VisionFamily::Clip, 14, 1));
        for (config, part) in
            [(json!({"model_type": "dinov2"}), "dinov2"), (json!({"model_type": "haplo"}), "init_from.stage")]
        {
            let message = ClipConfig::from_hf(&config).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
