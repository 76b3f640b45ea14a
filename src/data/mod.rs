//! Data sets: LLaVA records, shapes world, loading and collating.

pub mod shapes;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Stream number `stream` of the generator seeded with `seed`: the same numbers on every machine, and independent of
/// every other stream, so that a counter is all the state there is to save.
pub(crate) fn random_stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
