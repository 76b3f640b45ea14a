//! Ranks as processes that MPI connects.
//!
//! Only messages between two ranks are used, none of MPI's collective operations: this crate sums in its own order, and
//! its waits have a time limit. Sends and receives are started and looked at again later, so that they go on beside a
//! backward pass.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::raw::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Storage, Tensor};
use mpi::environment::Universe;
use mpi::{Threading, ffi};

use super::transport::{Message, Transport};
use crate::{Error, Result};

/// Tags of the kinds of messages.
const VALUES: c_int = 1;
const TEXT: c_int = 2;
const ALIVE: c_int = 3;
const FAILURE: c_int = 4;

/// This process among those that MPI connects. MPI ends when it is dropped.
pub struct Mpi {
    rank: usize,
    size: usize,
    state: Mutex<State>,
    _universe: Universe,
}

/// Messages under way. MPI is called under its lock only.
struct State {
    sends: VecDeque<Outgoing>,
    /// The message of each rank that is being received.
    receives: Vec<Option<Incoming>>,
}

/// A message that is being sent from memory that stays where it is.
struct Outgoing {
    request: ffi::MPI_Request,
    _content: Content,
}

struct Incoming {
    request: ffi::MPI_Request,
    tag: c_int,
    content: Content,
}

/// The memory of a message.
enum Content {
    /// That is sent: contiguous, f32, on the CPU.
    Tensor(Tensor),
    /// That is received.
    Values(Vec<f32>),
    Bytes(Vec<u8>),
}

// SAFETY: requests are handles without ties to a thread, and MPI is initialised for calls from several threads one at a
// time, which the lock around the state ensures.
unsafe impl Send for State {}

impl Mpi {
    /// Initialises MPI for this process, which may call it from any thread, one at a time.
    ///
    /// # Errors
    /// [`Error::Training`] if MPI is initialised already or does not support threads.
    pub fn initialize() -> Result<Self> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| Error::training("MPI is initialised already: make one world a process"))?;
        if threading < Threading::Serialized {
            let message = format!("MPI supports threads only as {threading:?}, expected Serialized: use another MPI");
            return Err(Error::training(message));
        }
        let (mut rank, mut size) = (0, 0);
        // SAFETY: MPI is initialised, and both places may be written.
        let codes = unsafe {
            ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN);
            [
                ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &raw mut rank),
                ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &raw mut size),
            ]
        };
        codes.into_iter().try_for_each(|code| checked(code, "the rank"))?;
        let (rank, size) = (rank.unsigned_abs() as usize, size.unsigned_abs() as usize);
        let state = State { sends: VecDeque::new(), receives: (0..size).map(|_| None).collect() };
        Ok(Self { rank, size, state: Mutex::new(state), _universe: universe })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send(&self, to: usize, message: Message) -> Result<()> {
        let (tag, content) = Content::of(message);
        let mut state = self.state();
        let outgoing = Outgoing::start(to, tag, content)?;
        state.sends.push_back(outgoing);
        state.free_sent()
    }

    fn try_receive(&self, from: usize) -> Result<Option<Message>> {
        let mut state = self.state();
        state.free_sent()?;
        let Some(place) = state.receives.get_mut(from) else { return Ok(None) };
        if place.is_none() {
            *place = Incoming::start(from)?;
        }
        let Some(incoming) = place else { return Ok(None) };
        if !is_done(&mut incoming.request)? {
            return Ok(None);
        }
        place.take().map(|incoming| incoming.content.into_message(from, incoming.tag)).transpose()
    }

    fn is_idle(&self) -> Result<bool> {
        let mut state = self.state();
        state.free_sent()?;
        Ok(state.sends.is_empty())
    }

    fn abort(&self) {
        // SAFETY: MPI is initialised as long as `self` lives.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, 1) };
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // After a failure messages may be under way: MPI still uses their memory.
        let mut state = self.state();
        std::mem::take(&mut state.sends).into_iter().for_each(std::mem::forget);
        std::mem::take(&mut state.receives).into_iter().for_each(std::mem::forget);
    }
}

impl State {
    /// Frees the memory of messages that have left.
    fn free_sent(&mut self) -> Result<()> {
        let mut waiting = VecDeque::with_capacity(self.sends.len());
        while let Some(mut send) = self.sends.pop_front() {
            match is_done(&mut send.request) {
                Ok(true) => {}
                Ok(false) => waiting.push_back(send),
                Err(error) => {
                    waiting.push_back(send);
                    waiting.append(&mut self.sends);
                    self.sends = waiting;
                    return Err(error);
                }
            }
        }
        self.sends = waiting;
        Ok(())
    }
}

impl Outgoing {
    fn start(to: usize, tag: c_int, content: Content) -> Result<Self> {
        let (address, count, kind) = content.memory()?;
        // SAFETY: the memory belongs to `content`, is not changed, and lives in the returned value as long as the request.
        let (code, request) = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let to = to as c_int;
            let code = ffi::MPI_Isend(address, count, kind, to, tag, ffi::RSMPI_COMM_WORLD, &raw mut request);
            (code, request)
        };
        checked(code, &format!("a message to rank {to}"))?;
        Ok(Self { request, _content: content })
    }
}

