//! Low-rank update of a linear layer's result: the second half of a LoRA adapter, `y + scale * z B^T`, with gradients; and
//! both halves for decoding, `y + scale * (x A^T) B^T`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{RowScale, contiguous_slice, is_cpu_f32, is_tracked, vectorised, with_slices};
use crate::nn::deliver;
use crate::nn::kernels::dispatch::MatmulBackend;
use crate::nn::kernels::gemv::gemv;
use crate::nn::kernels::mat::{MatMut, MatRef};
use crate::nn::kernels::matmul::matmul;
use crate::nn::kernels::narrow::NarrowMatrix;
use crate::nn::tape::apply3;
use crate::nn::tensor_data::{CHUNK, take_elements};
use crate::options::Precision;

/// `y + scale * z B^T` for `y` of any shape whose consecutive `out` elements are a row, `z` (rows, rank) and `b`
/// (out, rank); the result has the shape of `y`. The bits of a row of up to 32 rows do not depend on the other rows.
///
/// The gradients are `dy = g`, `dz = scale * g B` and `dB = scale * g^T z`.
///
/// # Errors
/// Errors of candle, if shapes, devices or dtypes do not fit.
pub fn low_rank_update(y: &Tensor, z: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    update(y, z, b, scale, false)
}

/// [`low_rank_update`] of a fresh result `y` of a linear layer, which nothing reads again, not even its backward pass: its
/// elements move into the new result, so that only one of the two takes memory.
///
/// # Errors
/// As [`low_rank_update`].
pub(crate) fn low_rank_update_of_fresh(y: &Tensor, z: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    update(y, z, b, scale, true)
}

fn update(y: &Tensor, z: &Tensor, b: &Tensor, scale: f64, is_fresh: bool) -> Result<Tensor> {
    let ((rows, rank), (outputs, inner)) = (z.dims2()?, b.dims2()?);
    if rank != inner || y.elem_count() != rows * outputs {
        candle_core::bail!("low-rank update of {:?} from {:?} and {:?}", y.dims(), z.dims(), b.dims());
    }
    if is_cpu_f32(&[y, z, b]) {
        let (y, z, b) = (y.contiguous()?, z.contiguous()?, b.contiguous()?);
        let taken = Mutex::new(is_fresh.then(|| take_elements(&y)).flatten());
        return apply3(&y, &z, &b, LowRankUpdate { rows, rank, outputs, scale: scale as f32, taken });
    }
    y + (z.matmul(&b.t()?)? * scale)?.reshape(y.shape())?
}

/// The custom op.
struct LowRankUpdate {
    rows: usize,
    rank: usize,
    outputs: usize,
    scale: f32,
    /// Elements of `y`, if they were taken from it.
    taken: Mutex<Option<Vec<f32>>>,
}

impl LowRankUpdate {
    /// `scale * left right`.
    fn product(&self, left: MatRef, right: MatRef) -> Vec<f32> {
        let mut product = matmul(left, right, Precision::Full);
        product.iter_mut().for_each(|value| *value *= self.scale);
        product
    }

    fn z_gradient(&self, g: &Tensor, b: &Tensor) -> Result<Tensor> {
        let dz = with_slices([g, b], |[g, b]| {
            let g = MatRef::contiguous(g, (self.rows, self.outputs));
            self.product(g, MatRef::contiguous(b, (self.outputs, self.rank)))
        })?;
        Tensor::from_vec(dz, (self.rows, self.rank), g.device())
    }

    fn b_gradient(&self, g: &Tensor, z: &Tensor) -> Result<Tensor> {
        let db = with_slices([g, z], |[g, z]| {
            let g = MatRef::contiguous(g, (self.rows, self.outputs));
            self.product(g.transposed(), MatRef::contiguous(z, (self.rows, self.rank)))
        })?;
        Tensor::from_vec(db, (self.outputs, self.rank), g.device())
    }
}

