//! Loading of the model that is part of this crate.

use std::sync::Arc;

use candle_core::{DType, Device};

use crate::config::{GenerationConfig, HaploVlConfig};
use crate::data::shapes::tokenizer;
use crate::model::HaploVl;
use crate::options::Quantization;
use crate::processor::{Processor, ProcessorSettings};
use crate::weights::SafetensorsFiles;
use crate::weights::builtin::{CONFIG, WEIGHTS};
use crate::{Error, Result};

/// Builds the model, its processor and its generation settings from bytes in the program; no file is read.
pub(super) fn load(
    quantization: Option<Quantization>,
    dtype: DType,
    device: &Device,
) -> Result<(HaploVl, Processor, GenerationConfig)> {
    let config = serde_json::from_str(CONFIG);
    let config = config.map_err(|e| Error::format("builtin/config.json", e.to_string()).caused_by(e))?;
    let config = HaploVlConfig::from_json(config)?;
    let processor = Processor::new(&config, ProcessorSettings::new(&config), tokenizer()?, None)?;
    let generation = GenerationConfig { eos_token_id: processor.eos_ids(), ..GenerationConfig::default() };
    let weights = SafetensorsFiles::embedded("builtin/model.safetensors", WEIGHTS)?;
    let model = HaploVl::from_source(&config, Arc::new(weights), quantization, dtype, device)?;
    Ok((model, processor, generation))
}
