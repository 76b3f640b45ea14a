//! Data sets: LLaVA records, image folders, shapes world, and the data loader.

mod bad_sample;
mod dataset;
mod grouping;
mod llava;
mod loader;
mod prefetch;
mod record;
mod record_index;
pub mod shapes;

pub(crate) use bad_sample::guarded;
pub use bad_sample::{BadSample, SampleResult};
pub use dataset::{Concat, Dataset, Records};
pub use grouping::{Grouping, Length};
pub use llava::{ImageFolder, RecordFile, open};
pub use loader::{BadReport, Group, Loader, LoaderConfig, LoaderState};
pub(crate) use prefetch::Prefetch;
pub use record::{IMAGE_MARKER, ImageSource, Record, Turn};
pub use record_index::RecordIndex;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// ChaCha generator number `stream` of `seed`: the same values on every machine, and independent of all other streams,
/// so that a counter is sufficient to resume.
pub(crate) fn random_stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
