//! How many ranks a launcher of processes has started.

use std::time::Duration;

use candle_core::Device;

use super::World;
use crate::Result;

/// Variables in which launchers say how many processes they have started: OpenMPI's, and those of MPICH and Slurm.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
/// Variables that show a launcher which does not say it: PMIx, as Slurm's `srun --mpi=pmix` uses it.
#[cfg(feature = "mpi")]
const MARKS: [&str; 2] = ["PMIX_RANK", "PMI_RANK"];

/// Number of processes that `mpirun` or `srun` has started together with this one, as far as the environment says so.
pub fn launched_ranks() -> Option<usize> {
    SIZES.iter().find_map(|name| std::env::var(name).ok()?.parse().ok())
}

impl World {
    /// The world of the processes that `mpirun` or `srun` has started; this process alone if neither did. `timeout` is as
    /// in [`World::with_timeout`].
    ///
    /// Call it once, on the main thread; MPI ends when the last clone is dropped.
    ///
    /// # Errors
    /// [`Error::Training`](crate::Error::Training) if there are several processes and this program was built without the
    /// feature `mpi`, or with another MPI than that of the launcher.
    pub fn from_environment(timeout: Duration) -> Result<Self> {
        let launched = launched_ranks();
        #[cfg(feature = "mpi")]
        if launched.is_some() || MARKS.iter().any(|name| std::env::var_os(name).is_some()) {
            return Self::of_mpi(launched, timeout);
        }
        match launched {
            Some(ranks) if ranks > 1 => Err(crate::Error::training(format!(
                "{ranks} processes were started together, but this program was built without MPI, so that each would \
                 train alone: build it with `--features mpi`"
            ))),
            _ => Ok(Self::default().with_timeout(timeout)),
        }
    }

    /// The same world, whose tensors go from GPU to GPU if all of its several ranks have a CUDA `device`, and the program
    /// was built with the feature `nccl`. All ranks call it, each with a GPU of its own.
    ///
    /// # Errors
    /// If only some ranks have a CUDA device, if NCCL cannot connect the ranks, and if a rank has failed.
    pub fn for_device(self, device: &Device) -> Result<Self> {
        #[cfg(not(feature = "nccl"))]
        let _ = device;
        #[cfg(feature = "nccl")]
        if self.size() > 1 && self.link.is_none() && self.any(device.is_cuda())? {
            let link = super::Nccl::connect(&self, device)?;
            return Ok(self.with_link(link));
        }
        Ok(self)
    }

    #[cfg(feature = "mpi")]
    fn of_mpi(launched: Option<usize>, timeout: Duration) -> Result<Self> {
        let world = Self::over(super::Mpi::initialize()?).with_timeout(timeout);
        match launched {
            Some(ranks) if ranks != world.size() => Err(crate::Error::training(format!(
                "the launcher started {ranks} processes, but MPI sees {}: this program was built with another MPI than \
                 that of the launcher; use the `mpirun` of the MPI it was built with",
                world.size()
            ))),
            _ => Ok(world),
        }
    }
}
