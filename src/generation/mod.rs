//! From logits to text: sampling, stopping, incremental decoding and the loop around the model.

mod causal_model;
mod detokenizer;
mod generator;
mod output;
mod prefix_cache;
mod sampler;
mod sequence_state;
mod session;
mod stop;
mod stream;

pub use causal_model::CausalModel;
pub use detokenizer::Detokenizer;
pub use generator::{Generator, TextIter};
pub use output::{Answer, GeneratedSequence, Generation, Timings};
pub use prefix_cache::PrefixCache;
pub use sampler::Sampler;
pub use session::{Decode, Session};
pub use stop::{CancelToken, FinishReason, StopStrings, TextPiece};
pub use stream::TextStream;
