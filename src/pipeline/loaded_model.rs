//! A model with everything that is needed to talk to it.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::ModelSource;
use crate::Result;
use crate::batch::MultimodalBatch;
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::device::{DeviceChoice, DtypeChoice};
use crate::generation::Generator;
use crate::model::HaploVl;
use crate::processor::{Conversation, Processor};
use crate::weights::SafetensorsFiles;

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
    /// As [`ModelSource::folder`] and [`Self::from_folder`].
    pub fn load(source: &ModelSource, device: DeviceChoice, dtype: DtypeChoice) -> Result<Self> {
        // Before a download of gigabytes: what is not there will not be there after it.
        let device = device.open()?;
        let dtype = dtype.resolve(&device)?;
        Self::open(&source.folder()?, &device, dtype)
    }

    /// Loads a checkpoint folder: `config.json`, safetensors, tokenizer and processor files, and
    /// `generation_config.json` if there is one.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) for a device that is not available, and for broken, missing or
    /// contradictory files the error that names them.
    pub fn from_folder(folder: impl AsRef<Path>, device: DeviceChoice, dtype: DtypeChoice) -> Result<Self> {
        let device = device.open()?;
        let dtype = dtype.resolve(&device)?;
        Self::open(folder.as_ref(), &device, dtype)
    }

    fn open(folder: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let config = HaploVlConfig::from_file(folder.join("config.json"))?;
        let processor = Processor::from_folder(folder, &config)?;
        let generation = generation_defaults(folder, &processor)?;
        let files = SafetensorsFiles::open(folder)?;
        files.check(&HaploVl::parameter_shapes(&config)?)?;
        let model = HaploVl::new(&config, Arc::new(files).var_builder(dtype, device))?;
        Ok(Self::new(model, processor, generation))
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

/// What the checkpoint says; where it names no end token, the tokenizer's.
fn generation_defaults(folder: &Path, processor: &Processor) -> Result<GenerationConfig> {
    let path = folder.join("generation_config.json");
    let mut config = if path.exists() { GenerationConfig::from_file(path)? } else { GenerationConfig::default() };
    if config.eos_token_id.is_empty() {
        config.eos_token_id = processor.eos_ids();
    }
    Ok(config)
}
