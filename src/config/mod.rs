//! Plain configuration data, readable from JSON and checked by `validate()` before anything is built from it.

mod checks;
mod decoder;
mod model;
mod official;
mod processor;
mod vision;

pub use decoder::{Activation, DecoderConfig, MlpKind, NormKind, Rope, RopeScaling};
pub use model::{HaploVlConfig, ImageAttention, ModelType, OfficialExtra, TextEmbedding};
pub use processor::{PreprocessorConfig, ProcessorConfig, Resample};
pub use vision::{ImageAspectRatio, VisionConfig};
