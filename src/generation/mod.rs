//! Text generation: prefill and decode loop, sampling, stop conditions, incremental decoding, prefix caching,
//! constraints on answers, and a scheduler of many requests.

mod causal_model;
mod constraint;
mod detokenizer;
mod engine;
mod generator;
mod output;
mod prefix_cache;
mod sampler;
mod sequence_state;
mod session;
mod stop;
mod text_stream;

pub use causal_model::CausalModel;
pub use constraint::{AnswerEnd, Choices, Constraint, ConstraintState, TokenMask};
pub use detokenizer::Detokenizer;
pub use engine::{
    AdaptedSequence, AdapterSet, EngineConfig, Event, Finished, Handle, Histogram, Metrics, PrefixCacheMetrics,
    Request, RequestCounts, Scheduler, ServedModel, SubmitError, TokenLogprob,
};
pub use generator::{Generator, TextIter};
pub use output::{Answer, GeneratedSequence, Generation, Timings};
pub use prefix_cache::PrefixCache;
pub use sampler::Sampler;
pub use session::{Decode, GenerationSession};
pub use stop::{CancelToken, FinishReason, StopStrings, TextPiece};
pub use text_stream::TextStream;
