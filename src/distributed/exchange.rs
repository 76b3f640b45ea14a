//! Exchanges of tensors between all ranks at once.

use candle_core::{DType, Device, Tensor};

use super::World;
use super::transport::Message;
use crate::{Error, Result};

/// A connection between the devices of all ranks, for tensors that need not pass through the memory of the host.
pub trait DeviceLink: Send + Sync {
    /// Device of the tensors of this rank.
    fn device(&self) -> &Device;

    /// Starts an exchange as [`World::exchange`] describes it, and returns what polls it.
    ///
    /// # Errors
    /// If the link refuses a tensor or has failed.
    fn start(&self, parts: Vec<Tensor>, counts: &[usize]) -> Result<PollLink>;
}

/// Returns the tensor of each rank, once the exchange is complete.
pub type PollLink = Box<dyn FnMut() -> Result<Option<Vec<Tensor>>> + Send>;

/// An exchange under way. Exchanges end in the order in which they began.
pub struct PendingExchange {
    world: World,
    way: Way,
}

enum Way {
    /// One message from each rank; the tensors that are here, by rank, and the elements of each.
    Messages {
        parts: Vec<Option<Tensor>>,
        counts: Vec<usize>,
    },
    Link(PollLink),
}

impl World {
    /// Device of the tensors that [`Self::exchange`] takes and returns: that of the [link](Self::with_link), else the CPU.
    pub fn exchange_device(&self) -> &Device {
        self.link.as_ref().map_or(&Device::Cpu, |link| link.device())
    }

    /// Starts giving each rank one tensor and getting one of each: `parts[r]` goes to rank `r`, from which `counts[r]`
    /// elements are expected; the part for this rank is kept. Tensors are f32 of one dimension, contiguous, and on the
    /// [device of exchanges](Self::exchange_device).
    ///
    /// # Errors
    /// If a rank is gone, and for another number of parts than ranks.
    pub fn exchange(&self, parts: Vec<Tensor>, counts: Vec<usize>) -> Result<PendingExchange> {
        if (parts.len(), counts.len()) != (self.size(), self.size()) {
            let found = (parts.len(), counts.len());
            return Err(Error::training(format!(
                "{found:?} parts and counts for {} ranks; this is a bug",
                self.size()
            )));
        }
        let way = match &self.link {
            Some(link) => Way::Link(link.start(parts, &counts)?),
            None => self.start_messages(parts, counts)?,
        };
        Ok(PendingExchange { world: self.clone(), way })
    }

    fn start_messages(&self, parts: Vec<Tensor>, counts: Vec<usize>) -> Result<Way> {
        let mut held = Vec::with_capacity(parts.len());
        for (rank, part) in parts.into_iter().enumerate() {
            if rank == self.rank() {
                held.push(Some(part));
                continue;
            }
            if part.elem_count() > 0 {
                self.transport.send(rank, Message::Values(part))?;
            }
            let is_empty = counts[rank] == 0;
            held.push(if is_empty { Some(Tensor::zeros(0, DType::F32, &Device::Cpu)?) } else { None });
        }
        Ok(Way::Messages { parts: held, counts })
    }
}

impl PendingExchange {
    /// The first rank whose tensor has not come; `None` where a link carries them all.
    pub fn awaited(&self) -> Option<usize> {
        match &self.way {
            Way::Messages { parts, .. } => parts.iter().position(Option::is_none),
            Way::Link(_) => None,
        }
    }

    /// The tensor of each rank, once all have come.
    ///
    /// # Errors
    /// If a rank has failed or is gone, and if other elements arrive than expected.
    pub fn poll(&mut self) -> Result<Option<Vec<Tensor>>> {
        let (parts, counts) = match &mut self.way {
            Way::Link(poll) => return poll(),
            Way::Messages { parts, counts } => (parts, counts),
        };
        for (rank, part) in parts.iter_mut().enumerate().filter(|(_, part)| part.is_none()) {
            *part = self.world.try_receive_values(rank, counts[rank])?;
        }
        Ok(parts.iter().all(Option::is_some).then(|| parts.drain(..).flatten().collect()))
    }

    /// Waits for the tensor of each rank.
    ///
    /// # Errors
    /// As [`Self::poll`], and if a rank is silent for too long.
    pub fn wait(mut self) -> Result<Vec<Tensor>> {
        let world = self.world.clone();
        loop {
            let awaited = self.awaited();
            let mut come = None;
            world.wait_for(awaited, || {
                come = self.poll()?;
                Ok((come.is_some() || self.awaited() != awaited).then_some(()))
            })?;
            if let Some(tensors) = come {
                return Ok(tensors);
            }
        }
    }
}
