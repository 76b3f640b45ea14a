//! Parameters and floating-point operations of a design, from the shapes of its tensors.

use std::collections::BTreeMap;

use anyhow::Result;
use haplovl::config::{DecoderConfig, HaploVlConfig, ImageAttention};
use haplovl::model::{ClipVision, HaploVl};
use haplovl::weights::ParameterShapes;

use super::model::{ModelKind, teacher_config};

/// The formula, for the table of costs.
pub const FORMULA: &str = "FLOPs = 2 (positions x weights of each matrix) + 4 (layers x heads x head width x pairs of \
                           query and key), without norms and activations";
/// Text tokens of a question with its chat template.
pub const QUESTION_TOKENS: usize = 16;
/// Largest relative difference between designs that are compared.
const TOLERANCE: f64 = 0.05;

/// Parameters and operations of one design.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// All parameters at inference, frozen ones included, without heads that are dropped.
    pub parameters: usize,
    /// Frozen parameters among them.
    pub frozen: usize,
    patches: usize,
    attention: [Attention; 3],
    /// Weights that every patch, every text token, every token, and every position of the teacher passes.
    weights: Weights,
}

/// Weights by the positions that pass them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Weights {
    patch: usize,
    text: usize,
    token: usize,
    teacher_patch: usize,
    teacher: usize,
    last: usize,
}

/// Attention layers of one decoder.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Attention {
    /// Layers times width of all heads.
    width: usize,
    is_causal: bool,
}

/// Operations of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// Of what is trained in stage 2.
    pub trained: f64,
    /// Of a frozen vision teacher.
    pub frozen: f64,
}

impl Flops {
    /// Of the whole forward pass.
    pub fn forward(self) -> f64 {
        self.trained + self.frozen
    }

    /// Of forward and backward pass: twice the forward pass again for what is trained.
    pub fn training(self) -> f64 {
        3.0 * self.trained + self.frozen
    }
}

impl Cost {
    /// Counts a design of this configuration.
    pub fn of(kind: ModelKind, config: &HaploVlConfig) -> Result<Self> {
        let mut shapes = shapes_of(kind, config)?;
        let decoder = |d: &DecoderConfig, attention| Attention {
            width: d.num_hidden_layers * d.attention_size(),
            is_causal: attention == ImageAttention::Causal,
        };
        let post = decoder(&config.post_decoder, config.image_attention);
        let pre = decoder(&config.pre_decoder, config.image_attention);
        let none = Attention::default();
        let (attention, teacher) = match kind {
            ModelKind::Haplovl => ([pre, post, none], BTreeMap::new()),
            ModelKind::Llava => ([none, post, pre], teacher_shapes(config)?),
            ModelKind::Eve | ModelKind::EvePlain => ([none, post, none], BTreeMap::new()),
        };
        let size = |shapes: &BTreeMap<String, Vec<usize>>| shapes.values().map(|s| s.iter().product::<usize>()).sum();
        let frozen = size(&teacher);
        shapes.extend(teacher);
        let patches = config.vision.patches_per_tile();
        Ok(Self { parameters: size(&shapes), frozen, patches, attention, weights: Weights::of(&shapes) })
    }

    /// Operations of an image and a text of so many tokens.
    pub fn flops(&self, text: f64) -> Flops {
        let (patches, w) = (self.patches as f64, &self.weights);
        let (tokens, teacher) = (patches + text, patches + 1.0);
        let matrices = patches * w.patch as f64 + text * w.text as f64 + tokens * w.token as f64 + w.last as f64;
        let [pre, post, vision] = self.attention;
        // A query sees itself and what is before it, and a patch sees the later patches too.
        let pairs = |attention: Attention| {
            let later = if attention.is_causal { 0.0 } else { patches * (patches - 1.0) / 2.0 };
            attention.width as f64 * (tokens * (tokens + 1.0) / 2.0 + later)
        };
        let frozen = patches * w.teacher_patch as f64 + teacher * w.teacher as f64;
        Flops {
            trained: 2.0 * matrices + 4.0 * (pairs(pre) + pairs(post)),
            frozen: 2.0 * frozen + 4.0 * vision.width as f64 * teacher * teacher,
        }
    }

    /// Operations to read an image and a question, up to the first token of the answer.
    pub fn question(&self) -> f64 {
        self.flops(QUESTION_TOKENS as f64).forward()
    }

    /// Checks that this design costs as much as another one.
    pub fn check_equal(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        let pairs = [
            ("parameters", self.parameters as f64, other.parameters as f64),
            ("FLOPs of a question", self.question(), other.question()),
        ];
        for (what, own, wanted) in pairs {
            let ratio = own / wanted;
            anyhow::ensure!(
                (ratio - 1.0).abs() <= TOLERANCE,
                "design {name} has {own:.4e} {what}, {:+.1} % of those of {other_name}, expected at most 5 % more or \
                 less: change the sizes in config.json or plan.toml",
                100.0 * (ratio - 1.0)
            );
        }
        Ok(())
    }
}

/// Names and shapes of the tensors at inference, without a frozen teacher.
fn shapes_of(kind: ModelKind, config: &HaploVlConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    if kind == ModelKind::Haplovl {
        return Ok(HaploVl::parameter_shapes(config)?);
    }
    let recorded = ParameterShapes::default();
    kind.baseline(config, None, recorded.var_builder())?;
    Ok(recorded.shapes())
}

/// Names and shapes of the tensors of the vision teacher that its features need.
fn teacher_shapes(config: &HaploVlConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    let recorded = ParameterShapes::default();
    ClipVision::new(&teacher_config(config), recorded.var_builder())?;
    let mut shapes = recorded.shapes();
    shapes.retain(|name, _| !name.contains("post_layernorm"));
    Ok(shapes)
}

impl Weights {
    fn of(shapes: &BTreeMap<String, Vec<usize>>) -> Self {
        let mut weights = Self::default();
        for (name, shape) in shapes.iter().filter(|(_, shape)| shape.len() > 1) {
            let has = |part: &str| name.contains(part);
            let place = match name.as_str() {
                // Tables are looked up or added, not multiplied.
                _ if has("embed_tokens") || has("pos_embed") || has("position_embedding") => continue,
                _ if has("vision_model.encoder") => &mut weights.teacher,
                _ if has("vision_model.") => &mut weights.teacher_patch,
                _ if has("patch_embed") || has("mm_projector") => &mut weights.patch,
                _ if has("embed_proj") => &mut weights.text,
                _ if has("lm_head") => &mut weights.last,
                _ => &mut weights.token,
            };
            *place += shape.iter().product::<usize>();
        }
        weights
    }
}
