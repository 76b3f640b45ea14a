//! Inference and training of HaploVL, a vision-language model that is a single transformer, on [`candle_core`].
//!
//! Most vision-language models put a vision encoder in front of a language model. HaploVL (*HaploVL: A Single-Transformer
//! Baseline for Multi-Modal Understanding*, arXiv 2503.14694) reads raw image patches and text in one decoder from its first
//! layer on. This crate runs checkpoints in the released layout, and trains new ones in the paper's two stages.
//!
//! # A first answer
//!
//! A small model of 2.5 M parameters is part of the crate (feature `builtin`). It knows one kind of image: scenes of
//! *shapes world*, which [`data::shapes`] draws.
//!
#![cfg_attr(feature = "builtin", doc = "```")]
#![cfg_attr(not(feature = "builtin"), doc = "```no_run")]
//! use haplovl::data::shapes::{ShapesConfig, Split};
//! use haplovl::prelude::*;
//!
//! # fn main() -> haplovl::Result<()> {
//! let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default())?;
//! let image = Content::from(Split::Test.scene(4, &ShapesConfig::default()).render(64));
//!
//! let caption = Captioner::new(&model).caption(image.clone())?;
//! println!("{}", caption.text());
//!
//! let answer = VisualQuestionAnswerer::new(&model).ask([image], "how many objects are there?")?;
//! assert_eq!(answer.text(), "four");
//! # Ok(())
//! # }
//! ```
//!
//! A checkpoint of your own is loaded by `"path/to/folder".parse()?` or `"organisation/name".parse()?` in place of
//! [`ModelSource::Builtin`](pipeline::ModelSource::Builtin), and [`ImageDecoder`](processor::ImageDecoder) opens image files.
//!
//! # Where to go
//!
//! | module | purpose |
//! |---|---|
//! | [`prelude`] | the names that most programs use |
//! | [`pipeline`] | load a model; captions, visual question answering, chat, batch inference; streams, threads |
//! | [`options`] | device, dtype, quantisation, precision, dtype of the KV cache |
//! | [`generation`] | prefill and decode loop, sampling, stop strings, prefix cache, cancellation, the scheduler of an engine |
//! | [`processor`] | images, videos, chat templates and tokens: from conversations to batches |
//! | [`batch`], [`patch_grid`] | the input of a model; tiles and patches of an image |
//! | [`config`] | configuration of model, processor and generation, as Hugging Face files have them |
//! | [`model`], [`nn`] | the network; differentiable layers and their operations |
//! | [`weights`] | safetensors, GGUF, the hub, initialisation from CLIP and language models |
//! | [`train`] | recipes, stages, the training loop, checkpoints, metrics |
//! | [`distributed`] | the ranks of a run over several processes |
//! | [`data`] | LLaVA-style records, the loader, and the generator of shapes world |
//! | [`loss`], [`optim`] | losses of both stages; AdamW, schedules, gradient clipping |
//! | [`eval`] | public benchmarks and their metrics, accuracy of answers, divergence between models |
//!
//! # Threads and servers
//!
//! [`LoadedModel`](pipeline::LoadedModel) is a handle: clones share the weights, and may be used from several threads.
//! [`Chat`](pipeline::Chat), the other pipelines and their streams own what they need and are `Send + 'static`, so that a
//! server can keep one chat for each user and stream its replies from another thread. An [`Engine`](pipeline::Engine)
//! answers many requests together, with one prefix cache for all.
//!
//! # Logging
//!
//! The library never prints. It reports downloads, loading, preprocessing, prefill, decoding and training through
//! [`tracing`]; install any subscriber to see them.
//!
//! # Features
//!
//! | feature | effect |
//! |---|---|
//! | `builtin` (default) | the small built-in model, 5 MB, becomes part of the program |
//! | `hub` (default) | models by hub id are downloaded |
//! | `mpi` | training over several processes that OpenMPI or MPICH connects |
//! | `cuda`, `cudnn`, `metal` | GPUs, passed through to candle |
//! | `accelerate`, `mkl` | other matrix libraries on the CPU, passed through to candle |

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod batch;
pub mod config;
pub mod data;
pub mod distributed;
mod error;
pub mod eval;
mod files;
pub mod generation;
pub mod loss;
mod memory;
pub mod model;
pub mod nn;
pub mod optim;
pub mod options;
mod panics;
pub mod patch_grid;
pub mod pipeline;
pub mod prelude;
pub mod processor;
pub mod train;
pub mod weights;

pub use error::{Error, Result};

/// The README, whose code is compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