impl CustomOp3 for LowRankUpdate {
    fn name(&self) -> &'static str {
        "low-rank-update"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        ly: &Layout,
        z: &CpuStorage,
        lz: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (z, b) = (contiguous_slice(z, lz)?, contiguous_slice(b, lb)?);
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut sum = taken.map_or_else(|| contiguous_slice(y, ly).map(<[f32]>::to_vec), Ok)?;
        let product = match MatmulBackend::for_linear(self.rows, Precision::Full) {
            MatmulBackend::Gemv if self.rank > 0 => gemv(z, b, self.rank),
            _ => {
                let b = MatRef::contiguous(b, (self.outputs, self.rank));
                matmul(MatRef::contiguous(z, (self.rows, self.rank)), b.transposed(), Precision::Full)
            }
        };
        let add = |(sum, product): (&mut [f32], &[f32])| {
            vectorised(
                #[inline(always)]
                || sum.iter_mut().zip(product).for_each(|(sum, product)| *sum += self.scale * product),
            );
        };
        sum.par_chunks_mut(CHUNK).zip(product.par_chunks(CHUNK)).for_each(add);
        Ok((CpuStorage::F32(sum), ly.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        z: &Tensor,
        b: &Tensor,
        _sum: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.detach().contiguous()?;
        let dz = z.track_op().then(|| self.z_gradient(&g, &b.detach())).transpose()?;
        let db = if b.track_op() { deliver(b, self.b_gradient(&g, &z.detach())?)? } else { None };
        Ok((y.track_op().then_some(g), dz, db))
    }
}

/// Both matrices of a LoRA adapter that does not change, in the form that decoding reads; a clone shares them.
#[derive(Clone)]
pub struct FixedLora {
    matrices: Arc<[NarrowMatrix; 2]>,
    rank: usize,
    scale: f32,
}

impl fmt::Debug for FixedLora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FixedLora of rank {}", self.rank)
    }
}

impl FixedLora {
    /// Copies `a` (rank, in) and `b` (out, rank), which are f32 on the CPU; `half` allows f16.
    ///
    /// # Errors
    /// Errors of candle, for other tensors.
    pub fn new(a: &Tensor, b: &Tensor, scale: f64, half: bool) -> Result<Self> {
        let ((rank, inputs), _) = (a.dims2()?, b.dims2()?);
        let [a, b] = with_slices([&a.contiguous()?, &b.contiguous()?], |[a, b]| {
            [NarrowMatrix::new(a, inputs, half), NarrowMatrix::new(b, rank, half)]
        })?;
        Ok(Self { matrices: Arc::new([a, b]), rank, scale: scale as f32 })
    }

    /// Whether [`Self::add_to`] is for these tensors and `rows` rows: few, f32 on the CPU, and without a graph.
    pub fn is_for(&self, y: &Tensor, x: &Tensor, rows: usize, row_scale: Option<RowScale<'_>>) -> bool {
        let is_few = MatmulBackend::for_linear(rows, Precision::Full) == MatmulBackend::Gemv;
        let is_served = row_scale.is_none_or(|row_scale| row_scale.is_cpu_f32() && !row_scale.is_tracked());
        is_few && is_served && self.rank > 0 && is_cpu_f32(&[y, x]) && !is_tracked(&[y, x])
    }

    /// `y + scale * (x A^T) B^T` for `rows` rows, then scaled by DoRA; the result has the shape of `y`. The bits of a row do
    /// not depend on the other rows.
    ///
    /// # Errors
    /// Errors of candle, if shapes do not fit.
    pub fn add_to(&self, y: &Tensor, x: &Tensor, rows: usize, row_scale: Option<RowScale<'_>>) -> Result<Tensor> {
        y.contiguous()?.apply_op2_no_bwd(&x.contiguous()?, &FixedUpdate { lora: self, rows, row_scale })
    }
}

/// The custom op.
struct FixedUpdate<'a> {
    lora: &'a FixedLora,
    rows: usize,
    row_scale: Option<RowScale<'a>>,
}

