//! Ranks as threads of one process: for tests, and as the simplest model of a transport.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Mutex, PoisonError};

use super::alone::no_rank;
use super::transport::{Message, Transport};
use crate::{Error, Result};

/// One rank among threads.
pub(super) struct Thread {
    rank: usize,
    /// Channels to each rank.
    senders: Vec<Sender<Message>>,
    /// Channels from each rank.
    receivers: Vec<Mutex<Receiver<Message>>>,
}

impl Thread {
    /// The ranks of a run of `size` threads, in order.
    pub fn ranks(size: usize) -> Vec<Self> {
        let rank = |rank| Self { rank, senders: Vec::new(), receivers: Vec::new() };
        let mut ranks: Vec<Self> = (0..size).map(rank).collect();
        for from in 0..size {
            for to in 0..size {
                let (sender, receiver) = channel();
                ranks[from].senders.push(sender);
                ranks[to].receivers.push(Mutex::new(receiver));
            }
        }
        ranks
    }
}

impl Transport for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.senders.len()
    }

    fn send(&self, to: usize, message: Message) -> Result<()> {
        let sender = self.senders.get(to).ok_or_else(|| no_rank(to))?;
        // A rank that has ended may have said why before: the next wait for it tells, a lost message would hide it.
        let _ = sender.send(message);
        Ok(())
    }

    fn try_receive(&self, from: usize) -> Result<Option<Message>> {
        let receiver = self.receivers.get(from).ok_or_else(|| no_rank(from))?;
        match receiver.lock().unwrap_or_else(PoisonError::into_inner).try_recv() {
            Ok(message) => Ok(Some(message)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone(from)),
        }
    }

    fn is_idle(&self) -> Result<bool> {
        Ok(true)
    }
}

fn gone(rank: usize) -> Error {
    Error::training(format!("rank {rank} has ended before the run did: see its error, then resume the run"))
}
