//! Serving: many requests answered at the same time, each as if it were alone. Continuous batching, a prefix cache over
//! requests, admission by memory.

mod adapter_set;
mod answering;
mod config;
mod event;
mod handle;
mod logprobs;
mod metrics;
mod panics;
mod prefix_store;
mod prompt;
mod queue;
mod request;
mod scheduler;
mod served_model;
mod worker;

pub use adapter_set::{AdaptedSequence, AdapterSet};
pub use config::EngineConfig;
pub use event::{Event, Finished, TokenLogprob};
pub use handle::Handle;
pub use metrics::{Histogram, Metrics, PrefixCacheMetrics, RequestCounts};
pub use request::{Request, SubmitError};
pub use scheduler::Scheduler;
pub use served_model::ServedModel;
