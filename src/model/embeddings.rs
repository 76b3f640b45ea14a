//! One sequence of embeddings from token ids and raw pixels.

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};

use super::packing::Packing;
use crate::batch::MultimodalBatch;
use crate::config::{HaploVlConfig, TextEmbedding, VisionConfig};
use crate::nn::{INIT_STD, Linear, ops};
use crate::{Error, Result};

/// Text table, patch projection, patch positions and the newline token.
#[derive(Debug, Clone)]
pub struct MultimodalEmbeddings {
    embed_tokens: Tensor,
    /// From the table's width to the pre-decoder's; only in the projected form.
    embed_proj: Option<Linear>,
    /// (hidden_size, 3, patch_size, patch_size).
    patch_embed: Tensor,
    /// (1, patches of a tile, hidden_size).
    pre_pos_embed: Tensor,
    image_newline: Option<Tensor>,
    config: VisionConfig,
}

impl MultimodalEmbeddings {
    /// Reads `model.embed_tokens`, `model.embed_proj` (projected form only), `model.patch_embed.proj`,
    /// `model.pre_pos_embed` and `model.image_newline`; `vb` is the root of the checkpoint.
    ///
    /// # Errors
    /// If the store lacks a tensor, or one has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("model");
        let init = Init::Randn { mean: 0.0, stdev: INIT_STD };
        let (hidden, patch) = (config.pre_decoder.hidden_size, config.vision.patch_size);
        let embedding_size = config.embedding_size();
        let embed_proj = match config.text_embedding {
            TextEmbedding::Direct => None,
            TextEmbedding::Projected => Some(Linear::new(embedding_size, hidden, false, vb.pp("embed_proj"))?),
        };
        let newline = || vb.get_with_hints(hidden, "image_newline", init);
        Ok(Self {
            embed_tokens: vb.get_with_hints((config.vocab_size, embedding_size), "embed_tokens.weight", init)?,
            embed_proj,
            patch_embed: vb.get_with_hints((hidden, 3, patch, patch), "patch_embed.proj.weight", init)?,
            pre_pos_embed: vb.get_with_hints((1, config.vision.patches_per_tile(), hidden), "pre_pos_embed", init)?,
            image_newline: config.vision.image_newline.then(newline).transpose()?,
            config: config.vision.clone(),
        })
    }

    /// The text embedding table, (vocab_size, embedding width).
    pub fn embed_tokens(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// The device of the parameters.
    pub fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    /// Token ids (batch, seq), u32, to embeddings (batch, seq, hidden_size), as if all were text.
    ///
    /// # Errors
    /// [`Error::Batch`] for an id outside the table.
    pub fn text(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (batch, seq) = input_ids.dims2()?;
        let ids = input_ids.flatten_all()?;
        self.check_ids(&ids)?;
        let rows = self.embed_tokens.index_select(&ids, 0)?;
        let rows = match &self.embed_proj {
            Some(proj) => proj.forward(&rows)?,
            None => rows,
        };
        Ok(rows.reshape((batch, seq, ()))?)
    }

    /// Pixels (tiles, 3, image_size, image_size) to patches with positions, (tiles, patches of a tile, hidden_size).
    ///
    /// # Errors
    /// If the pixels have another shape.
    pub fn patches(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (side, patch) = (self.config.patches_per_side(), self.config.patch_size);
        let tiles = pixel_values.dim(0)?;
        let patches = pixel_values
            .to_dtype(self.patch_embed.dtype())?
            .reshape(&[tiles, 3, side, patch, side, patch][..])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((tiles, side * side, 3 * patch * patch))?;
        let weight = self.patch_embed.flatten_from(1)?;
        Ok(ops::linear(&patches, &weight, None)?.broadcast_add(&self.pre_pos_embed)?)
    }

    /// The whole batch: (batch, seq, hidden_size), each picture's placeholders replaced by its patches and newlines.
    ///
    /// # Errors
    /// [`Error::Batch`] for an id outside the table, or pictures that do not fit their places.
    pub fn forward(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        let text = self.text(&batch.input_ids)?;
        let packing = Packing::new(batch, &self.config)?;
        if packing.tiles == 0 {
            return Ok(text);
        }
        let (rows, seq, hidden) = text.dims3()?;
        let pixels: Vec<&Tensor> = batch.visuals.iter().map(|v| v.pixel_values()).collect();
        let patches = self.patches(&Tensor::cat(&pixels, 0)?)?.flatten_to(1)?;
        let mut sources = vec![text.flatten_to(1)?, patches.clone()];
        if let Some(newline) = &self.image_newline {
            sources.push(newline.unsqueeze(0)?);
        }
        if !packing.shrunk.is_empty() {
            sources.push(shrink(&patches, &packing.shrunk)?);
        }
        let index = Tensor::from_vec(packing.index, rows * seq, text.device())?;
        Ok(Tensor::cat(&sources, 0)?.index_select(&index, 0)?.reshape((rows, seq, hidden))?)
    }

    /// Checked on the CPU only: elsewhere it would cost a transfer, and the processor has seen every id anyway.
    fn check_ids(&self, ids: &Tensor) -> Result<()> {
        if !ids.device().is_cpu() {
            return Ok(());
        }
        let vocab_size = self.embed_tokens.dim(0)?;
        match ids.to_vec1::<u32>()?.into_iter().find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(Error::Batch(format!("token id {id} is outside the model's table of {vocab_size}"))),
            None => Ok(()),
        }
    }
}

/// Weighted sums of four patches each. candle's bilinear resize has no backward pass.
fn shrink(patches: &Tensor, corners: &[[(u32, f32); 4]]) -> Result<Tensor> {
    let corner = |k: usize| -> Result<Tensor> {
        let index: Vec<u32> = corners.iter().map(|c| c[k].0).collect();
        let weights: Vec<f32> = corners.iter().map(|c| c[k].1).collect();
        let index = Tensor::from_vec(index, corners.len(), patches.device())?;
        let weights = Tensor::from_vec(weights, (corners.len(), 1), patches.device())?.to_dtype(patches.dtype())?;
        Ok(patches.index_select(&index, 0)?.broadcast_mul(&weights)?)
    };
    Ok((((corner(0)? + corner(1)?)? + corner(2)?)? + corner(3)?)?)
}
