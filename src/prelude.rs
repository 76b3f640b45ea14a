//! The names that most programs use: `use haplovl::prelude::*;`.
//!
//! ```no_run
//! use haplovl::prelude::*;
//!
//! # fn main() -> haplovl::Result<()> {
//! let options = LoadOptions::default().with_quantization(Quantization::Q8_0);
//! let model = LoadedModel::load(&"path/to/checkpoint".parse()?, options)?;
//! let image = ImageDecoder::default().open("cat.jpg")?;
//! println!("{}", Captioner::new(&model).caption(image)?.text());
//! # Ok(())
//! # }
//! ```

pub use crate::config::GenerationConfig;
pub use crate::generation::{Answer, CancelToken, FinishReason};
pub use crate::options::{DeviceChoice, DtypeChoice, KvCacheDtype, Precision, Quantization};
pub use crate::pipeline::{
    Captioner, Chat, Engine, EngineConfig, Event, LoadOptions, LoadedModel, ModelSource, Request,
    VisualQuestionAnswerer,
};
pub use crate::processor::{Content, Conversation, ImageDecoder, Message, RgbImage, Role};
pub use crate::{Error, Result};
