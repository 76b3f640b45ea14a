//! From logits to text: sampling, stopping, incremental decoding and the loop around the model.

mod detokenizer;
mod sampler;
mod stop;
mod stream;

pub use detokenizer::Detokenizer;
pub use sampler::Sampler;
pub use stop::{CancelToken, FinishReason, StopStrings, TextPiece};
pub use stream::TextStream;
