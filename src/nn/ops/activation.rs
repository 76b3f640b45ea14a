//! Activation functions, alone and gated.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32, with_slices};
use crate::config::Activation;
use crate::nn::kernels::simd_math::{exp, sigmoid, vectorised};
use crate::nn::tape::{apply1, apply2};

/// Computes `act(x)`, elementwise.
///
/// # Errors
/// Errors of candle only.
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    if is_cpu_f32(&[x]) { by_curve(x, None, act) } else { composed(x, act) }
}

/// Computes `act(gate) * up`, elementwise.
///
/// # Errors
/// Errors of candle, if the shapes differ.
pub fn gated_activation(gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        candle_core::bail!("gate {:?} and up {:?} differ in shape", gate.dims(), up.dims());
    }
    if is_cpu_f32(&[gate, up]) { by_curve(gate, Some(up), act) } else { composed(gate, act)? * up }
}

fn by_curve(x: &Tensor, factors: Option<&Tensor>, act: Activation) -> Result<Tensor> {
    match act {
        Activation::Silu => apply(x, factors, Swish { beta: 1.0 }),
        Activation::QuickGelu => apply(x, factors, Swish { beta: 1.702 }),
        Activation::Gelu => apply(x, factors, Gelu),
        Activation::GeluPytorchTanh => apply(x, factors, TanhGelu),
        Activation::Relu => apply(x, factors, Relu),
    }
}

fn apply<C: Curve>(x: &Tensor, factors: Option<&Tensor>, curve: C) -> Result<Tensor> {
    match factors {
        Some(factors) => apply2(&x.contiguous()?, &factors.contiguous()?, Pointwise(curve)),
        None => apply1(&x.contiguous()?, Pointwise(curve)),
    }
}

fn composed(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::Silu => x.silu(),
        Activation::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluPytorchTanh => x.gelu(),
        Activation::Relu => x.relu(),
    }
}

/// Scalar function with its derivative; branch-free, so that loops over it vectorise.
trait Curve: Copy + Send + Sync + 'static {
    fn value_and_slope(self, x: f32) -> (f32, f32);
}

/// SiLU at `beta` 1, quick GELU at 1.702: `x * sigmoid(beta x)`.
#[derive(Clone, Copy)]
struct Swish {
    beta: f32,
}

impl Curve for Swish {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        let s = sigmoid(self.beta * x);
        (x * s, s * (1.0 + self.beta * x * (1.0 - s)))
    }
}

/// GELU in its tanh approximation: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, which is `x` times the sigmoid of
/// twice the tanh's argument.
#[derive(Clone, Copy)]
struct TanhGelu;

impl Curve for TanhGelu {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        const TWICE_ROOT: f32 = 1.595_769_2;
        const CUBIC: f32 = TWICE_ROOT * 0.044_715;
        // Far from 0, the curve is linear and the square would overflow.
        let square = (x * x).min(1e4);
        let s = sigmoid(x * (TWICE_ROOT + CUBIC * square));
        (x * s, s + x * s * (1.0 - s) * (TWICE_ROOT + 3.0 * CUBIC * square))
    }
}

/// GELU: `x P(x)` with the normal distribution's `P` after Abramowitz and Stegun, Handbook of Mathematical Functions,
/// 7.1.26, whose error is close to f32 precision.
#[derive(Clone, Copy)]
struct Gelu;

impl Curve for Gelu {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        const ROOT_OF_2PI: f32 = 2.506_628_3;
        let bell = exp(-0.5 * x * x);
        let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
        let p = 1.061_405_4 * t - 1.453_152;
        let p = p * t + 1.421_413_7;
        let p = p * t - 0.284_496_74;
        let p = p * t + 0.254_829_6;
        // The tail probability beyond |x|.
        let tail = 0.5 * p * t * bell;
        let below = if x < 0.0 { tail } else { 1.0 - tail };
        (x * below, below + x * bell / ROOT_OF_2PI)
    }
}

/// ReLU: `max(x, 0)`; NaN propagates.
#[derive(Clone, Copy)]
struct Relu;

impl Curve for Relu {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        if x <= 0.0 { (0.0, 0.0) } else { (x, 1.0) }
    }
}

/// Custom op: a curve of one tensor, or of one tensor times a second one.
struct Pointwise<C>(C);

/// Elements of one parallel task.
const CHUNK: usize = 1 << 13;

