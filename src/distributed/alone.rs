//! The only rank of a run in one process.

use super::transport::{Message, Transport};
use crate::{Error, Result};

pub(super) struct Alone;

impl Transport for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn send(&self, to: usize, _: Message) -> Result<()> {
        Err(no_rank(to))
    }

    fn try_receive(&self, from: usize) -> Result<Option<Message>> {
        Err(no_rank(from))
    }

    fn is_idle(&self) -> Result<bool> {
        Ok(true)
    }
}

/// The error for a rank that does not exist, or that would be this one.
pub(super) fn no_rank(rank: usize) -> Error {
    Error::training(format!("there is no other rank {rank} to exchange messages with; this is a bug"))
}
