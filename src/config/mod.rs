//! Configuration data, read from JSON and checked by `validate()` before anything is built from it.

mod decoder;
mod file;
mod generation;
mod lora;
mod lora_targets;
mod model;
mod official;
mod overrides;
mod processor;
pub(crate) mod validate;
mod vision;

pub(crate) use file::from_value;
pub(crate) use validate::at_most;

pub use decoder::{Activation, DecoderConfig, MlpKind, NormKind, Rope, RopeScaling};
pub use generation::GenerationConfig;
pub use lora::{LoraBias, LoraConfig, ModuleNames};
pub use lora_targets::{LoraTarget, LoraTargets};
pub use model::{HaploVlConfig, ImageAttention, ModelType, OfficialExtra, TextEmbedding};
pub use overrides::GenerationOverrides;
pub(crate) use processor::{CLIP_MEAN, CLIP_STD};
pub use processor::{PreprocessorConfig, ProcessorConfig, Resample};
pub use vision::{ImageAspectRatio, VisionConfig};