impl<C: Curve> CustomOp1 for Pointwise<C> {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_slice(x, lx)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, &x)| *y = self.0.value_and_slope(x).0),
            );
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let dx = with_slices([x, &g], |[x, g]| {
            let mut dx = vec![0f32; x.len()];
            dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(g.par_chunks(CHUNK)).for_each(|((dx, x), g)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
                            *dx = g * self.0.value_and_slope(x).1;
                        }
                    },
                );
            });
            dx
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

impl<C: Curve> CustomOp2 for Pointwise<C> {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, lg: &Layout, up: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous_slice(gate, lg)?, contiguous_slice(up, lu)?);
        let mut y = vec![0f32; gate.len()];
        y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, gate), up)| {
            vectorised(
                #[inline(always)]
                || {
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = self.0.value_and_slope(gate).0 * up;
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), lg.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (d_gate, d_up) = with_slices([gate, up, &g], |[gate, up, g]| {
            let (mut d_gate, mut d_up) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
            let outputs = d_gate.par_chunks_mut(CHUNK).zip(d_up.par_chunks_mut(CHUNK));
            let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(g.par_chunks(CHUNK));
            outputs.zip(inputs).for_each(|((d_gate, d_up), ((gate, up), g))| {
                let inputs = gate.iter().zip(up).zip(g);
                vectorised(
                    #[inline(always)]
                    || {
                        for ((d_gate, d_up), ((&gate, &up), &g)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
                            let (value, slope) = self.0.value_and_slope(gate);
                            *d_gate = g * up * slope;
                            *d_up = g * value;
                        }
                    },
                );
            });
            (d_gate, d_up)
        })?;
        let tensor = |data| Tensor::from_vec(data, gate.shape(), gate.device());
        Ok((Some(tensor(d_gate)?), Some(tensor(d_up)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;
    use candle_core::{DType, Device, Error, Var};

    const ALL: [Activation; 5] =
        [Activation::Silu, Activation::QuickGelu, Activation::Gelu, Activation::GeluPytorchTanh, Activation::Relu];

    #[test]
    fn gradients_match_finite_differences() {
        // ReLU is left out: finite differences may step over its kink.
        for act in &ALL[..4] {
            for scale in [1.0, 4.0] {
                let x = (values(&[3, 7], 0.2) * scale).unwrap();
                check_gradients(std::slice::from_ref(&x), |t| activation(&t[0], *act));
                check_gradients(&[x, values(&[3, 7], 0.9)], |t| gated_activation(&t[0], &t[1], *act));
            }
        }
    }

    #[test]
    fn curves_are_linear_far_outside_and_nan_propagates() -> Result<()> {
        let x = Var::new(&[-1e20f32, -60.0, 60.0, 1e20], &Device::Cpu)?;
        for act in ALL {
            let y = activation(&x, act)?;
            let grads = y.sum_all()?.backward()?;
            let slopes = grads.get(&x).ok_or_else(|| Error::Msg("no gradient".into()))?.to_vec1::<f32>()?;
            let close = |found: &[f32], expected: [f32; 4]| {
                found.iter().zip(expected).all(|(y, expected)| (y - expected).abs() <= 1e-6 * (1.0 + expected.abs()))
            };
            let y = y.to_vec1::<f32>()?;
            assert!(
                close(&y, [0.0, 0.0, 60.0, 1e20]) && close(&slopes, [0.0, 0.0, 1.0, 1.0]),
                "{act:?} {y:?} {slopes:?}"
            );
            let nothing = activation(&Tensor::new(&[f32::NAN], &Device::Cpu)?, act)?;
            assert!(nothing.to_vec1::<f32>()?[0].is_nan(), "{act:?}");
        }
        Ok(())
    }

    #[test]
    fn kernels_equal_the_composed_form() -> Result<()> {
        let x = (values(&[50, 9], 0.2) * 6.0)?;
        for act in ALL {
            let expected = activation(&x.to_dtype(DType::F64)?, act)?.to_dtype(DType::F32)?;
            assert!(max_diff(&activation(&x, act)?, &expected) < 2e-6, "{act:?}");
            let gated = (&expected * &x)?;
            assert!(max_diff(&gated_activation(&x, &x, act)?, &gated) < 1e-5, "{act:?}");
        }
        Ok(())
    }
}
