//! Data sets: records in files and folders of many formats, shapes world, and the data loader.

mod bad_sample;
mod bad_share;
mod dataset;
mod fields;
mod grouping;
mod index_set;
mod loader;
mod media;
mod order;
mod prefetch;
mod record;
pub mod shapes;
mod sharing;
mod source;
mod summary;

pub(crate) use bad_sample::guarded;
pub use bad_sample::{BadSample, SampleResult};
pub use dataset::{Concat, Dataset, Records};
pub use fields::Columns;
pub(crate) use fields::{has_image_name, is_address, is_embedded, lenient_json, names as field_names, within};
pub use grouping::{Grouping, Length};
pub use index_set::IndexSet;
pub use loader::{BadReport, Group, Loader, LoaderConfig, LoaderState};
pub use media::{EmbeddedFile, ImageSource, VideoSource};
pub use order::Portion;
pub(crate) use order::check_weight;
pub(crate) use prefetch::Prefetch;
pub use record::{IMAGE_MARKER, Record, Turn, VIDEO_MARKER};
pub use source::{FilesSource, ImageFolder, RecordFile, RecordIndex, SourcePaths, open};
pub(crate) use source::{JsonObjects, expand_pattern};
pub use summary::{LeftOut, SourceSummary, summarise};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// ChaCha generator number `stream` of `seed`: the same values on every machine, and independent of all other streams,
/// so that a counter is sufficient to resume.
pub(crate) fn random_stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
