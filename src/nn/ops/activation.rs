//! Activations, alone and gated.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math::{sigmoid, vectorised};
use super::{contiguous_slice, is_cpu_f32, with_slices};
use crate::config::Activation;
use crate::nn::tape::{apply1, apply2};

/// `act(x)`, element by element.
///
/// # Errors
/// From candle only.
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    match Swish::of(act) {
        Some(swish) if is_cpu_f32(&[x]) => apply1(&x.contiguous()?, swish),
        _ => composed(x, act),
    }
}

/// `act(gate) * up`, element by element.
///
/// # Errors
/// From candle, if the shapes differ.
pub fn gated_activation(gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        candle_core::bail!("gate {:?} and up {:?} differ in shape", gate.dims(), up.dims());
    }
    match Swish::of(act) {
        Some(swish) if is_cpu_f32(&[gate, up]) => apply2(&gate.contiguous()?, &up.contiguous()?, swish),
        _ => composed(gate, act)? * up,
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

/// `x * sigmoid(beta x)`: SiLU at `beta` 1, quick GELU at 1.702. The others are rare enough for candle's own.
#[derive(Clone, Copy)]
struct Swish {
    beta: f32,
}

impl Swish {
    fn of(act: Activation) -> Option<Self> {
        match act {
            Activation::Silu => Some(Self { beta: 1.0 }),
            Activation::QuickGelu => Some(Self { beta: 1.702 }),
            _ => None,
        }
    }

    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        x * sigmoid(self.beta * x)
    }

    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        let s = sigmoid(self.beta * x);
        (x * s, s * (1.0 + self.beta * x * (1.0 - s)))
    }
}

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 13;

impl CustomOp1 for Swish {
    fn name(&self) -> &'static str {
        "swish"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_slice(x, lx)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, &x)| *y = self.value(x)),
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
                            *dx = g * self.value_and_slope(x).1;
                        }
                    },
                );
            });
            dx
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

impl CustomOp2 for Swish {
    fn name(&self) -> &'static str {
        "gated-swish"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, lg: &Layout, up: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous_slice(gate, lg)?, contiguous_slice(up, lu)?);
        let mut y = vec![0f32; gate.len()];
        y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((y, gate), up)| {
            vectorised(
                #[inline(always)]
                || {
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = self.value(gate) * up;
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
                            let (value, slope) = self.value_and_slope(gate);
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
    use candle_core::DType;

    const ALL: [Activation; 5] =
        [Activation::Silu, Activation::QuickGelu, Activation::Gelu, Activation::GeluPytorchTanh, Activation::Relu];

    #[test]
    fn gradients_match_finite_differences() {
        // Not for ReLU, whose kink finite differences may step over.
        for act in &ALL[..4] {
            check_gradients(&[values(&[3, 7], 0.2)], |t| activation(&t[0], *act));
            check_gradients(&[values(&[3, 7], 0.2), values(&[3, 7], 0.9)], |t| gated_activation(&t[0], &t[1], *act));
        }
    }

    #[test]
    fn kernels_equal_the_composed_form() -> Result<()> {
        let x = (values(&[5, 9], 0.2) * 6.0)?;
        for act in ALL {
            let expected = activation(&x.to_dtype(DType::F64)?, act)?.to_dtype(DType::F32)?;
            assert!(max_diff(&activation(&x, act)?, &expected) < 2e-6, "{act:?}");
            let gated = (&expected * &x)?;
            assert!(max_diff(&gated_activation(&x, &x, act)?, &gated) < 1e-5, "{act:?}");
        }
        Ok(())
    }
}
