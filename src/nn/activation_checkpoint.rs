//! A model's graph in segments, each with a backward pass of its own, so that its activations need not live from the
//! forward pass to the end of the backward pass, as they do in a graph of candle's.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Error as CandleError, Layout, MetalStorage, Result as CandleResult, Shape,
    Storage, Tensor, Var,
};

use super::tape::Tape;
use crate::Result;

/// What becomes of the activations of a layer that is trained.
///
/// Gradients of a model are the same to the bit either way. With anything but [`Self::Kept`] they are found by
/// [`super::gradients_of`] only (which [`crate::optim::Gradients::of`] calls); candle's own `backward` fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// They stay until the graph is dropped, as candle has it.
    #[default]
    Kept,
    /// They stay until the backward pass has used them. It can pass only once.
    Released,
    /// Only the layer's input stays, and the backward pass computes them again: gradient checkpointing.
    Recomputed,
}

/// `f(x)` as a segment of its own.
///
/// Of what is tracked, `f` may hold parameters only: what was computed from them, or from another segment's input, comes
/// in as `x`. With [`Activations::Recomputed`], `f` must compute the same both times.
///
/// # Errors
/// Those of `f`, and if its result is on another device than `x`.
pub fn checkpoint(
    activations: Activations,
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (output, piece) = match activations {
        Activations::Kept => return f(x),
        Activations::Released => {
            let input = if x.track_op() { Var::from_tensor(&x.detach())?.into_inner() } else { x.clone() };
            let (output, tape) = Tape::of(|| f(&input));
            let output = output?;
            (output.clone(), Piece::Graph(Mutex::new(Some((input, output, tape)))))
        }
        Activations::Recomputed => (f(&x.detach())?, Piece::Function(Box::new(f))),
    };
    if !x.track_op() && !output.track_op() {
        // Nothing in here is trained.
        return Ok(output);
    }
    // Without a tracked input the op would be no part of the graph, and its parameters would get no gradient.
    let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.into_inner() };
    Ok(x.apply_op1(Segment { output: Mutex::new(Some(output.detach())), piece })?)
}

/// What is computed twice.
type Function = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// What a segment's backward pass needs.
enum Piece {
    /// Input and output of a graph that ends at the input, and its operations; taken by the backward pass.
    Graph(Mutex<Option<(Tensor, Tensor, Tape)>>),
    /// What makes that graph once more.
    Function(Function),
}

struct Segment {
    /// The result, on its way into the outer graph.
    output: Mutex<Option<Tensor>>,
    piece: Piece,
}

impl Segment {
    /// Hands the finished output to candle, which wants it as the result of this op.
    fn output<S>(&self, copy: impl FnOnce(&Storage, &Layout) -> CandleResult<S>) -> CandleResult<(S, Shape)> {
        let Some(output) = take(&self.output) else { candle_core::bail!("a segment's output was already taken") };
        // A copy of a storage is a copy of all of it, whatever part the tensor is.
        let output = output.force_contiguous()?;
        let (storage, layout) = output.storage_and_layout();
        Ok((copy(&storage, layout)?, layout.shape().clone()))
    }
}

