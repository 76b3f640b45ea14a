//! Projection heads of stage 1: they map pre-decoder states to teacher features, and are dropped after the stage.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::Result;
use crate::config::NormKind;
use crate::nn::{Linear, LogitScale, Norm};

/// Projections from the pre-decoder's width to the width of the vision teacher and of the language model.
#[derive(Debug, Clone)]
pub struct DistillationHeads {
    vision: Head,
    text: Head,
    /// Scale of the token logits.
    logit_scale: LogitScale,
}

/// Layer norm followed by a linear projection.
#[derive(Debug, Clone)]
struct Head {
    norm: Norm,
    proj: Linear,
}

impl Head {
    fn new(from: usize, to: usize, vb: VarBuilder) -> Result<Self> {
        let norm = Norm::new(NormKind::LayerNorm, from, 1e-5, vb.pp("norm"))?;
        Ok(Self { norm, proj: Linear::new(from, to, true, vb.pp("proj"))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.proj.forward(&self.norm.forward(x)?)
    }
}

impl DistillationHeads {
    /// Prefix of all parameters of the heads.
    pub const PREFIX: &str = "distillation";

    /// Reads `distillation.{vision,text}.{norm,proj}` and `distillation.logit_scale`; `vb` is the root of the
    /// checkpoint.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(hidden_size: usize, vision_width: usize, text_width: usize, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp(Self::PREFIX);
        Ok(Self {
            vision: Head::new(hidden_size, vision_width, vb.pp("vision"))?,
            text: Head::new(hidden_size, text_width, vb.pp("text"))?,
            logit_scale: LogitScale::new(vb)?,
        })
    }

    /// Projects (patches, hidden_size) -> (patches, vision teacher's width).
    ///
    /// # Errors
    /// If `x` has another width.
    pub fn vision(&self, x: &Tensor) -> Result<Tensor> {
        self.vision.forward(x)
    }

    /// Projects (tokens, hidden_size) -> (tokens, language model's width).
    ///
    /// # Errors
    /// If `x` has another width.
    pub fn text(&self, x: &Tensor) -> Result<Tensor> {
        self.text.forward(x)
    }

    /// Computes the scale of the token logits, `min(exp(s), 100)`: one element, f32.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn logit_scale(&self) -> Result<Tensor> {
        self.logit_scale.value()
    }
}