impl CustomOp2 for FixedUpdate<'_> {
    fn name(&self) -> &'static str {
        "fixed-lora"
    }

    fn cpu_fwd(&self, y: &CpuStorage, ly: &Layout, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, x) = (contiguous_slice(y, ly)?, contiguous_slice(x, lx)?);
        let Self { lora: FixedLora { matrices, rank, scale }, rows, row_scale } = *self;
        let [a, b] = &**matrices;
        if x.len() != rows * a.inputs() || y.len() != rows * b.outputs() {
            candle_core::bail!("low-rank update of {:?} from {:?}", ly.shape(), lx.shape());
        }
        let (mut z, mut sum) = (vec![0f32; rows * rank], y.to_vec());
        a.add_product(x, 1.0, MatMut::contiguous(&mut z, (rows, *rank)));
        b.add_product(&z, *scale, MatMut::contiguous(&mut sum, (rows, b.outputs())));
        row_scale.map_or(Ok(()), |row_scale| row_scale.scale(&mut sum))?;
        Ok((CpuStorage::F32(sum), ly.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    #[test]
    fn values_and_gradients_equal_those_of_composed_operations() -> Result<()> {
        for rows in [1, 3, 33] {
            let (y, z, b) = (values(&[rows, 2, 5], 0.1), values(&[rows * 2, 3], 0.2), values(&[5, 3], 0.3));
            let expected = (&y + (z.matmul(&b.t()?)? * 0.7)?.reshape(y.shape())?)?;
            assert!(max_diff(&low_rank_update(&y, &z, &b, 0.7)?, &expected) < 1e-5);
            let kept = y.copy()?;
            assert!(max_diff(&low_rank_update_of_fresh(&y, &z, &b, 0.7)?, &expected) < 1e-5);
            assert!(max_diff(&low_rank_update_of_fresh(&kept.narrow(0, 0, rows)?, &z, &b, 0.7)?, &expected) < 1e-5);
        }
        let inputs = [values(&[2, 5], 0.1), values(&[2, 3], 0.2), values(&[5, 3], 0.3)];
        check_gradients(&inputs, |t| low_rank_update(&t[0], &t[1], &t[2], 0.7)?.sqr());
        assert!(low_rank_update(&values(&[2, 5], 0.1), &values(&[3, 3], 0.2), &values(&[5, 3], 0.3), 1.0).is_err());
        Ok(())
    }

    #[test]
    fn a_fixed_adapter_gives_what_the_changing_one_gives() -> Result<()> {
        let (a, b) = (values(&[3, 20], 0.4), values(&[5, 3], 0.3));
        let (magnitude, norms, bias) = (values(&[5], 0.5), (values(&[5], 0.6) + 2.0)?, values(&[5], 0.7));
        for rows in [1, 2, 9, 32] {
            let (y, x) = (values(&[rows, 5], 0.1), values(&[1, rows, 20], 0.2));
            let z = x.reshape((rows, 20))?.matmul(&a.t()?)?;
            let expected = low_rank_update(&y, &z, &b, 0.7)?;
            for (half, tolerance) in [(false, 1e-5), (true, 1e-2)] {
                let fixed = FixedLora::new(&a, &b, 0.7, half)?;
                assert!(fixed.is_for(&y, &x, rows, None));
                let found = fixed.add_to(&y, &x, rows, None)?;
                assert!(max_diff(&found, &expected) < tolerance, "{rows} rows, half: {half}");
                let row_scale = RowScale { magnitude: &magnitude, norms: Some(&norms), bias: Some(&bias) };
                let scaled = fixed.add_to(&y, &x, rows, Some(row_scale))?;
                assert!(max_diff(&scaled, &row_scale.apply(&found)?) < 1e-5, "{rows} rows, half: {half}");
            }
        }
        let fixed = FixedLora::new(&a, &b, 0.7, false)?;
        let (y, x) = (values(&[33, 5], 0.1), values(&[33, 20], 0.2));
        assert!(!fixed.is_for(&y, &x, 33, None), "many rows take the matmul");
        assert!(fixed.add_to(&y, &x, 32, None).is_err());
        let tracked = candle_core::Var::from_tensor(&values(&[1, 20], 0.2))?;
        assert!(!fixed.is_for(&values(&[1, 5], 0.1), &tracked, 1, None));
        Ok(())
    }

    #[test]
    fn rows_are_the_same_bits_in_any_number() -> Result<()> {
        let (y, z, b) = (values(&[9, 40], 0.1), values(&[9, 16], 0.2), values(&[40, 16], 0.3));
        let all = low_rank_update(&y, &z, &b, 2.0)?;
        for row in 0..9 {
            let alone = low_rank_update(&y.narrow(0, row, 1)?, &z.narrow(0, row, 1)?, &b, 2.0)?;
            assert_eq!(alone.to_vec2::<f32>()?, all.narrow(0, row, 1)?.to_vec2::<f32>()?);
        }
        Ok(())
    }
}
