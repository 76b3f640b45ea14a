//! Embeddings: one vector for a text or an image.

use super::LoadedModel;
use crate::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence, Visual};
use crate::processor::Content;
use crate::{Error, Result};

/// An embedder: the mean of the pre-decoder's hidden states over a text, an image or a video, alone and without the chat
/// template, scaled to length 1. Clones share the model.
///
/// The pre-decoder is distilled from a vision transformer and a table of text embeddings, not trained to bring texts
/// close to the images they describe: compare texts with texts and images with images.
///
#[cfg_attr(feature = "builtin", doc = "```")]
#[cfg_attr(not(feature = "builtin"), doc = "```no_run")]
/// use haplovl::pipeline::Embedder;
/// use haplovl::prelude::*;
///
/// # fn main() -> haplovl::Result<()> {
/// let embedder = Embedder::new(&LoadedModel::load(&ModelSource::Builtin, LoadOptions::default())?);
/// let embedding = embedder.embed(&"a large red ring".into())?;
/// assert_eq!(embedding.tokens, 4);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Embedder {
    model: LoadedModel,
}

/// The embedding of a text or an image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embedding {
    /// Vector of length 1 and of the pre-decoder's width.
    pub vector: Vec<f32>,
    /// Number of tokens that it is the mean of.
    pub tokens: usize,
}

impl Embedder {
    /// An embedder over a model.
    pub fn new(model: &LoadedModel) -> Self {
        Self { model: model.clone() }
    }

    /// The embedding of a text, an image or a video.
    ///
    /// # Errors
    /// [`Error::Prompt`] for a text without tokens or one that exceeds the model's context, the errors of the processor,
    /// and [`Error::Weights`] if the hidden states are not finite.
    pub fn embed(&self, content: &Content) -> Result<Embedding> {
        let model = self.model.model();
        let sequence = self.sequence(content)?;
        let batch =
            MultimodalBatch::new(&[sequence], BatchSpec::new(model.config()), PaddingSide::Left, model.device())?;
        let states = model.front().hidden_states(&batch)?;
        let mean = states.squeeze(0)?.to_dtype(candle_core::DType::F32)?.mean(0)?.to_vec1::<f32>()?;
        Ok(Embedding { vector: of_length_one(mean)?, tokens: batch.layout.seq_len })
    }

    fn sequence(&self, content: &Content) -> Result<Sequence> {
        let processor = self.model.processor();
        match content {
            Content::Text(text) => processor.text_sequence(text),
            Content::Image(image) => self.visual(processor.images().process(image)?),
            Content::Video(frames) => self.visual(processor.videos().process(frames)?),
        }
    }

    /// The placeholders of an image or a video.
    fn visual(&self, visual: Visual) -> Result<Sequence> {
        let config = self.model.model().config();
        let id = visual.placeholder(config.image_token_index, config.video_token_index);
        let input_ids = vec![id; visual.tokens(&config.vision)?];
        Ok(Sequence { input_ids, labels: None, visuals: vec![visual] })
    }
}

fn of_length_one(vector: Vec<f32>) -> Result<Vec<f32>> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() {
        return Err(Error::weights(
            "the pre-decoder's hidden states are not finite: check that the model's weights are complete and finite, and \
             if they are f16 or bf16, load them in f32",
        ));
    }
    // A vector of zeros stays one.
    let length = length.max(f64::MIN_POSITIVE);
    Ok(vector.into_iter().map(|value| (f64::from(value) / length) as f32).collect())
}
