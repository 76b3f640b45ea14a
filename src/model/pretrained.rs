//! Writing a model folder that loads again, here and in the reference.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::HaploVl;
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::processor::Processor;
use crate::weights::{SaveOptions, check_tensors, save_safetensors, write_bytes_atomically};
use crate::{Error, Result};

/// Writes `config.json` (in the official form where it can say all), safetensors (sharded above a size),
/// `generation_config.json` and all files of the processor.
///
/// # Errors
/// [`Error::Weights`] if `tensors` are not exactly those that the configuration asks for, and [`Error::Io`].
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
    json("generation_config.json", serde_json::to_vec_pretty(generation))?;
    save_safetensors(folder, tensors, options)
}
