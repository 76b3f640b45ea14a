//! Shapes world: a synthetic data set of images of simple objects with captions, questions and answers.
//!
//! A seed determines everything. Shapes world is small enough to train on a CPU, and rich enough that answers require
//! the image: it has a closed vocabulary of about 110 words, every question has exactly one answer, and no answer is
//! common enough to be guessed.

mod attributes;
mod background;
mod caption;
mod dataset;
mod fine_grained;
mod geometry;
mod location;
mod questions;
mod relation;
mod render;
mod scene;
mod spatial;
mod split;
mod statements;
mod text;
mod tokenizer;
mod words;

pub use attributes::{Colour, Description, Shape, Size};
pub use background::{Background, Pattern};
pub use caption::{CaptionScore, caption_prompt, check_caption};
pub use dataset::{ShapesContent, ShapesDataset};
pub use questions::{Question, QuestionKind};
pub use scene::{MAX_OBJECTS, Object, Scene, ShapesConfig};
pub use split::Split;
pub use text::TextQuestion;
pub use tokenizer::{ShapesTokens, token_ids, tokenizer};
pub use words::{vocabulary, words};
