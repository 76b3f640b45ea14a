//! A loaded model: the network, its processor, and its default generation settings.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device};

use crate::batch::MultimodalBatch;
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::generation::{Choices, Generator};
use crate::model::{Adapter, HaploVl};
use crate::options::{DeviceChoice, DtypeChoice, KvCacheDtype, Quantization};
use crate::processor::{Conversation, Processor};
use crate::weights::{ModelSource, TensorSource, check_model_folder, folder_of, open_decoder_weights};
use crate::{Error, Result, files};

/// Options of loading: device, dtype, quantisation, KV cache.
///
/// ```
/// use haplovl::pipeline::{DeviceChoice, LoadOptions, Quantization};
///
/// let options = LoadOptions::default().with_device(DeviceChoice::Cpu).with_quantization(Quantization::Q8_0);
/// assert_eq!(options.quantization, Some(Quantization::Q8_0));
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The device of weights and activations.
    pub device: DeviceChoice,
    /// The dtype of activations, and of weights that are not quantised.
    pub dtype: DtypeChoice,
    /// The block format to quantise the weight matrices to, on the CPU: less memory, and more tokens per second. A
    /// folder of a quantised model loads quantised without it.
    pub quantization: Option<Quantization>,
    /// The dtype of the KV cache.
    pub kv_cache_dtype: KvCacheDtype,
}

impl LoadOptions {
    /// The same options with this device.
    #[must_use]
    pub fn with_device(self, device: DeviceChoice) -> Self {
        Self { device, ..self }
    }

    /// The same options with this dtype.
    #[must_use]
    pub fn with_dtype(self, dtype: DtypeChoice) -> Self {
        Self { dtype, ..self }
    }

    /// The same options with this quantisation, or with none for `None`.
    #[must_use]
    pub fn with_quantization(self, quantization: impl Into<Option<Quantization>>) -> Self {
        Self { quantization: quantization.into(), ..self }
    }

    /// The same options with this dtype of the KV cache.
    #[must_use]
    pub fn with_kv_cache_dtype(self, kv_cache_dtype: KvCacheDtype) -> Self {
        Self { kv_cache_dtype, ..self }
    }

    fn open(self) -> Result<(Device, DType)> {
        let device = self.device.open()?;
        Ok((device.clone(), self.dtype.resolve(&device)?))
    }

    fn apply(self, model: HaploVl, dtype: DType) -> HaploVl {
        let model = match self.dtype.precision() {
            Some(precision) => model.with_precision(precision),
            None => model,
        };
        match self.kv_cache_dtype.resolve(dtype) {
            Some(dtype) => model.with_cache_dtype(dtype),
            None => model,
        }
    }
}

/// A handle on a model, its processor, and its default generation settings.
///
/// Clones are cheap and share the weights; a handle may be used from several threads at once.
#[derive(Clone)]
pub struct LoadedModel {
    model: Arc<HaploVl>,
    processor: Arc<Processor>,
    generation: Arc<GenerationConfig>,
    /// The handle without the adapter, if the model has one.
    base: Option<Arc<LoadedModel>>,
}

impl LoadedModel {
    /// Finds a model, downloads it if necessary, and loads it.
    ///
    /// # Errors
    /// The errors of [`ModelSource::resolve`] and [`Self::from_folder`]; for [`ModelSource::Builtin`] where this crate
    /// was built without its feature `builtin`.
    pub fn load(source: &ModelSource, options: LoadOptions) -> Result<Self> {
        if *source == ModelSource::Builtin {
            return Self::builtin(options);
        }
        // Checked before a download of gigabytes: a device that is missing now will be missing after it.
        options.open()?;
        Self::from_folder(source.resolve()?.path(), options)
    }

    #[cfg(feature = "builtin")]
    fn builtin(options: LoadOptions) -> Result<Self> {
        traced_load(&ModelSource::Builtin, options, |dtype, device| {
            super::builtin::load(options.quantization, dtype, device)
        })
    }

    #[cfg(not(feature = "builtin"))]
    fn builtin(_: LoadOptions) -> Result<Self> {
        Err(crate::weights::no_builtin())
    }

