//! Model folders from other model folders: quantised, merged with an adapter, or new with random weights.

use std::path::Path;

use candle_core::{DType, Device};

use super::loaded_model::{open, own_vocabulary};
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::model::{Adapter, HaploVl, MergedSource, save_llama_cpp, save_pretrained_from, save_quantized};
use crate::options::Quantization;
use crate::train::{adopt_processor, open_llm};
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

/// Writes the language half of a model folder as the file `output` for llama.cpp, and returns the matrices that are not
/// quantised, since their rows are not whole blocks; see [`save_llama_cpp`], which says what is left out. The folder or file
/// `llm` is the language model that the post-decoder started from: its embedding table is taken, if given, with rows that
/// follow the tokens. A model whose text embedding is as wide as its pre-decoder has no other.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if there is a file, and the errors of
/// [`LoadedModel::from_folder`](super::LoadedModel::from_folder), [`LlmSource::open`](crate::weights::LlmSource::open) and
/// [`save_llama_cpp`].
pub fn export_llama_cpp(
    folder: impl AsRef<Path>,
    output: impl AsRef<Path>,
    kind: Option<Quantization>,
    llm: Option<&Path>,
) -> Result<Vec<String>> {
    files::check_new_file(&output)?;
    let (config, processor, _, weights) = open(folder.as_ref())?;
    let table = |path: &Path| {
        let llm = open_llm(path, processor.tokenizer(), &config)?;
        llm.embedding(config.vocab_size, DType::F32, &Device::Cpu)
    };
    let table = llm.map(table).transpose()?;
    save_llama_cpp(output, &config, &*weights, table, kind, &processor)
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
