//! Batch inference: many images and questions from folders, lists and record files, answered in batches and in order.
//!
//! [`BatchRunner`] answers a stream of [`Request`]s: images are decoded ahead on worker threads, at most a few batches of
//! them are in memory, and a request that fails is an error of that request alone. [`ImageList`] finds images by names,
//! folders and patterns, [`InputFile`] reads requests from JSON, JSONL and lists of paths, and [`ResultFile`] writes one
//! JSON line for each, so that an interrupted run can be resumed.
//!
//! ```no_run
//! use haplovl::pipeline::batch::{BatchRunner, ImageList, Input};
//! use haplovl::prelude::*;
//!
//! # fn main() -> haplovl::Result<()> {
//! let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default())?;
//! let images = ImageList::find(["holiday/", "more/*.jpg"])?.images;
//! let requests = images.into_iter().map(|path| (path.clone(), Input::image(path).request("Describe the image.")));
//! for (path, answer) in BatchRunner::new(&model).run(requests)? {
//!     match answer {
//!         Ok(answer) => println!("{}: {}", path.display(), answer.text.trim()),
//!         Err(error) => eprintln!("{}: {error}", path.display()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod image_list;
mod input;
mod input_file;
mod json_lines;
mod question_file;
mod result_file;
mod runner;
mod typed_path;

pub use image_list::{ImageList, LeftOut};
pub use input::Input;
pub use input_file::InputFile;
pub use question_file::{QuestionFile, TestQuestion};
pub use result_file::ResultFile;
pub use runner::{BatchAnswers, BatchRunner, Request};
pub use typed_path::typed_path;
