//! Writes model folders that this crate loads again, as does the reference if the configuration is official.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use super::HaploVl;
use super::haplovl::EMBEDDING;
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::options::Quantization;
use crate::processor::Processor;
use crate::weights::{
    GgufFile, SaveOptions, StoredAs, TensorSource, check_source, check_tensors, save_gguf, save_safetensors,
    save_source, write_bytes_atomically,
};
use crate::{Error, Result};

/// Writes a model folder: `config.json`, `generation_config.json`, the weights as safetensors (sharded above
/// [`SaveOptions::max_shard_bytes`]) and all files of the processor.
///
/// `config.json` has the official form if that can express the configuration, else the form of this crate.
///
/// # Errors
/// [`Error::Weights`] if names or shapes of `tensors` differ from what the configuration requires, and [`Error::Io`].
pub fn save_pretrained(
    folder: impl AsRef<Path>,
    config: &HaploVlConfig,
    tensors: &BTreeMap<String, Tensor>,
    processor: &Processor,
    generation: &GenerationConfig,
    options: &SaveOptions,
) -> Result<()> {
    let folder = folder.as_ref();
    let found = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
    check_tensors(&folder.display().to_string(), &HaploVl::parameter_shapes(config)?, &found)?;
    save_companions(folder, config, processor, generation)?;
    save_safetensors(folder, tensors, options)
}

/// Writes a model folder as [`save_pretrained`] does, with the tensors of a source loaded one at a time.
///
/// # Errors
/// The errors of [`save_pretrained`] and of the source.
pub fn save_pretrained_from(
    folder: impl AsRef<Path>,
    config: &HaploVlConfig,
    source: &dyn TensorSource,
    processor: &Processor,
    generation: &GenerationConfig,
    options: &SaveOptions,
) -> Result<()> {
    let folder = folder.as_ref();
    let shapes = HaploVl::parameter_shapes(config)?;
    check_source(source, &shapes)?;
    save_companions(folder, config, processor, generation)?;
    save_source(folder, source, &shapes, options)
}

/// Writes a model folder with its weights quantised, as `model.gguf` instead of safetensors.
///
/// The matrices of layers and head are quantised and written in parts, so that little of the model is in memory. Their blocks
/// are interleaved as the kernels of this crate multiply them, so that a loaded model uses them where the file is mapped;
/// other readers of GGUF refuse the file. Norms, biases, connector, patch projection and position embeddings are stored in
/// f32. The text embedding table is stored in f16: a lookup reads few rows.
///
/// # Errors
/// [`Error::Weights`] if the tensors of `source` do not match the configuration, hold NaN or infinity, or are already
/// quantised, and [`Error::Io`].
pub fn save_quantized(
    folder: impl AsRef<Path>,
    config: &HaploVlConfig,
    source: &dyn TensorSource,
    kind: Quantization,
    processor: &Processor,
    generation: &GenerationConfig,
) -> Result<()> {
    let folder = folder.as_ref();
    let shapes = HaploVl::parameter_shapes(config)?;
    check_source(source, &shapes)?;
    let matrices = HaploVl::matrices(config)?;
    shapes.keys().try_for_each(|name| check_quantizable(source, name))?;
    let stored_as = |name: &str| match (matrices.contains(name), name) {
        (true, _) => StoredAs::Interleaved(kind),
        (_, EMBEDDING) => StoredAs::Plain(GgmlDType::F16),
        _ => StoredAs::Plain(GgmlDType::F32),
    };
    let tensors: Vec<_> = shapes.iter().map(|(name, shape)| stored_as(name).tensor(source, name, shape)).collect();
    save_companions(folder, config, processor, generation)?;
    let architecture = ("general.architecture".to_string(), Value::String("haplovl".into()));
    save_gguf(&folder.join(GgufFile::MODEL), &[architecture], &tensors)
}

/// Refuses what cannot be quantised, before anything is written.
fn check_quantizable(source: &dyn TensorSource, name: &str) -> Result<()> {
    match source.quantization(name) {
        Some(found) => {
            let path = source.path().display();
            Err(Error::weights(format!("{path}: `{name}` is already {found}: start from the unquantised model")))
        }
        None => source.check_finite(name),
    }
}

/// Writes all files of a model folder except the weights.
pub(crate) fn save_companions(
    folder: &Path,
    config: &HaploVlConfig,
    processor: &Processor,
    generation: &GenerationConfig,
) -> Result<()> {
    processor.save(folder)?;
    let json = |name: &str, value: serde_json::Result<Vec<u8>>| -> Result<()> {
        let path = folder.join(name);
        let bytes = value.map_err(|e| Error::format(&path, format!("cannot be written as JSON: {e}")))?;
        write_bytes_atomically(&path, &bytes)
    };
    let config = if config.is_official() {
        serde_json::to_vec_pretty(&config.to_official()?)
    } else {
        serde_json::to_vec_pretty(config)
    };
    json("config.json", config)?;
    json("generation_config.json", serde_json::to_vec_pretty(generation))
}
