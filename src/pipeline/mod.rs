//! What most users touch: captioning, visual question answering, and chat.
//!
//! ```no_run
//! use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel};
//! use haplovl::processor::ImageDecoder;
//!
//! # fn main() -> haplovl::Result<()> {
//! let model = LoadedModel::load(&"path/to/checkpoint".parse()?, LoadOptions::default())?;
//! let picture = ImageDecoder::default().open("picture.jpg")?;
//! println!("{}", Captioner::new(&model).caption(picture)?.text());
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "builtin")]
mod builtin;
mod captioner;
mod chat;
mod loaded_model;
mod question_answerer;
mod source;
mod word_attention;

pub use captioner::Captioner;
pub use chat::{Chat, Reply};
pub use loaded_model::{LoadOptions, LoadedModel, quantize_folder};
pub use question_answerer::{AnswerStream, VisualQuestionAnswerer};
pub use source::ModelSource;
