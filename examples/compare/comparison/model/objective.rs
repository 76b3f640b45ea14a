//! Losses of the baselines: next-token prediction, and the alignment of EVE's patches with a vision teacher.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use haplovl::Result;
use haplovl::batch::MultimodalBatch;
use haplovl::config::{NormKind, VisionConfig};
use haplovl::loss::vision_distillation;
use haplovl::model::{ClipTeacher, DistillationHeads, VisionTeacher, patches_in_order};
use haplovl::nn::{Linear, Norm};
use haplovl::train::{Counts, Loss, Objective, labelled_tail, next_token_counts, next_token_loss};

use super::Baseline;

/// Next-token loss of a baseline, and an alignment loss if it has one.
pub struct BaselineObjective {
    model: Baseline,
    alignment: Option<Alignment>,
}

impl BaselineObjective {
    /// The next-token loss alone.
    pub fn new(model: Baseline) -> Self {
        Self { model, alignment: None }
    }

    /// The same with an alignment loss of equal weight, as in EVE: hidden states of patches through a head that is
    /// dropped afterwards, against the features of `teacher`. EVE takes the mean squared error between normalised
    /// features, which is their cosine loss up to a factor; its states come from several layers, these from the last.
    pub fn aligned(model: Baseline, teacher: ClipTeacher, vb: VarBuilder) -> Result<Self> {
        let alignment = Some(Alignment::new(model.config().post_decoder.hidden_size, teacher, vb)?);
        Ok(Self { model, alignment })
    }
}

struct Alignment {
    norm: Norm,
    proj: Linear,
    teacher: ClipTeacher,
}

impl Alignment {
    /// Reads `distillation.vision.{norm,proj}`, as the head of a HaploVL's stage 1.
    fn new(width: usize, teacher: ClipTeacher, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp(DistillationHeads::PREFIX).pp("vision");
        let norm = Norm::new(NormKind::LayerNorm, width, 1e-5, vb.pp("norm"))?;
        Ok(Self { norm, proj: Linear::new(width, teacher.width(), true, vb.pp("proj"))?, teacher })
    }

    /// Mean loss over the patches of a step of `patches`; `hidden` is (batch * seq, width).
    fn loss(&self, batch: &MultimodalBatch, vision: &VisionConfig, hidden: &Tensor, patches: usize) -> Result<Tensor> {
        let features = self.teacher.features(&batch.pixel_values()?)?.flatten_to(1)?;
        let (positions, features) = patches_in_order(batch, vision, &features)?;
        let positions = Tensor::new(positions, hidden.device())?;
        let student = self.proj.forward(&self.norm.forward(&hidden.index_select(&positions, 0)?)?)?;
        Ok((vision_distillation(&student, &features)?.sum / patches.max(1) as f64)?)
    }
}

impl Objective for BaselineObjective {
    fn name(&self) -> &'static str {
        "baseline"
    }

    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts> {
        let vision = &self.model.config().vision;
        let patches = batch.visuals.iter().map(|visual| visual.patches(vision)).sum::<Result<_>>()?;
        Ok(Counts { patches, ..next_token_counts(batch)? })
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss> {
        let labels = batch.next_token_labels()?;
        let alignment = self.alignment.as_ref().filter(|_| !batch.visuals.is_empty());
        let tail = alignment.is_none().then(|| labelled_tail(&labels, batch.layout.seq_len));
        let hidden = self.model.hidden_states(batch, tail)?;
        let answers = next_token_loss(&hidden, self.model.lm_head(), &labels, step)?;
        let Some(alignment) = alignment else { return Ok(answers) };
        let vision = &self.model.config().vision;
        let aligned = alignment.loss(batch, vision, &hidden.flatten_to(1)?, step.patches)?;
        let part = |loss: &Tensor| -> Result<f64> { Ok(f64::from(loss.to_scalar::<f32>()?)) };
        let parts = vec![("answers", part(&answers.total)?), ("alignment", part(&aligned)?)];
        Ok(Loss { total: (answers.total + aligned)?, parts })
    }

    fn may_lack_gradient(&self, parameter: &str, step: &Counts) -> bool {
        let of_images = ["model.mm_projector.", "model.patch_embed.", "model.pre_pos_embed", DistillationHeads::PREFIX];
        step.visuals == 0 && of_images.iter().any(|prefix| parameter.starts_with(prefix))
    }
}
