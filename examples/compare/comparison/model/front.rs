//! What makes embeddings of patches from pixels.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use haplovl::config::{Activation, HaploVlConfig};
use haplovl::model::{ClipTeacher, VisionTeacher};
use haplovl::nn::{Linear, PatchEmbedding, ops};
use haplovl::{Error, Result};

/// Pixels (tiles, 3, side, side) to patches (tiles, patches of a tile, width of the language model).
#[allow(clippy::large_enum_variant, reason = "a model has one of them")]
pub enum Front {
    /// A frozen teacher and an MLP of two layers.
    Llava { teacher: Option<ClipTeacher>, mlp: [Linear; 2] },
    /// A linear patch layer, and an embedding of each place.
    Eve { patch_embed: PatchEmbedding, pre_pos_embed: Tensor },
}

/// Width between the two layers of LLaVA's MLP: twice the language model's, so that the designs cost the same.
fn mlp_width(config: &HaploVlConfig) -> usize {
    2 * config.post_decoder.hidden_size
}

impl Front {
    /// Reads `model.mm_projector.{0,2}`, as LLaVA calls them.
    pub fn llava(config: &HaploVlConfig, teacher: Option<ClipTeacher>, vb: VarBuilder) -> Result<Self> {
        let (from, inner, to) = (config.pre_decoder.hidden_size, mlp_width(config), config.post_decoder.hidden_size);
        let vb = vb.pp("model.mm_projector");
        let mlp = [Linear::new(from, inner, true, vb.pp("0"))?, Linear::new(inner, to, true, vb.pp("2"))?];
        Ok(Self::Llava { teacher, mlp })
    }

    /// Reads `model.patch_embed.proj` and `model.pre_pos_embed`, as a HaploVL calls them.
    pub fn eve(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        let (vb, width) = (vb.pp("model"), config.post_decoder.hidden_size);
        let positions = (1, config.vision.patches_per_tile(), width);
        let init = Init::Randn { mean: 0.0, stdev: 1.0 / (width as f64).sqrt() };
        Ok(Self::Eve {
            patch_embed: PatchEmbedding::new(width, config.vision.patch_size, vb.pp("patch_embed.proj"))?,
            pre_pos_embed: vb.get_with_hints(positions, "pre_pos_embed", init)?,
        })
    }

    /// Embeds pixels.
    pub fn patches(&self, pixel_values: &Tensor) -> Result<Tensor> {
        match self {
            Self::Llava { teacher: None, .. } => Err(Error::config("model", "is a LLaVA without its vision teacher")),
            Self::Llava { teacher: Some(teacher), mlp: [first, second] } => {
                let inner = ops::activation(&first.forward(&teacher.features(pixel_values)?)?, Activation::Gelu)?;
                second.forward(&inner)
            }
            Self::Eve { patch_embed, pre_pos_embed } => {
                Ok(patch_embed.forward(pixel_values)?.broadcast_add(pre_pos_embed)?)
            }
        }
    }
}