impl Incoming {
    /// Starts receiving the next message of a rank, if there is one.
    fn start(from: usize) -> Result<Option<Self>> {
        let what = format!("a message of rank {from}");
        let (mut is_there, mut status, mut message) =
            (0, MaybeUninit::<ffi::MPI_Status>::zeroed(), MaybeUninit::uninit());
        // SAFETY: all places may be written, and of a status all zeros are a valid value. The message is set if it is there.
        let (code, status, mut message) = unsafe {
            let (world, any) = (ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ANY_TAG);
            let (flag, handle) = (&raw mut is_there, message.as_mut_ptr());
            let code = ffi::MPI_Improbe(from as c_int, any, world, flag, handle, status.as_mut_ptr());
            checked(code, &what)?;
            if is_there == 0 {
                return Ok(None);
            }
            (code, status.assume_init(), message.assume_init())
        };
        checked(code, &what)?;
        let mut content = Content::for_message(&status)?;
        let (_, count, kind) = content.memory()?;
        let address = content.memory_mut().ok_or_else(|| Error::training("a message has no memory; this is a bug"))?;
        // SAFETY: the memory belongs to `content`, which nothing else reads, and lives in the returned value as long as the
        // request.
        let (code, request) = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let code = ffi::MPI_Imrecv(address, count, kind, &raw mut message, &raw mut request);
            (code, request)
        };
        checked(code, &what)?;
        Ok(Some(Self { request, tag: status.MPI_TAG, content }))
    }
}

impl Content {
    fn of(message: Message) -> (c_int, Self) {
        match message {
            Message::Values(values) => (VALUES, Self::Tensor(values)),
            Message::Text(text) => (TEXT, Self::Bytes(text.into_bytes())),
            Message::Alive => (ALIVE, Self::Bytes(Vec::new())),
            Message::Failure { rank, error } => (FAILURE, Self::Bytes(format!("{rank} {error}").into_bytes())),
        }
    }

    /// Memory for a message that has arrived.
    fn for_message(status: &ffi::MPI_Status) -> Result<Self> {
        let is_values = status.MPI_TAG == VALUES;
        // SAFETY: the constants are set once MPI is initialised.
        let kind = unsafe { if is_values { ffi::RSMPI_FLOAT } else { ffi::RSMPI_UINT8_T } };
        let mut count = 0;
        // SAFETY: the status is that of a message, and the place may be written.
        checked(unsafe { ffi::MPI_Get_count(status, kind, &raw mut count) }, "the size of a message")?;
        let count = usize::try_from(count).map_err(|_| Error::training("MPI cannot tell the size of a message"))?;
        Ok(if is_values { Self::Values(vec![0.0; count]) } else { Self::Bytes(vec![0; count]) })
    }

    /// Address, number of elements and type of the memory.
    fn memory(&self) -> Result<(*const std::ffi::c_void, c_int, ffi::MPI_Datatype)> {
        // SAFETY: the constants are set once MPI is initialised.
        let (float, byte) = unsafe { (ffi::RSMPI_FLOAT, ffi::RSMPI_UINT8_T) };
        let (address, len, kind) = match self {
            Self::Tensor(tensor) => {
                let (address, len) = elements(tensor)?;
                (address.cast(), len, float)
            }
            Self::Values(values) => (values.as_ptr().cast(), values.len(), float),
            Self::Bytes(bytes) => (bytes.as_ptr().cast(), bytes.len(), byte),
        };
        let count =
            c_int::try_from(len).map_err(|_| Error::training(format!("a message of {len} elements is too long")))?;
        Ok((address, count, kind))
    }

    /// Address of memory that is to be written; none for that of a tensor, which others may read.
    fn memory_mut(&mut self) -> Option<*mut std::ffi::c_void> {
        match self {
            Self::Tensor(_) => None,
            Self::Values(values) => Some(values.as_mut_ptr().cast()),
            Self::Bytes(bytes) => Some(bytes.as_mut_ptr().cast()),
        }
    }

    fn into_message(self, from: usize, tag: c_int) -> Result<Message> {
        let unknown =
            || Error::training(format!("rank {from} sent a message of unknown kind {tag}: use one program on all"));
        let text = |content: Self| match content {
            Self::Bytes(bytes) => String::from_utf8(bytes).map_err(|_| unknown()),
            _ => Err(unknown()),
        };
        match (tag, self) {
            (VALUES, Self::Values(values)) => {
                let count = values.len();
                Ok(Message::Values(Tensor::from_vec(values, count, &Device::Cpu)?))
            }
            (TEXT, content) => Ok(Message::Text(text(content)?)),
            (ALIVE, _) => Ok(Message::Alive),
            (FAILURE, content) => {
                let text = text(content)?;
                let (rank, error) = text.split_once(' ').ok_or_else(unknown)?;
                Ok(Message::Failure { rank: rank.parse().map_err(|_| unknown())?, error: error.into() })
            }
            _ => Err(unknown()),
        }
    }
}

/// Address and number of the elements of a tensor, which stay where they are as long as it lives.
fn elements(tensor: &Tensor) -> Result<(*const f32, usize)> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(cpu), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::training("a message must be a contiguous tensor on the CPU; this is a bug"));
    };
    Ok((cpu.as_slice::<f32>()?[start..end].as_ptr(), end - start))
}

/// Whether a request is complete; its memory is free then.
fn is_done(request: &mut ffi::MPI_Request) -> Result<bool> {
    let mut done = 0;
    // SAFETY: the request was started and its memory lives beside it.
    let code = unsafe { ffi::MPI_Test(request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) };
    checked(code, "a message under way")?;
    Ok(done != 0)
}

fn checked(code: c_int, what: &str) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    Err(Error::training(format!(
        "MPI failed with code {code} at {what}: a rank or the network is gone; resume the run"
    )))
}
