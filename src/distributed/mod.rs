//! Ranks of a data-parallel run: who they are, and how they exchange values.
//!
//! A [`Transport`] carries messages between two ranks, in order; there is one for threads of one process
//! ([`World::threads`]) and one for MPI (feature `mpi`). Everything else is built on it once, in [`World`]: gathering,
//! agreeing on errors, waiting with a time limit. A [`DeviceLink`] beside it carries tensors from device to device; there is
//! one for NCCL (feature `nccl`). Sums are formed by this crate in the order of ranks, not by the network, so that the same
//! ranks give the same bits on any.

mod alone;
mod environment;
mod exchange;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod threads;
mod transport;
mod world;

#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
#[cfg(feature = "nccl")]
pub use self::nccl::Nccl;
pub use environment::launched_ranks;
pub use exchange::{DeviceLink, PendingExchange, PollLink};
pub use transport::{Message, Transport};
pub use world::{DEFAULT_TIMEOUT, World};
