//! What carries messages between ranks.

use candle_core::Tensor;

use crate::Result;

/// A message from one rank to another.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Message {
    /// Elements of tensors: contiguous, f32, on the CPU. Nothing writes to them.
    Values(Tensor),
    /// A small value as JSON.
    Text(String),
    /// The sender waits for another rank.
    Alive,
    /// A rank has failed, and the run with it.
    Failure {
        /// The rank that failed, which may not be the sender.
        rank: usize,
        /// Its error.
        error: String,
    },
}

/// Carrier of messages between the ranks of a run, numbered from 0.
///
/// Messages between two ranks arrive in the order in which they were sent. No method waits: [`World`](super::World) does,
/// with a time limit.
pub trait Transport: Send + Sync {
    /// Number of this rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Starts sending a message to another rank.
    ///
    /// # Errors
    /// If the other rank is gone, or the network refuses the message.
    fn send(&self, to: usize, message: Message) -> Result<()>;

    /// The next message of another rank, if it has arrived.
    ///
    /// # Errors
    /// If the other rank is gone, or the network fails.
    fn try_receive(&self, from: usize) -> Result<Option<Message>>;

    /// Whether all messages have left this rank, so that it may end.
    ///
    /// # Errors
    /// If the network fails.
    fn is_idle(&self) -> Result<bool>;

    /// Ends the processes of all ranks at once, this one included. Where ranks are threads of one process, it does
    /// nothing.
    fn abort(&self) {}
}
