//! Errors of single samples.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::error::one_line;

/// A sample, or the reason why it cannot be used.
pub type SampleResult<T> = std::result::Result<T, BadSample>;

/// Calls `prepare` and turns a panic, for example of an image decoder on a hostile file, into an error of the sample.
pub(crate) fn guarded<T>(prepare: impl FnOnce() -> SampleResult<T>) -> SampleResult<T> {
    catch_unwind(AssertUnwindSafe(prepare)).unwrap_or(Err(BadSample::Panicked))
}

/// A path as a single line of bounded length.
fn shown(path: &Path) -> String {
    one_line(&path.display().to_string())
}

/// Reason why one sample of a data set cannot be used. The loader skips and counts bad samples; see
/// [`LoaderConfig::max_bad_share`](super::LoaderConfig::max_bad_share).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadSample {
    /// Another rank of the run has found the sample bad, for this reason.
    #[error("{}", one_line(.0))]
    Elsewhere(String),
    /// The record is not valid JSON, or has an unknown format.
    #[error("broken record: {}", one_line(.0))]
    BrokenRecord(String),
    /// The record is longer than the limit.
    #[error("record of {bytes} bytes, expected at most {limit}: is a bracket or line break missing?")]
    HugeRecord {
        /// Length of the record in bytes.
        bytes: u64,
        /// Longest record in bytes.
        limit: u64,
    },
    /// An image file of the record does not exist.
    #[error("no image {}: check the image folder of the data set", shown(.0))]
    MissingImage(PathBuf),
    /// An image of the record is outside of the image folder.
    #[error("image {} is outside of the image folder: move it there, or set a common parent folder", shown(.0))]
    OutsideImage(PathBuf),
    /// A video of the record does not exist.
    #[error("no video {}: check the image folder of the data set", shown(.0))]
    MissingVideo(PathBuf),
    /// The record has an image or video in a field that is not read.
    #[error(
        "field `{field}` names \"{name}\", but is not read: name it `image` or `video`, or say its name in `columns`"
    )]
    UnreadMedia {
        /// Name of the field, shortened.
        field: String,
        /// What the field says, shortened.
        name: String,
    },
    /// The record has no field with text.
    #[error(
        "no text in the fields {keys}: expected `conversations`, `question` and `answer`, `caption` or `text`, or say \
         the names of the fields in `columns`"
    )]
    NoText {
        /// Names of the fields, shortened.
        keys: String,
    },
    /// An image of an image folder has no text file.
    #[error("no text file {} beside the image", shown(.0))]
    MissingText(PathBuf),
    /// The conversation has no turn of the assistant with text.
    #[error("no turn of the assistant (`gpt`) with text to train on")]
    NoTurns,
    /// The numbers of `<image>` markers and images differ.
    #[error("{markers} `<image>` markers for {images} images: expected one each")]
    ImageMarkers {
        /// Number of markers in all turns.
        markers: usize,
        /// Number of images of the record.
        images: usize,
    },
    /// The numbers of `<video>` markers and videos differ.
    #[error("{markers} `<video>` markers for {videos} videos: expected one each")]
    VideoMarkers {
        /// Number of markers in all turns.
        markers: usize,
        /// Number of videos of the record.
        videos: usize,
    },
    /// The prepared sample is too long.
    #[error("{length} tokens long, more than the allowed {limit}")]
    TooLong {
        /// Length in tokens.
        length: usize,
        /// Largest allowed length in tokens.
        limit: usize,
    },
    /// Preparation of the sample panicked, most likely in the image decoder.
    #[error("preparation panicked, see the message above: the image may be damaged; please report it")]
    Panicked,
    /// Another error while reading or preparing the sample.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl BadSample {
    /// The same reason with the field or turn that it is about.
    pub(super) fn about(self, place: &str) -> Self {
        match self {
            Self::BrokenRecord(message) => Self::BrokenRecord(format!("{place}: {message}")),
            other => other,
        }
    }
}

impl From<BadSample> for Error {
    /// The error itself where another one made the sample bad, else [`Error::Data`].
    fn from(bad: BadSample) -> Self {
        match bad {
            BadSample::Failed(error) => error,
            other => Self::data(other.to_string()),
        }
    }
}