fn take<T>(once: &Mutex<Option<T>>) -> Option<T> {
    once.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl CustomOp1 for Segment {
    fn name(&self) -> &'static str {
        "segment"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.output(|storage, layout| match storage.try_clone(layout)? {
            Storage::Cpu(storage) => Ok(storage),
            _ => candle_core::bail!("a segment left the device of its input"),
        })
    }

    fn cuda_fwd(&self, _x: &CudaStorage, _layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.output(|storage, layout| match storage.try_clone(layout)? {
            Storage::Cuda(storage) => Ok(storage),
            _ => candle_core::bail!("a segment left the device of its input"),
        })
    }

    fn metal_fwd(&self, _x: &MetalStorage, _layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        self.output(|storage, layout| match storage.try_clone(layout)? {
            Storage::Metal(storage) => Ok(storage),
            _ => candle_core::bail!("a segment left the device of its input"),
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> CandleResult<Option<Tensor>> {
        let (x, y, tape) = match &self.piece {
            Piece::Graph(graph) => match take(graph) {
                Some(graph) => graph,
                None => candle_core::bail!("a second backward pass, and the first has released the activations"),
            },
            Piece::Function(f) => {
                let x = Var::from_tensor(&x.detach())?.into_inner();
                let (y, tape) = Tape::of(|| f(&x));
                (x, y.map_err(CandleError::wrap)?, tape)
            }
        };
        // candle wants a gradient for everything that it has tracked, also where `f` does not look at it.
        Ok(Some(tape.backward(&x, y, g)?.map_or_else(|| x.zeros_like(), Ok)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradients_of;
    use super::super::ops::testing::{max_diff, values};
    use super::*;

    const ALL: [Activations; 3] = [Activations::Kept, Activations::Released, Activations::Recomputed];

    fn layer(w: &Var) -> impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + Clone + 'static {
        let w = w.as_tensor().clone();
        move |x| Ok(x.matmul(&w)?.tanh()?)
    }

    #[test]
    fn gradients_equal_the_plain_graph_exactly_also_for_a_shared_parameter() {
        let [x, w] = [(&[3, 4], 0.1), (&[4, 4], 0.2)].map(|(dims, at)| Var::from_tensor(&values(dims, at)).unwrap());
        let layer = layer(&w);
        let plain = layer(&layer(&x).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
        for activations in ALL {
            let y = checkpoint(activations, &x, layer.clone()).unwrap();
            let y = checkpoint(activations, &y, layer.clone()).unwrap();
            let found = gradients_of(y.sum_all().unwrap(), [&x, &w]).unwrap();
            for var in [&x, &w] {
                assert_eq!(max_diff(&found[&var.id()], plain.get(var).unwrap()), 0.0, "{activations:?}");
            }
        }
    }

    #[test]
    fn parameters_behind_an_untracked_input_get_their_gradient() {
        let w = Var::from_tensor(&values(&[4, 4], 0.2)).unwrap();
        for activations in ALL {
            let y = checkpoint(activations, &values(&[3, 4], 0.1), layer(&w)).unwrap();
            assert_eq!(gradients_of(y.sum_all().unwrap(), [&w]).unwrap().len(), 1, "{activations:?}");
        }
    }

    #[test]
    fn gradients_that_would_be_lost_and_a_second_pass_are_errors() {
        let w = Var::from_tensor(&values(&[4, 4], 0.2)).unwrap();
        let y = checkpoint(Activations::Released, &values(&[3, 4], 0.1), layer(&w)).unwrap().sum_all().unwrap();
        assert!(y.backward().unwrap_err().to_string().contains("gradients_of"));
        assert!(gradients_of(y, [&w]).unwrap_err().to_string().contains("second backward"));
    }

    #[test]
    fn a_part_of_a_tensor_and_an_input_that_is_ignored_are_what_they_are_in_a_plain_graph() {
        let [x, w] = [(&[3, 4], 0.1), (&[4, 4], 0.2)].map(|(dims, at)| Var::from_tensor(&values(dims, at)).unwrap());
        for activations in ALL {
            let last_rows = |x: &Tensor| Ok(x.tanh()?.narrow(0, 1, 2)?);
            let y = checkpoint(activations, &x, last_rows).unwrap();
            assert_eq!(max_diff(&y, &last_rows(&x).unwrap()), 0.0, "{activations:?}");
            let tracked = x.sqr().unwrap();
            let other = w.as_tensor().clone();
            let y = checkpoint(activations, &tracked, move |_| Ok(other.sqr()?)).unwrap();
            let loss = (y.sum_all().unwrap() + tracked.sum_all().unwrap()).unwrap();
            assert_eq!(gradients_of(loss, [&x, &w]).unwrap().len(), 2, "{activations:?}");
        }
    }

    #[test]
    fn what_is_not_trained_is_no_segment() {
        for activations in ALL {
            let y = checkpoint(activations, &values(&[3, 4], 0.1), |x| Ok(x.tanh()?)).unwrap();
            assert!(!y.track_op());
        }
    }
}
