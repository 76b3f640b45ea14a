//! Shapes world: images of simple objects with captions, questions and answers, all drawn from a seed.
//!
//! Small enough to be learnt on a CPU, rich enough that an answer needs the image: a closed vocabulary of some 110
//! words, questions that have one answer, and answers that cannot be guessed.

mod attributes;
mod background;
mod caption;
mod dataset;
mod fine_grained;
mod geometry;
mod location;
mod questions;
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
