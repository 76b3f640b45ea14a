//! Tensors from GPU to GPU by NCCL. Everything else goes by the transport: the id of the connection, agreement on errors,
//! and the news that a rank has failed.
//!
//! As over MPI, ranks send to each other and each adds up in the order of ranks; none of NCCL's sums is used.

use std::os::raw::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use candle_core::cuda_backend::cudarc::nccl::{result, sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Storage, Tensor};

use super::World;
use super::exchange::{DeviceLink, PollLink};
use crate::{Error, Result};

/// This rank among those whose GPUs NCCL connects, each with one of its own.
pub struct Nccl {
    rank: usize,
    device: Device,
    cuda: CudaDevice,
    /// Exchanges go on beside the computation, which has another stream.
    stream: Arc<CudaStream>,
    communicator: Arc<Mutex<Communicator>>,
}

/// NCCL's handle, which one thread uses at a time.
struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL has no ties between a communicator and a thread.
unsafe impl Send for Communicator {}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: the handle is valid until here. Unlike its orderly end, this does not wait for ranks that are gone.
        let _ = unsafe { result::comm_abort(self.0) };
    }
}

impl Nccl {
    /// Connects the GPUs of the ranks of `world`, which all call it. NCCL waits without a time limit for a rank that hangs
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::Training`] for a device of any rank that is no GPU, and if NCCL refuses to connect them.
    pub fn connect(world: &World, device: &Device) -> Result<Self> {
        let cuda = world.agree(gpu(device))?;
        let id = world.from_first(|| {
            let id = result::get_uniqueid().map_err(|e| failed(&e, "the id of the connection"))?;
            Ok(id.internal.map(|byte| byte as u8).to_vec())
        })?;
        let mut internal = [0; 128];
        internal.iter_mut().zip(id).for_each(|(to, byte)| *to = byte as _);
        let compute = cuda.cuda_stream();
        compute.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let stream = compute.context().new_stream().map_err(candle_core::Error::wrap)?;
        let mut handle = std::ptr::null_mut();
        let (size, rank) = (world.size() as c_int, world.rank() as c_int);
        // SAFETY: the place may be written, and the id is that of rank 0.
        let connected = unsafe { result::comm_init_rank(&raw mut handle, size, sys::ncclUniqueId { internal }, rank) };
        let connected = connected.map(|_| Communicator(handle));
        let communicator = world
            .agree(connected.map_err(|e| failed(&e, "the connection of the ranks, each with a GPU of its own")))?;
        Ok(Self {
            rank: world.rank(),
            device: device.clone(),
            cuda,
            stream,
            communicator: Arc::new(Mutex::new(communicator)),
        })
    }

    /// Starts all sends and receives of an exchange as one operation, so that none waits for another.
    fn start_all(&self, parts: &[Tensor], buffers: &mut [Option<CudaSlice<f32>>]) -> Result<()> {
        let communicator = locked(&self.communicator);
        result::group_start().map_err(|e| failed(&e, "the start of an exchange"))?;
        let mut started = Ok(());
        for (peer, (part, buffer)) in parts.iter().zip(buffers).enumerate().filter(|(peer, _)| *peer != self.rank) {
            started = started.and_then(|()| self.send(&communicator, part, peer));
            started = started.and_then(|()| match buffer {
                Some(buffer) => self.receive(&communicator, buffer, peer),
                None => Ok(()),
            });
        }
        let ended = result::group_end().map_err(|e| failed(&e, "an exchange"));
        started.and(ended.map(drop))
    }

    fn send(&self, communicator: &Communicator, part: &Tensor, peer: usize) -> Result<()> {
        if part.elem_count() == 0 {
            return Ok(());
        }
        let (storage, layout) = part.storage_and_layout();
        let (Storage::Cuda(cuda), Some((from, to))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(Error::training("NCCL sends contiguous tensors of a GPU only; this is a bug"));
        };
        let elements = cuda.as_cuda_slice::<f32>()?.slice(from..to);
        let (address, _reading) = elements.device_ptr(&self.stream);
        // SAFETY: the memory holds as many elements, and lives until the exchange is over, as `parts` does.
        let sent = unsafe {
            let (kind, stream) = (sys::ncclDataType_t::ncclFloat32, self.stream.cu_stream() as sys::cudaStream_t);
            result::send(address as *const _, to - from, kind, peer as c_int, communicator.0, stream)
        };
        sent.map(drop).map_err(|e| failed(&e, &format!("tensors for rank {peer}")))
    }

    fn receive(&self, communicator: &Communicator, buffer: &mut CudaSlice<f32>, peer: usize) -> Result<()> {
        let count = buffer.len();
        let (address, _writing) = buffer.device_ptr_mut(&self.stream);
        // SAFETY: the memory has room for as many elements, and lives until the exchange is over.
        let received = unsafe {
            let (kind, stream) = (sys::ncclDataType_t::ncclFloat32, self.stream.cu_stream() as sys::cudaStream_t);
            result::recv(address as *mut _, count, kind, peer as c_int, communicator.0, stream)
        };
        received.map(drop).map_err(|e| failed(&e, &format!("tensors of rank {peer}")))
    }
}

impl DeviceLink for Nccl {
    fn device(&self) -> &Device {
        &self.device
    }

    fn start(&self, parts: Vec<Tensor>, counts: &[usize]) -> Result<PollLink> {
        let compute = self.cuda.cuda_stream();
        let buffer = |(rank, &count): (usize, &usize)| {
            // SAFETY: NCCL writes all elements before any is read.
            (rank != self.rank && count > 0).then(|| unsafe { self.cuda.alloc::<f32>(count) }).transpose()
        };
        let mut buffers = counts.iter().enumerate().map(buffer).collect::<candle_core::Result<Vec<_>>>()?;
        // The parts are computed and the buffers are there before the exchange begins.
        self.stream.join(&compute).map_err(candle_core::Error::wrap)?;
        self.start_all(&parts, &mut buffers)?;
        let done = self.stream.record_event(None).map_err(candle_core::Error::wrap)?;
        let (cuda, own, communicator) = (self.cuda.clone(), self.rank, Arc::clone(&self.communicator));
        let mut under_way = Some((parts, buffers));
        Ok(Box::new(move || {
            if !done.try_is_complete().map_err(candle_core::Error::wrap)? {
                return locked(&communicator).check().map(|()| None);
            }
            let Some((mut parts, buffers)) = under_way.take() else { return Ok(None) };
            compute.wait(&done).map_err(candle_core::Error::wrap)?;
            for (rank, (part, buffer)) in parts.iter_mut().zip(buffers).enumerate() {
                match buffer {
                    Some(buffer) => *part = of_buffer(buffer, &cuda),
                    None if rank != own => *part = Tensor::zeros(0, DType::F32, &Device::Cpu)?,
                    None => {}
                }
            }
            Ok(Some(parts))
        }))
    }
}

impl Communicator {
    /// Whether NCCL has found an error since, such as a rank that is gone.
    fn check(&self) -> Result<()> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the handle is valid, and the place may be written.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.0, &raw mut state) };
        let both = asked.result().and_then(|_| state.result());
        both.map(drop).map_err(|e| failed(&e, "an exchange under way"))
    }
}

fn of_buffer(buffer: CudaSlice<f32>, cuda: &CudaDevice) -> Tensor {
    let count = buffer.len();
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(buffer, cuda.clone()));
    Tensor::from_storage(storage, count, BackpropOp::none(), false)
}

fn gpu(device: &Device) -> Result<CudaDevice> {
    let Device::Cuda(cuda) = device else {
        return Err(Error::training("NCCL connects CUDA devices only: train on one, or build without `nccl`"));
    };
    Ok(cuda.clone())
}

fn locked(communicator: &Mutex<Communicator>) -> MutexGuard<'_, Communicator> {
    communicator.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: &result::NcclError, what: &str) -> Error {
    let code = error.0 as u32;
    Error::training(format!(
        "NCCL failed with code {code} at {what}: `NCCL_DEBUG=WARN` makes it say more; resume the run when it is mended"
    ))
}
