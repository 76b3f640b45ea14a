//! The one error type of the library.
//!
//! Every message names the field, file or tensor, what was found, what was expected, and what to do.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration field holds a value that cannot work.
    #[error("configuration field `{field}`: {message}")]
    Config {
        /// Path of the field, for example `pre_decoder.num_attention_heads`.
        field: String,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is readable but its content is not what it should be.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// The tensors of a checkpoint are not those that the model needs.
    #[error("{0}")]
    Weights(String),
    /// A picture or video frame cannot be used.
    #[error("image {name}: {message}")]
    Image {
        /// The file name, or which image of the input it is.
        name: String,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// The tokenizer is broken or does not fit the model.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template failed on a conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// A prompt does not fit its pictures, or the model's context.
    #[error("prompt: {0}")]
    Prompt(String),
    /// A batch is inconsistent in itself or with the model.
    #[error("batch: {0}")]
    Batch(String),
    /// Generation cannot go on.
    #[error("generation: {0}")]
    Generation(String),
    /// The asked-for device or number type is not available.
    #[error("device: {0}")]
    Device(String),
    /// A training or evaluation data set is unusable.
    #[error("data: {0}")]
    Data(String),
    /// A training checkpoint is truncated, foreign, or does not fit the run.
    #[error("checkpoint {}: {message}", path.display())]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// Training had to stop.
    #[error("training: {0}")]
    Training(String),
    /// The model hub could not deliver a file.
    #[error("hub: {0}")]
    Hub(String),
    /// An error of candle, the tensor library.
    #[error("tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// A [`Error::Config`] for `field`.
    pub fn config(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { field: field.into(), message: message.into() }
    }

    /// The same with the file that a configuration field stands in.
    pub(crate) fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Self::Config { field, message } => Self::format(path, format!("field `{field}` {message}")),
            other => other,
        }
    }

    /// A [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A [`Error::Format`] for `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), message: message.into() }
    }
}
