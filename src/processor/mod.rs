//! Preprocessing: images, videos and conversations to batches; no model code.
//!
//! [`Processor`] combines the parts, which can also be used alone: [`ImageDecoder`] reads files, [`ImageProcessor`] and
//! [`VideoProcessor`] make tiles, [`ChatTemplate`] and [`TextTokenizer`] make token ids.

mod attention_map;
mod chat_template;
mod conversation;
mod decode;
mod folder;
mod image;
mod jinja;
mod needed_tokens;
mod pixels;
#[allow(clippy::module_inception)]
mod processor;
mod prompt;
mod resize;
mod tokenizer;
mod video;
mod word;

pub use ::image::RgbImage;
pub use attention_map::{AttentionCell, AttentionMap};
pub use chat_template::ChatTemplate;
pub use conversation::{Content, Conversation, Message, Role};
pub use decode::{Frames, ImageDecoder};
pub use image::ImageProcessor;
pub(crate) use needed_tokens::missing_tokens;
pub use processor::{EndOfTurn, Processor, ProcessorSettings};
pub use resize::resize;
pub(crate) use tokenizer::CoverageCheck;
pub use tokenizer::{TextTokenizer, TokenBytes};
pub use video::VideoProcessor;
