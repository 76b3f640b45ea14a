//! Ranks of a data-parallel run: who they are, and how they exchange values.
//!
//! A [`Transport`] carries messages between two ranks, in order; there is one for threads of one process
//! ([`World::threads`]) and one for MPI (feature `mpi`). Everything else is built on it once, in [`World`]: gathering,
//! agreeing on errors, waiting with a time limit. Sums are formed by this crate in the order of ranks, not by the
//! transport, so that the same ranks give the same bits on any network.

mod alone;
mod environment;
#[cfg(feature = "mpi")]
mod mpi;
mod threads;
mod transport;
mod world;

#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
pub use environment::launched_ranks;
pub use transport::{Message, Transport};
pub use world::{DEFAULT_TIMEOUT, World};
