//! What most users touch: captioning, visual question answering, and chat.
//!
//! ```no_run
//! use haplovl::device::{DeviceChoice, DtypeChoice};
//! use haplovl::pipeline::{Captioner, LoadedModel};
//! use haplovl::processor::ImageDecoder;
//!
//! # fn main() -> haplovl::Result<()> {
//! let model = LoadedModel::load(&"path/to/checkpoint".parse()?, DeviceChoice::Auto, DtypeChoice::Auto)?;
//! let picture = ImageDecoder::default().open("picture.jpg")?;
//! println!("{}", Captioner::new(&model).caption(picture)?.text());
//! # Ok(())
//! # }
//! ```

mod captioner;
mod chat;
mod loaded_model;
mod question_answerer;
mod source;
mod word_attention;

pub use captioner::Captioner;
pub use chat::{Chat, Reply};
pub use loaded_model::LoadedModel;
pub use question_answerer::VisualQuestionAnswerer;
pub use source::ModelSource;
