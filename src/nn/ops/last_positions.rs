//! The last positions of sequences.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{contiguous_slice, is_cpu_f32, is_tracked, with_slices};
use crate::nn::tape::apply1;

/// Returns the last `count` positions of `x` (batch, seq, width); `x` itself if it has no more.
///
/// `narrow` is not recorded on this crate's tape: a layer that uses it would fall back to candle's backward pass.
///
/// # Errors
/// Errors of candle, if `x` has another rank.
pub fn last_positions(x: &Tensor, count: usize) -> Result<Tensor> {
    let (_, seq, _) = x.dims3()?;
    match seq.checked_sub(count) {
        None | Some(0) => Ok(x.clone()),
        Some(_) if is_cpu_f32(&[x]) && is_tracked(&[x]) => apply1(&x.contiguous()?, LastPositions(count)),
        Some(start) => x.narrow(1, start, count)?.contiguous(),
    }
}

/// Custom op, with the number of positions.
struct LastPositions(usize);

impl CustomOp1 for LastPositions {
    fn name(&self) -> &'static str {
        "last-positions"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, seq, width) = layout.shape().dims3()?;
        let (x, start) = (contiguous_slice(x, layout)?, (seq - self.0) * width);
        let mut last = Vec::with_capacity(batch * self.0 * width);
        x.chunks_exact((seq * width).max(1)).for_each(|row| last.extend_from_slice(&row[start..]));
        Ok((CpuStorage::F32(last), Shape::from((batch, self.0, width))))
    }

    fn bwd(&self, x: &Tensor, _last: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, seq, width) = x.dims3()?;
        let (of_row, of_last) = (seq * width, self.0 * width);
        let dx = with_slices([&g.detach().contiguous()?], |[g]| {
            let mut dx = vec![0f32; x.elem_count()];
            let rows = dx.chunks_exact_mut(of_row.max(1)).zip(g.chunks_exact(of_last.max(1)));
            rows.for_each(|(dx, g)| dx[of_row - of_last..].copy_from_slice(g));
            dx
        })?;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    #[test]
    fn values_and_gradients_equal_those_of_narrow() -> Result<()> {
        let x = Var::from_tensor(&values(&[2, 5, 3], 0.1))?;
        for count in 0..=5 {
            let last = last_positions(&x, count)?;
            assert_eq!(last.dims(), [2, count, 3]);
            if count > 0 {
                assert_eq!(max_diff(&last, &x.narrow(1, 5 - count, count)?), 0.0);
                check_gradients(&[values(&[2, 5, 3], 0.1)], |t| last_positions(&t[0], count)?.sqr());
            }
            assert_eq!(last_positions(&x.to_dtype(DType::F16)?, count)?.dims(), last.dims());
        }
        assert_eq!(last_positions(&x, 9)?.dims(), [2, 5, 3]);
        assert!(last_positions(&values(&[2, 5], 0.1), 1).is_err());
        Ok(())
    }

    #[test]
    fn empty_tensors_stay_empty() -> Result<()> {
        for dims in [[0, 4, 2], [2, 4, 0], [0, 4, 0]] {
            let x = Var::zeros(&dims, DType::F32, &candle_core::Device::Cpu)?;
            let last = last_positions(&x, 3)?;
            assert_eq!(last.dims(), [dims[0], 3, dims[2]]);
            let grads = last.sum_all()?.backward()?;
            assert!(grads.get(&x).is_some_and(|g| g.dims() == dims));
        }
        Ok(())
    }
}
