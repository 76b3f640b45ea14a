//! Pipelines: captioning, visual question answering and chat over a loaded model, and an [`Engine`] for many requests at
//! once.
//!
//! [`LoadedModel`] is a handle that is cheap to clone; pipelines, chats and streams own what they need and are `Send`,
//! so that a server can keep them in a map and move them between threads.
//!
//! ```no_run
//! use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel};
//! use haplovl::processor::ImageDecoder;
//!
//! # fn main() -> haplovl::Result<()> {
//! let model = LoadedModel::load(&"path/to/checkpoint".parse()?, LoadOptions::default())?;
//! let image = ImageDecoder::default().open("cat.jpg")?;
//! println!("{}", Captioner::new(&model).caption(image)?.text());
//! # Ok(())
//! # }
//! ```

pub mod batch;
#[cfg(feature = "builtin")]
mod builtin;
mod captioner;
mod chat;
mod convert;
mod embedder;
mod engine;
mod loaded_model;
mod option_scorer;
mod question_answerer;
mod word_attention;

pub use captioner::Captioner;
pub use chat::{Chat, Reply};
pub use convert::{export_llama_cpp, merge_folder, quantize_folder, random_folder};
pub use embedder::{Embedder, Embedding};
pub use engine::{Engine, Prompt};
pub use loaded_model::{LoadOptions, LoadedModel};
pub use option_scorer::OptionScorer;
pub use question_answerer::{AnswerStream, VisualQuestionAnswerer};
pub use word_attention::Word;

pub use crate::generation::{
    Choices, Constraint, EngineConfig, Event, Finished, Handle, Histogram, Metrics, PrefixCacheMetrics, Request,
    RequestCounts, SubmitError, TokenLogprob,
};
pub use crate::options::{DeviceChoice, DtypeChoice, KvCacheDtype, Precision, Quantization};
pub use crate::weights::ModelSource;
