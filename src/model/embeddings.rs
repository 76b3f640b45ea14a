//! Embeddings: token ids and pixels to one sequence of hidden states.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;

use super::merge_visuals::MergePlan;
use crate::Result;
use crate::batch::MultimodalBatch;
use crate::config::{HaploVlConfig, TextEmbedding, VisionConfig};
use crate::nn::{Linear, ParameterSlot, ParameterVisitor, PatchEmbedding, TokenTable, init};

/// Text embedding table, patch projection, patch positions and newline token.
#[derive(Debug, Clone)]
pub struct MultimodalEmbeddings {
    embed_tokens: TokenTable,
    /// Projection from the table's width to the pre-decoder's width; only with a projected text embedding.
    embed_proj: Option<Linear>,
    patch_embed: PatchEmbedding,
    /// Position embeddings of the patches, (1, patches of a tile, hidden_size).
    pre_pos_embed: Tensor,
    image_newline: Option<Tensor>,
    config: VisionConfig,
}

impl MultimodalEmbeddings {
    /// Reads `model.embed_tokens`, `model.embed_proj` (projected form only), `model.patch_embed.proj`,
    /// `model.pre_pos_embed` and `model.image_newline`; `vb` is the root of the checkpoint.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("model");
        let hidden = config.pre_decoder.hidden_size;
        let embedding_size = config.embedding_size();
        let embed_proj = match config.text_embedding {
            TextEmbedding::Direct => None,
            TextEmbedding::Projected => Some(Linear::new(embedding_size, hidden, false, vb.pp("embed_proj"))?),
        };
        let newline = || vb.get_with_hints(hidden, "image_newline", init(hidden));
        Ok(Self {
            embed_tokens: TokenTable::Tensor(vb.get_with_hints(
                (config.vocab_size, embedding_size),
                "embed_tokens.weight",
                init(embedding_size),
            )?),
            embed_proj,
            patch_embed: PatchEmbedding::new(hidden, config.vision.patch_size, vb.pp("patch_embed.proj"))?,
            pre_pos_embed: vb.get_with_hints(
                (1, config.vision.patches_per_tile(), hidden),
                "pre_pos_embed",
                init(hidden),
            )?,
            image_newline: config.vision.image_newline.then(newline).transpose()?,
            config: config.vision.clone(),
        })
    }

    /// Visits all parameters.
    pub fn visit_parameters(&mut self, visit: &mut ParameterVisitor<'_>) {
        visit("model.embed_tokens.weight", ParameterSlot::Table(&mut self.embed_tokens));
        if let Some(proj) = &mut self.embed_proj {
            visit("model.embed_proj", ParameterSlot::Linear(proj));
        }
        self.patch_embed.visit_parameters("model.patch_embed.proj", visit);
        visit("model.pre_pos_embed", ParameterSlot::Tensor(&mut self.pre_pos_embed));
        if let Some(newline) = &mut self.image_newline {
            visit("model.image_newline", ParameterSlot::Tensor(newline));
        }
    }

    /// Returns the text embedding table, (vocab_size, embedding width).
    pub fn embed_tokens(&self) -> &TokenTable {
        &self.embed_tokens
    }

    /// Returns the device of the parameters.
    pub fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    /// Looks up token ids (batch, seq), u32 -> embeddings (batch, seq, hidden_size); placeholders are looked up like
    /// text.
    ///
    /// # Errors
    /// [`Error::Batch`](crate::Error::Batch) for an id outside the table.
    pub fn text(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (batch, seq) = input_ids.dims2()?;
        let rows = self.embed_tokens.lookup(&input_ids.flatten_all()?)?;
        let rows = match &self.embed_proj {
            Some(proj) => proj.forward(&rows)?,
            None => rows,
        };
        // A frozen table may be kept in fewer bits than the other embeddings.
        Ok(rows.to_dtype(self.pre_pos_embed.dtype())?.reshape((batch, seq, ()))?)
    }

    /// Embeds pixels (tiles, 3, image_size, image_size) -> patches with positions, (tiles, patches of a tile,
    /// hidden_size).
    ///
    /// # Errors
    /// If `pixel_values` has another shape.
    pub fn patches(&self, pixel_values: &Tensor) -> Result<Tensor> {
        Ok(self.patch_embed.forward(pixel_values)?.broadcast_add(&self.pre_pos_embed)?)
    }

    /// Embeds a whole batch -> (batch, seq, hidden_size); each image's placeholders become its patches and newlines.
    ///
    /// # Errors
    /// [`Error::Batch`](crate::Error::Batch) for an id outside the table, or for images that do not match their placeholders.
    pub fn forward(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        batch.validate()?;
        let text = self.text(&batch.input_ids)?;
        if batch.visuals.is_empty() {
            return Ok(text);
        }
        let packing = MergePlan::new(batch, &self.config)?;
        let (rows, seq, hidden) = text.dims3()?;
        let patches = self.patches(&batch.pixel_values()?)?.flatten_to(1)?;
        let mut sources = vec![text.flatten_to(1)?, patches.clone()];
        if let Some(newline) = &self.image_newline {
            sources.push(newline.unsqueeze(0)?);
        }
        sources.extend(packing.shrink(&patches)?);
        let index = Tensor::from_vec(packing.index, rows * seq, text.device())?;
        Ok(Tensor::cat(&sources, 0)?.index_select(&index, 0)?.reshape((rows, seq, hidden))?)
    }
}
