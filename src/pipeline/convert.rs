//! Model folders from other model folders: quantised, merged with an adapter, or new with random weights.

use std::path::Path;

use candle_core::DType;

use super::loaded_model::{open, own_vocabulary};
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::model::{Adapter, HaploVl, MergedSource, save_pretrained_from, save_quantized};
use crate::options::Quantization;
use crate::train::adopt_processor;
use crate::weights::SaveOptions;
use crate::{Result, files};

/// Writes a quantised copy of a model folder to the folder `output`, which is created and must not be in use; see
/// [`save_quantized`].
///
/// # Errors
/// The errors of [`check_new_folder`](crate::weights::check_new_folder), [`LoadedModel::from_folder`](super::LoadedModel::from_folder) and [`save_quantized`], and [`Error::Weights`](crate::Error::Weights)
/// naming the first tensor that holds NaN or infinity.
pub fn quantize_folder(folder: impl AsRef<Path>, output: impl AsRef<Path>, kind: Quantization) -> Result<()> {
    files::check_new_folder(&output)?;
    let (config, processor, generation, weights) = open(folder.as_ref())?;
    save_quantized(output.as_ref(), &config, &*weights, kind, &processor, &generation)
}

/// Writes the model of a folder with an adapter merged into its weights to the folder `output`, which is created and must
/// not be in use: as safetensors in the dtypes of the model, or quantised. Tensors are merged and written one at a time.
///
/// # Errors
/// The errors of [`check_new_folder`](crate::weights::check_new_folder), [`LoadedModel::from_folder`](super::LoadedModel::from_folder), [`Adapter::open`],
/// [`MergedSource::new`], [`save_pretrained_from`] and [`save_quantized`].
pub fn merge_folder(
    folder: impl AsRef<Path>,
    adapter: impl AsRef<Path>,
    output: impl AsRef<Path>,
    kind: Option<Quantization>,
) -> Result<()> {
    files::check_new_folder(&output)?;
    let (config, processor, generation, weights) = open(folder.as_ref())?;
    let own = own_vocabulary(adapter.as_ref())?;
    let (config, processor, generation) = own.unwrap_or((config, processor, generation));
    let merged = MergedSource::new(weights, Adapter::open(adapter, &config)?)?;
    match kind {
        Some(kind) => save_quantized(output.as_ref(), &config, &merged, kind, &processor, &generation),
        None => save_pretrained_from(output, &config, &merged, &processor, &generation, &SaveOptions::default()),
    }
}

/// Writes a model with the initial values of a seed to the folder `output`, which is created and must not be in use: in bf16 as
/// safetensors, or quantised. The values are drawn as they are written, so that a model of any size takes little memory.
///
/// Tokenizer, chat template and placeholders are those of the folder `tokenizer`, and the ids in the configuration follow
/// them. The model talks nonsense; it is there to measure speed and memory.
///
/// # Errors
/// The errors of [`check_new_folder`](crate::weights::check_new_folder), of the files of `tokenizer`,
/// [`save_pretrained_from`] and [`save_quantized`].
pub fn random_folder(
    config: &HaploVlConfig,
    tokenizer: impl AsRef<Path>,
    output: impl AsRef<Path>,
    seed: u64,
    kind: Option<Quantization>,
) -> Result<()> {
    files::check_new_folder(&output)?;
    let (config, processor) = adopt_processor(tokenizer.as_ref(), config)?;
    let generation = GenerationConfig { eos_token_id: processor.eos_ids(), ..GenerationConfig::default() };
    let weights = HaploVl::random_weights(&config, seed, DType::BF16)?;
    match kind {
        Some(kind) => save_quantized(output, &config, &weights, kind, &processor, &generation),
        None => save_pretrained_from(output, &config, &weights, &processor, &generation, &SaveOptions::default()),
    }
}