    /// Loads a checkpoint folder: `config.json`, safetensors or `model.gguf`, tokenizer and processor files, and
    /// `generation_config.json` if there is one. A file of weights is loaded with the other files of its folder.
    ///
    /// The weights of a folder that [`quantize_folder`](super::quantize_folder) wrote are used where `model.gguf` is mapped: it
    /// must not be overwritten or truncated as long as the model exists. Another file may be moved in its place.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) for a device that is not available, and for broken, missing or
    /// contradictory files the error that names them.
    pub fn from_folder(folder: impl AsRef<Path>, options: LoadOptions) -> Result<Self> {
        let folder = folder.as_ref();
        traced_load(&folder.display(), options, |dtype, device| {
            let (config, processor, generation, weights) = open(folder)?;
            let model = HaploVl::from_source(&config, weights, options.quantization, dtype, device)?;
            Ok((model, processor, generation))
        })
    }

    /// A handle on a model, a processor and generation settings from elsewhere.
    pub fn new(model: HaploVl, processor: Processor, generation: GenerationConfig) -> Self {
        Self { model: Arc::new(model), processor: Arc::new(processor), generation: Arc::new(generation), base: None }
    }

    /// A handle on the same model with the adapter of a folder in PEFT's form, in place of a former one. The weights of
    /// the model, float or quantised, are shared with all other handles; only the adapter takes memory. Several adapters
    /// are as many handles.
    ///
    /// # Errors
    /// The errors of [`Adapter::open`].
    pub fn with_adapter(self, folder: impl AsRef<Path>) -> Result<Self> {
        let (base, folder) = (self.without_adapter(), folder.as_ref());
        let own = own_vocabulary(folder)?;
        let config = own.as_ref().map_or(base.model.config(), |(config, ..)| config);
        let model = Arc::new(HaploVl::clone(&base.model).with_adapter(&Adapter::open(folder, config)?)?);
        let (processor, generation) = match own {
            Some((_, processor, generation)) => (Arc::new(processor), Arc::new(generation)),
            None => (Arc::clone(&base.processor), Arc::clone(&base.generation)),
        };
        Ok(Self { model, processor, generation, base: Some(Arc::new(base)) })
    }

    /// A handle on the same model without its adapter.
    #[must_use]
    pub fn without_adapter(self) -> Self {
        match self.base {
            Some(base) => Arc::unwrap_or_clone(base),
            None => self,
        }
    }

    /// A handle on the same model with a changed processor: another number of video frames, or another pixel limit for
    /// images. Other handles keep theirs.
    ///
    /// # Errors
    /// The errors of `change`.
    pub fn with_processor(self, change: impl FnOnce(Processor) -> Result<Processor>) -> Result<Self> {
        Ok(Self { processor: Arc::new(change(Arc::unwrap_or_clone(self.processor))?), ..self })
    }

    /// The network alone.
    pub fn model(&self) -> &HaploVl {
        &self.model
    }

    /// The processor: conversations to batches, and token ids to text.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The model's default generation settings.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// A generator over the model that decodes with its tokenizer.
    pub fn generator(&self) -> Generator<HaploVl> {
        Generator::new(self.shared_model(), self.decoder())
    }

