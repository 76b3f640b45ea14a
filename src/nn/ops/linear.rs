//! Linear layer `x W^T + b` that computes no gradient of frozen weights.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32, with_slices};
use crate::nn::deliver;
use crate::nn::kernels::dispatch::{GEMV_MAX_ROWS, MatmulBackend};
use crate::nn::kernels::gemv::gemv;
use crate::nn::kernels::mat::MatRef;
use crate::nn::kernels::matmul::matmul;
use crate::nn::tape::{apply2, apply3};
use crate::options::Precision;

/// `x W^T + b` for `x` (.., in), `weight` (out, in) and `bias` (out); the result is (.., out).
///
/// The gradients are `dx = g W`, `dW = g^T x` and `db = 1^T g`. candle's own matmul computes `dW` also for a frozen
/// weight; this one does not.
///
/// # Errors
/// Errors of candle, if shapes, devices or dtypes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_with(x, weight, bias, Precision::Full)
}

/// [`linear`] with the precision of f32 matmuls on the CPU; a forward pass of up to 32 rows is always f32, and a
/// row's result is then the same bits whatever the other rows and their number.
///
/// # Errors
/// The errors of [`linear`].
pub fn linear_with(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let (out_size, in_size) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == in_size => *last = out_size,
        _ => candle_core::bail!("linear layer expects width {in_size}, found {:?}", x.dims()),
    }
    linear_as(x, weight, bias, precision, shape)
}

/// [`linear_with`] for any shape of `x` and of the result: each `in` consecutive elements of `x` are a row, and each
/// `out` consecutive elements of the result, which has shape `shape`, are its output.
///
/// Splitting and merging heads this way saves a reshaped tensor, which takes three passes over memory in candle's
/// backward pass.
///
/// # Errors
/// The errors of [`linear`].
pub fn linear_as(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    precision: Precision,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let ((outputs, inputs), shape) = (weight.dims2()?, shape.into());
    let rows = x.elem_count().checked_div(inputs).or(shape.elem_count().checked_div(outputs)).unwrap_or(0);
    if x.elem_count() != rows * inputs || shape.elem_count() != rows * outputs {
        candle_core::bail!(
            "linear layer of {inputs} inputs and {outputs} outputs makes no {shape:?} of {:?}",
            x.dims()
        );
    }
    let on_cpu = is_cpu_f32(&[x, weight]) && bias.is_none_or(|bias| is_cpu_f32(&[bias]));
    let linear = |shape| LinearOp { rows, precision, shape };
    if on_cpu && (!HAS_BLAS || precision != Precision::Full || rows <= GEMV_MAX_ROWS) {
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        return match bias {
            Some(bias) => apply3(&x, &weight, bias, linear(Some(shape))),
            None => apply2(&x, &weight, linear(Some(shape))),
        };
    }
    let x = x.reshape((rows, inputs))?.contiguous()?;
    let y = match bias {
        Some(bias) if on_cpu => apply3(&x, weight, bias, linear(None))?,
        Some(bias) => apply2(&x, weight, linear(None))?.broadcast_add(bias)?,
        None => apply2(&x, weight, linear(None))?,
    };
    y.reshape(shape)
}

/// Whether candle was built with a BLAS, which then computes f32 matmuls.
const HAS_BLAS: bool = cfg!(any(feature = "mkl", feature = "accelerate"));

/// The custom op, without bias (two inputs) or with it (three).
struct LinearOp {
    rows: usize,
    precision: Precision,
    /// Shape of the result if this crate's kernels compute it; `None` leaves the matmul to candle.
    shape: Option<Shape>,
}

pub(super) fn forward<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> Result<(S, Shape)> {
    let (n, k) = lx.shape().dims2()?;
    let (m, _) = lw.shape().dims2()?;
    let y = x.matmul(w, (1, n, m, k), lx, &lw.transpose(0, 1)?)?;
    Ok((y, Shape::from((n, m))))
}

