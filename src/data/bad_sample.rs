//! Why a sample cannot be used.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::error::one_line;

/// A sample, or why there is none.
pub type SampleResult<T> = std::result::Result<T, BadSample>;

/// Prepares a sample: a decoder that panics on a hostile file costs that sample, not the run.
pub(crate) fn guarded<T>(prepare: impl FnOnce() -> SampleResult<T>) -> SampleResult<T> {
    catch_unwind(AssertUnwindSafe(prepare)).unwrap_or(Err(BadSample::Panicked))
}

/// A path as one line of bounded length.
fn shown(path: &Path) -> String {
    one_line(&path.display().to_string())
}

/// Why one sample of a data set cannot be used. The loader skips and counts such samples; see
/// [`LoaderConfig::max_bad_share`](super::LoaderConfig::max_bad_share).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadSample {
    /// The record is not valid JSON, or not of a known form.
    #[error("broken record: {}", one_line(.0))]
    BrokenRecord(String),
    /// The record takes more bytes than any record should.
    #[error("record of {bytes} bytes, more than the {limit} that are read: is a bracket or line break missing?")]
    HugeRecord {
        /// Length of the record.
        bytes: u64,
        /// The longest that is read.
        limit: u64,
    },
    /// An image file that the record names is not there.
    #[error("no image {}: check the image folder of the data set", shown(.0))]
    MissingImage(PathBuf),
    /// The record names an image that does not lie in the image folder.
    #[error("image {} is outside of the image folder: move it there, or set the folder above both", shown(.0))]
    OutsideImage(PathBuf),
    /// An image of an image folder has no text beside it.
    #[error("no text file {} beside the image", shown(.0))]
    MissingText(PathBuf),
    /// There is no turn, or none of the assistant's, to learn from.
    #[error("no turn of the assistant (`gpt`) with text to learn from")]
    NoTurns,
    /// `<image>` markers and images differ in number.
    #[error("{markers} `<image>` markers for {images} images: expected one each")]
    ImageMarkers {
        /// Markers in all turns.
        markers: usize,
        /// Images of the record.
        images: usize,
    },
    /// The prepared sample is longer than allowed.
    #[error("{length} tokens long, more than the allowed {limit}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// Something panicked on it, most likely the decoder of its image.
    #[error("preparing it panicked, see the message above: its image may be damaged; please report it")]
    Panicked,
    /// Reading or preparing failed otherwise.
    #[error(transparent)]
    Failed(#[from] Error),
}
