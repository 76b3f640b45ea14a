//! Dropout whose masks come from a seed and are drawn again in the backward pass, so that none is kept.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32, with_slice};
use crate::nn::tape::apply1;
use crate::nn::tensor_data::CHUNK;
use crate::nn::thread_local_scope::scoped;

thread_local! {
    /// Seed of the masks of the forward and backward pass on this thread; `None` drops nothing.
    static SEED: RefCell<Option<u64>> = const { RefCell::new(None) };
}

/// Runs `f` with dropout, whose masks depend on `seed` alone. Without it, [`dropout`] drops nothing. A forward pass and
/// its backward pass belong in one call, since checkpointed layers compute their forward pass again.
pub(crate) fn with_dropout<R>(seed: u64, f: impl FnOnce() -> R) -> R {
    scoped(&SEED, seed, f).0
}

/// Sets each element to 0 with this probability and divides the others by `1 - probability`, inside of a step of
/// training; elsewhere returns `x`. `stream` tells the layers of a model apart.
///
/// # Errors
/// Errors of candle only.
pub fn dropout(x: &Tensor, probability: f64, stream: u64) -> Result<Tensor> {
    let Some(mask) = Mask::of_pass(probability, stream, false) else { return Ok(x.clone()) };
    masked(x, mask)
}

/// What [`dropout`] takes from `x`, `x - dropout(x)`; `None` where it takes nothing.
///
/// # Errors
/// Errors of candle only.
pub fn dropout_rest(x: &Tensor, probability: f64, stream: u64) -> Result<Option<Tensor>> {
    Mask::of_pass(probability, stream, true).map(|mask| masked(x, mask)).transpose()
}

fn masked(x: &Tensor, mask: Mask) -> Result<Tensor> {
    if is_cpu_f32(&[x]) {
        return apply1(&x.contiguous()?, mask);
    }
    let mask = Tensor::from_vec(mask.applied(&vec![1.0; x.elem_count()]), x.shape(), &Device::Cpu)?;
    x * mask.to_dtype(x.dtype())?.to_device(x.device())?
}

/// The custom op: element-wise multiplication by a mask.
#[derive(Clone, Copy)]
struct Mask {
    seed: u64,
    stream: u64,
    probability: f64,
    /// Whether the factors are those of what is taken: 1 minus the factor.
    is_rest: bool,
}

impl Mask {
    /// The mask of the pass on this thread, if it drops anything.
    fn of_pass(probability: f64, stream: u64, is_rest: bool) -> Option<Self> {
        let seed = SEED.with_borrow(|seed| *seed).filter(|_| probability > 0.0)?;
        Some(Self { seed, stream, probability, is_rest })
    }

    /// `x` times the mask. ChaCha is a counter-based generator, so each task starts at its place in the stream.
    fn applied(self, x: &[f32]) -> Vec<f32> {
        let limit = (self.probability * f64::from(u32::MAX)) as u32;
        let scale = (1.0 / (1.0 - self.probability)) as f32;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(task, (y, x))| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(self.stream);
            rng.set_word_pos((task * CHUNK) as u128);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = if rng.next_u32() < limit { 0.0 } else { x * scale });
            if self.is_rest {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = x - *y);
            }
        });
        y
    }
}

impl CustomOp1 for Mask {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.applied(contiguous_slice(x, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.detach().contiguous()?.to_dtype(DType::F32)?;
        Tensor::from_vec(with_slice(&g, |g| self.applied(g))?, x.shape(), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    #[test]
    fn masks_follow_seed_and_stream_and_keep_the_mean() -> Result<()> {
        let x = Tensor::ones(200_000, DType::F32, &Device::Cpu)?;
        assert_eq!(max_diff(&dropout(&x, 0.5, 1)?, &x), 0.0, "nothing is dropped outside of training");
        let draw = |seed, stream| with_dropout(seed, || dropout(&x, 0.25, stream).unwrap());
        let first = draw(1, 1);
        assert_eq!(max_diff(&first, &draw(1, 1)), 0.0);
        assert!(max_diff(&first, &draw(2, 1)) > 1.0 && max_diff(&first, &draw(1, 2)) > 1.0);
        let mean = first.mean_all()?.to_scalar::<f32>()?;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        Ok(())
    }

    #[test]
    fn gradients_match_finite_differences() {
        with_dropout(3, || {
            check_gradients(&[values(&[4, 6], 0.1)], |t| dropout(&t[0], 0.4, 2)?.sqr());
            check_gradients(&[values(&[4, 6], 0.1)], |t| dropout_rest(&t[0], 0.4, 2)?.unwrap().sqr());
        });
    }

    #[test]
    fn what_is_kept_and_what_is_taken_are_the_whole() -> Result<()> {
        let x = values(&[40, 6], 0.1);
        assert!(dropout_rest(&x, 0.4, 2)?.is_none());
        with_dropout(3, || {
            let rest = dropout_rest(&x, 0.4, 2)?.unwrap();
            assert!(max_diff(&(dropout(&x, 0.4, 2)? + &rest)?, &x) < 1e-6 && max_diff(&rest, &x) > 0.1);
            Ok(())
        })
    }
}