    /// A list of answers, of which the model chooses one by [`Request::with_constraint`](crate::generation::Request::with_constraint).
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) for an answer that the tokenizer cannot write, and the errors of
    /// [`Choices::new`].
    pub fn choices<A: AsRef<str>>(&self, answers: &[A]) -> Result<Choices> {
        let tokenizer = self.processor.tokenizer();
        let ids = |answer: &A| {
            let (answer, ids) = (answer.as_ref(), tokenizer.encode(answer.as_ref())?);
            let written = tokenizer.decode(&ids, true)?;
            if written == answer {
                return Ok(ids);
            }
            let message = format!("writes the choice {answer:?} as {written:?}: choose words that it knows");
            Err(Error::tokenizer(message))
        };
        Choices::new(answers.iter().map(ids).collect::<Result<_>>()?)
    }

    /// The network, shared.
    pub(super) fn shared_model(&self) -> Arc<HaploVl> {
        Arc::clone(&self.model)
    }

    /// The decoder of token ids to text without special tokens.
    pub(super) fn decoder(&self) -> impl Fn(&[u32]) -> Result<String> + Send + Sync + 'static {
        let processor = Arc::clone(&self.processor);
        move |ids| processor.tokenizer().decode(ids, true)
    }

    /// The batch of conversations, each of which awaits the model's answer, on the model's device.
    ///
    /// # Errors
    /// The errors of [`Processor::batch`].
    pub fn batch(&self, conversations: &[Conversation]) -> Result<MultimodalBatch> {
        let _span = tracing::debug_span!("preprocess", conversations = conversations.len()).entered();
        let start = Instant::now();
        let batch = self.processor.batch(conversations, self.model.device())?;
        tracing::debug!(
            images = batch.visuals.len(),
            tiles = batch.visuals.iter().filter_map(|visual| visual.pixel_values().dims().first()).sum::<usize>(),
            tokens = batch.layout.rows.iter().flatten().map(|sample| sample.range.len()).sum::<usize>(),
            seconds = start.elapsed().as_secs_f64(),
            "conversations preprocessed"
        );
        Ok(batch)
    }
}

/// The parts of a loaded model.
type Parts = (HaploVl, Processor, GenerationConfig);

/// Opens the device, loads with `load`, applies the options, and reports it to `tracing`.
fn traced_load(
    source: &dyn Display,
    options: LoadOptions,
    load: impl FnOnce(DType, &Device) -> Result<Parts>,
) -> Result<LoadedModel> {
    let _span = tracing::info_span!("load", %source).entered();
    let start = Instant::now();
    let (device, dtype) = options.open()?;
    let (model, processor, generation) = load(dtype, &device)?;
    tracing::info!(
        parameters = parameter_count(model.config())?,
        dtype = dtype.as_str(),
        device = ?device.location(),
        seconds = start.elapsed().as_secs_f64(),
        "model loaded"
    );
    Ok(LoadedModel::new(options.apply(model, dtype), processor, generation))
}

fn parameter_count(config: &HaploVlConfig) -> Result<usize> {
    Ok(HaploVl::parameter_shapes(config)?.values().map(|shape| shape.iter().product::<usize>()).sum())
}

/// Configuration, processor and generation settings of an adapter for other tokens than those of its base model; `None` for
/// one without a `config.json`.
pub(super) fn own_vocabulary(folder: &Path) -> Result<Option<(HaploVlConfig, Processor, GenerationConfig)>> {
    let path = folder.join("config.json");
    if !files::exists(&path)? {
        return Ok(None);
    }
    let config = HaploVlConfig::from_file(&path)?;
    let processor = Processor::from_folder(folder, &config)?;
    let generation = generation_defaults(folder, &config, &processor)?;
    Ok(Some((config, processor, generation)))
}

/// The content of a checkpoint folder, or of that of a file of weights.
pub(super) fn open(path: &Path) -> Result<(HaploVlConfig, Processor, GenerationConfig, Arc<dyn TensorSource>)> {
    let folder = folder_of(path);
    check_model_folder(folder)?;
    let config = HaploVlConfig::from_file(folder.join("config.json"))?;
    let processor = Processor::from_folder(folder, &config)?;
    let generation = generation_defaults(folder, &config, &processor)?;
    Ok((config, processor, generation, open_decoder_weights(path)?))
}

/// The checkpoint's generation settings. Answers end at the union of their end tokens, the token that ends a turn in the
/// chat template, and the tokenizer's `eos_token`: published files often name one and a template writes another.
fn generation_defaults(folder: &Path, model: &HaploVlConfig, processor: &Processor) -> Result<GenerationConfig> {
    let path = folder.join("generation_config.json");
    let mut config =
        if files::exists(&path)? { GenerationConfig::from_file(&path)? } else { GenerationConfig::default() };
    config.check_vocabulary(model.vocab_size).map_err(|e| e.in_file(&path))?;
    let missing = processor.eos_ids().into_iter().filter(|id| !config.eos_token_id.contains(id));
    config.eos_token_id.extend(missing.collect::<Vec<_>>());
    Ok(config)
}