impl LinearOp {
    /// Forward pass with this crate's kernels.
    fn own_forward(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<CpuStorage> {
        let (x, w, (outputs, inputs)) = (contiguous_slice(x, lx)?, contiguous_slice(w, lw)?, lw.shape().dims2()?);
        Ok(CpuStorage::F32(match MatmulBackend::for_linear(self.rows, self.precision) {
            MatmulBackend::Gemv if inputs > 0 => gemv(x, w, inputs),
            _ => {
                let (x, w) = (MatRef::contiguous(x, (self.rows, inputs)), MatRef::contiguous(w, (outputs, inputs)));
                matmul(x, w.transposed(), self.precision)
            }
        }))
    }

    /// Gradients of input and weight, each if it is tracked.
    fn backward(&self, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.detach().contiguous()?;
        let dx = || self.input_gradient(&g, &w.detach(), x.shape());
        let dw = || deliver(w, self.weight_gradient(&g, &x.detach(), w.shape())?);
        Ok((x.track_op().then(dx).transpose()?, if w.track_op() { dw()? } else { None }))
    }

    /// Computes `g w` of (rows, out) and (out, in).
    fn input_gradient(&self, g: &Tensor, w: &Tensor, shape: &Shape) -> Result<Tensor> {
        if self.shape.is_none() {
            return g.matmul(w);
        }
        let (outputs, inputs) = w.dims2()?;
        let dx = with_slices([g, w], |[g, w]| {
            let (g, w) = (MatRef::contiguous(g, (self.rows, outputs)), MatRef::contiguous(w, (outputs, inputs)));
            matmul(g, w, self.precision)
        })?;
        Tensor::from_vec(dx, shape, g.device())
    }

    /// Computes `g^T x` of (rows, out) and (rows, in).
    fn weight_gradient(&self, g: &Tensor, x: &Tensor, shape: &Shape) -> Result<Tensor> {
        if self.shape.is_none() {
            return g.t()?.matmul(x);
        }
        let (outputs, inputs) = shape.dims2()?;
        let dw = with_slices([g, x], |[g, x]| {
            let (g, x) = (MatRef::contiguous(g, (self.rows, outputs)), MatRef::contiguous(x, (self.rows, inputs)));
            matmul(g.transposed(), x, self.precision)
        })?;
        Tensor::from_vec(dw, shape, g.device())
    }
}

/// Adds the bias to each row (`outputs` elements) of `y`, in place.
pub(super) fn add_bias(y: &mut CpuStorage, outputs: usize, bias: &CpuStorage, layout: &Layout) -> Result<()> {
    let bias = contiguous_slice(bias, layout)?;
    let CpuStorage::F32(y) = y else { candle_core::bail!("a bias is added to f32") };
    if bias.len() != outputs {
        candle_core::bail!("linear layer of {outputs} outputs has a bias of {}", bias.len());
    }
    let add = |row: &mut [f32]| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    if y.len() > 1 << 15 {
        y.par_chunks_mut(outputs).with_min_len(16).for_each(add);
    } else if outputs > 0 {
        y.chunks_mut(outputs).for_each(add);
    }
    Ok(())
}

/// Sums the rows of `g` if the bias is trained.
pub(super) fn bias_gradient(bias: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    let (g, width) = (g.detach().contiguous()?, bias.elem_count());
    // candle's sum over rows runs on one thread and is many times slower.
    let sum = with_slices([&g], |[g]| {
        let mut sum = vec![0f32; width];
        let columns = sum.par_chunks_mut(COLUMNS).enumerate().with_min_len((1 << 16) / g.len().max(1));
        columns.for_each(|(i, sum)| {
            for row in g.chunks(width) {
                sum.iter_mut().zip(&row[i * COLUMNS..]).for_each(|(sum, g)| *sum += g);
            }
        });
        sum
    })?;
    Tensor::from_vec(sum, bias.shape(), g.device()).map(Some)
}

/// Number of columns of one parallel task.
const COLUMNS: usize = 256;

impl CustomOp2 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        match &self.shape {
            Some(shape) => Ok((self.own_forward(x, lx, w, lw)?, shape.clone())),
            None => forward(x, lx, w, lw),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        forward(x, lx, w, lw)
    }

    fn metal_fwd(&self, x: &MetalStorage, lx: &Layout, w: &MetalStorage, lw: &Layout) -> Result<(MetalStorage, Shape)> {
        forward(x, lx, w, lw)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, g)
    }
}

