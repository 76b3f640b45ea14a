//! A model with everything that is needed to talk to it.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::ModelSource;
use crate::batch::MultimodalBatch;
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::generation::Generator;
use crate::model::{HaploVl, save_quantized};
use crate::options::Quantization;
use crate::options::{CacheChoice, DeviceChoice, DtypeChoice};
use crate::processor::{Conversation, Processor};
use crate::weights::{TensorSource, check_model_folder, open_weights};
use crate::{Result, files};

/// Where and in which numbers a model is to be held.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The device of weights and activations.
    pub device: DeviceChoice,
    /// The number type of activations, and of weights that are not quantised.
    pub dtype: DtypeChoice,
    /// Keeps the matrices in blocks of few bits, on the CPU: less memory, and more tokens a second. A folder that holds a
    /// quantised model needs no such wish.
    pub quantization: Option<Quantization>,
    /// The number type of keys and values in caches.
    pub cache: CacheChoice,
}

impl LoadOptions {
    fn open(self) -> Result<(Device, DType)> {
        let device = self.device.open()?;
        Ok((device.clone(), self.dtype.resolve(&device)?))
    }

    fn apply(self, model: HaploVl, dtype: DType) -> HaploVl {
        let model = match self.dtype.precision() {
            Some(precision) => model.with_precision(precision),
            None => model,
        };
        match self.cache.resolve(dtype) {
            Some(dtype) => model.with_cache_dtype(dtype),
            None => model,
        }
    }
}

/// A model, its processor, and its defaults of generation.
pub struct LoadedModel {
    model: HaploVl,
    processor: Processor,
    generation: GenerationConfig,
}

impl LoadedModel {
    /// Finds a model, downloading it if need be, and loads it.
    ///
    /// # Errors
    /// As [`ModelSource::folder`] and [`Self::from_folder`]; for [`ModelSource::Builtin`] where this crate was built
    /// without its feature `builtin`.
    pub fn load(source: &ModelSource, options: LoadOptions) -> Result<Self> {
        if *source == ModelSource::Builtin {
            return Self::builtin(options);
        }
        // Before a download of gigabytes: what is not there will not be there after it.
        options.open()?;
        Self::from_folder(source.folder()?, options)
    }

    #[cfg(feature = "builtin")]
    fn builtin(options: LoadOptions) -> Result<Self> {
        let (device, dtype) = options.open()?;
        let loaded = super::builtin::load(options.quantization, dtype, &device)?;
        Ok(Self { model: options.apply(loaded.model, dtype), ..loaded })
    }

    #[cfg(not(feature = "builtin"))]
    fn builtin(_: LoadOptions) -> Result<Self> {
        Err(crate::Error::weights(
            "the built-in model is not part of this build: build with `--features builtin`, or name a folder or a hub id",
        ))
    }

    /// Loads a checkpoint folder: `config.json`, safetensors or `model.gguf`, tokenizer and processor files, and
    /// `generation_config.json` if there is one.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::device) for a device that is not available, and for broken, missing or
    /// contradictory files the error that names them.
    pub fn from_folder(folder: impl AsRef<Path>, options: LoadOptions) -> Result<Self> {
        let (device, dtype) = options.open()?;
        let (config, processor, generation, weights) = open(folder.as_ref())?;
        let model = HaploVl::from_source(&config, weights, options.quantization, dtype, &device)?;
        Ok(Self::new(options.apply(model, dtype), processor, generation))
    }

    /// Puts together what was made elsewhere.
    pub fn new(model: HaploVl, processor: Processor, generation: GenerationConfig) -> Self {
        Self { model, processor, generation }
    }

    /// The same with its processor changed: another number of video frames, or another pixel limit for pictures.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn with_processor(self, change: impl FnOnce(Processor) -> Result<Processor>) -> Result<Self> {
        Ok(Self { processor: change(self.processor)?, ..self })
    }

    /// The model alone.
    pub fn model(&self) -> &HaploVl {
        &self.model
    }

    /// What turns conversations into batches, and ids into text.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The model's own defaults of generation.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// A generator over the model that decodes with its tokenizer.
    pub fn generator(&self) -> Generator<'_, HaploVl> {
        Generator::new(&self.model, |ids| self.processor.tokenizer().decode(ids, true))
    }

    /// Conversations, each waiting for the model's answer, as one batch on the model's device.
    ///
    /// # Errors
    /// As [`Processor::batch`].
    pub fn batch(&self, conversations: &[Conversation]) -> Result<MultimodalBatch> {
        self.processor.batch(conversations, self.model.device())
    }
}

/// Writes a quantised copy of a model folder to the folder `output`, which is created, see [`save_quantized`].
///
/// # Errors
/// As [`LoadedModel::from_folder`] and [`save_quantized`].
pub fn quantize_folder(folder: impl AsRef<Path>, output: impl AsRef<Path>, kind: Quantization) -> Result<()> {
    let (config, processor, generation, weights) = open(folder.as_ref())?;
    save_quantized(output.as_ref(), &config, &*weights, kind, &processor, &generation)
}

/// What a checkpoint folder holds.
fn open(folder: &Path) -> Result<(HaploVlConfig, Processor, GenerationConfig, Arc<dyn TensorSource>)> {
    check_model_folder(folder)?;
    let config = HaploVlConfig::from_file(folder.join("config.json"))?;
    let processor = Processor::from_folder(folder, &config)?;
    let generation = generation_defaults(folder, &config, &processor)?;
    Ok((config, processor, generation, open_weights(folder)?))
}

/// What the checkpoint says; where it names no end token, the tokenizer's.
fn generation_defaults(folder: &Path, model: &HaploVlConfig, processor: &Processor) -> Result<GenerationConfig> {
    let path = folder.join("generation_config.json");
    let there = files::exists(&path)?;
    let mut config = if there { GenerationConfig::from_file(&path)? } else { GenerationConfig::default() };
    config.check_vocabulary(model.vocab_size).map_err(|e| e.in_file(&path))?;
    if config.eos_token_id.is_empty() {
        config.eos_token_id = processor.eos_ids();
    }
    Ok(config)
}