impl CustomOp3 for LinearOp {
    fn name(&self) -> &'static str {
        "linear-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut y, shape) = CustomOp2::cpu_fwd(self, x, lx, w, lw)?;
        add_bias(&mut y, lw.dim(0)?, b, lb)?;
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, g)?;
        Ok((dx, dw, bias_gradient(b, g)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;
    use candle_core::DType;

    #[test]
    fn gradients_match_finite_differences() {
        let inputs = [values(&[2, 3, 4], 0.1), values(&[5, 4], 0.2), values(&[5], 0.3)];
        check_gradients(&inputs, |t| linear(&t[0], &t[1], Some(&t[2])));
        check_gradients(&inputs[..2], |t| linear(&t[0], &t[1], None));
    }

    #[test]
    fn splitting_and_merging_heads_keeps_values_and_gradients() -> Result<()> {
        let inputs = [values(&[2, 3, 4], 0.1), values(&[6, 4], 0.2), values(&[6], 0.3)];
        let split = |t: &[Tensor]| linear_as(&t[0], &t[1], Some(&t[2]), Precision::Full, (2, 3, 3, 2));
        let plain = linear(&inputs[0], &inputs[1], Some(&inputs[2]))?.reshape((2, 3, 3, 2))?;
        assert_eq!(max_diff(&split(&inputs)?, &plain), 0.0);
        check_gradients(&inputs, split);
        let heads = [values(&[2, 3, 2, 2], 0.1), values(&[5, 4], 0.2)];
        let merged = |t: &[Tensor]| linear_as(&t[0], &t[1], None, Precision::Full, (2, 3, 5));
        let plain = linear(&heads[0].reshape((2, 3, 4))?, &heads[1], None)?;
        assert_eq!(max_diff(&merged(&heads)?, &plain), 0.0);
        check_gradients(&heads, merged);
        for shape in [(2, 3, 4), (2, 2, 5), (0, 0, 0)] {
            assert!(linear_as(&heads[0], &heads[1], None, Precision::Full, shape).is_err());
        }
        Ok(())
    }

    #[test]
    fn empty_and_transposed_inputs_are_as_in_candle() -> Result<()> {
        let device = &candle_core::Device::Cpu;
        for (rows, outputs, inputs) in [(0, 3, 2), (12, 0, 2), (12, 3, 0), (1, 3, 0), (0, 0, 0)] {
            let tensor = |dims: (usize, usize)| candle_core::Var::zeros(dims, DType::F32, device);
            let (x, w) = (tensor((rows, inputs))?, tensor((outputs, inputs))?);
            let y = linear(&x, &w, None)?;
            assert_eq!(y.dims(), [rows, outputs]);
            let grads = y.sum_all()?.backward()?;
            assert!([&x, &w].iter().all(|var| grads.get(var).is_some_and(|g| g.dims() == var.dims())));
        }
        let (x, w) = (values(&[9, 4], 0.1), values(&[4, 5], 0.2));
        assert!(max_diff(&linear(&x, &w.t()?, None)?, &x.matmul(&w)?) < 1e-6);
        check_gradients(&[x, w], |t| linear(&t[0], &t[1].t()?, None));
        Ok(())
    }

    #[test]
    fn equals_matmul_and_add() -> Result<()> {
        let (x, w, b) = (values(&[2, 3, 4], 0.1), values(&[5, 4], 0.2), values(&[5], 0.3));
        let expected = x.broadcast_matmul(&w.t()?)?.broadcast_add(&b)?;
        assert!(max_diff(&linear(&x, &w, Some(&b))?, &expected) < 1e-6);
        Ok(())
    }

    #[test]
    fn bias_and_its_gradient_equal_those_of_candle() -> Result<()> {
        let [x, w, b] = [values(&[120, 8], 0.1), values(&[300, 8], 0.2), values(&[300], 0.3)]
            .map(|t| candle_core::Var::from_tensor(&t));
        let (x, w, b, g) = (x?, w?, b?, values(&[120, 300], 0.4));
        let y = linear(&x, &w, Some(&b))?;
        assert!(max_diff(&y, &x.matmul(&w.t()?)?.broadcast_add(&b)?) < 1e-5);
        let grads = (y * &g)?.sum_all()?.backward()?;
        let found = grads.get(&b).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
        assert!(max_diff(found, &g.sum(0)?) < 1e-4);
        Ok(())
    }

    #[test]
    fn bf16_matmuls_equal_those_of_rounded_tensors() -> Result<()> {
        if !Precision::has_fast_bf16() {
            return Ok(());
        }
        // More rows than the GEMV takes, which multiplies in f32.
        let round = |t: &Tensor| t.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        let (x, w) = (values(&[40, 33], 0.1), values(&[50, 33], 0.2));
        let (x, w, g) =
            (candle_core::Var::from_tensor(&x)?, candle_core::Var::from_tensor(&w)?, values(&[40, 50], 0.4));
        let y = linear_with(&x, &w, None, Precision::Bf16)?;
        assert!(max_diff(&y, &round(&x)?.matmul(&round(&w)?.t()?)?) < 2e-5);
        let grads = (y * &g)?.sum_all()?.backward()?;
        let gradient = |var| grads.get(var).ok_or_else(|| candle_core::Error::Msg("no gradient".into()));
        assert!(max_diff(gradient(&x)?, &round(&g)?.matmul(&round(&w)?)?) < 2e-5);
        assert!(max_diff(gradient(&w)?, &round(&g)?.t()?.matmul(&round(&x)?)?) < 2e-5);
        for (rows, outputs, depth) in [(0, 50, 33), (20, 0, 33), (20, 50, 0), (0, 0, 0)] {
            let (x, w) = (vec![1.0; rows * depth], vec![1.0; outputs * depth]);
            let (x, w) = (MatRef::contiguous(&x, (rows, depth)), MatRef::contiguous(&w, (outputs, depth)));
            assert_eq!(matmul(x, w.transposed(), Precision::Bf16), vec![0.0; rows * outputs]);
        }
        Ok(())
    }

    #[test]
    fn frozen_weight_gets_no_gradient() -> Result<()> {
        let x = candle_core::Var::from_tensor(&values(&[3, 4], 0.1))?;
        let w = values(&[5, 4], 0.2);
        let grads = linear(&x, &w, None)?.sum_all()?.backward()?;
        assert!(grads.get(&x).is_some());
        assert!(grads.get(&w).is_none());
        Ok(())
    }

    #[test]
    fn wrong_width_is_an_error() {
        assert!(linear(&values(&[2, 3], 0.0), &values(&[5, 4], 0.0), None).is_err());
    }
}
