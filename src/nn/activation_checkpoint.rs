//! Activation checkpointing: a model's graph in segments, each with a private graph for its backward pass.
//!
//! In candle's graph, activations live from the forward pass to the end of the backward pass. A segment's activations
//! are freed as soon as its backward pass has used them, or recomputed by it.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Error as CandleError, Layout, MetalStorage, Result as CandleResult, Shape,
    Tensor, Var,
};

use super::precomputed_result::{Once, PrecomputedResult};
use super::tape::Tape;
use crate::Result;

/// Treatment of a layer's activations in training.
///
/// Gradients are bit-identical in all modes. With any mode but [`Self::Kept`], gradients come from
/// [`super::gradients_of`] only (which [`crate::optim::Gradients::of`] calls); candle's own `backward` fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activations {
    /// Activations live until the graph is dropped, as in candle.
    #[default]
    Kept,
    /// Activations are freed right after the backward pass has used them; a second backward pass is an error.
    Released,
    /// Only the layer's input is kept; the backward pass recomputes the rest (gradient checkpointing).
    Recomputed,
}

/// Runs `f(x)` as a checkpointed segment.
///
/// The only tracked tensors that `f` may capture are parameters: a tensor computed from parameters, or from the input
/// of another segment, must come in as `x`. With [`Activations::Recomputed`], `f` must be deterministic.
///
/// # Errors
/// The errors of `f`, and if its result is on another device than `x`.
pub fn checkpoint(
    activations: Activations,
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (output, graph) = match activations {
        Activations::Kept => return f(x),
        Activations::Released => {
            let input = if x.track_op() { Var::from_tensor(&x.detach())?.into_inner() } else { x.clone() };
            let (output, tape) = Tape::of(|| f(&input));
            let output = output?;
            (output.clone(), Graph::Released(Once::new((input, output, tape))))
        }
        Activations::Recomputed => (f(&x.detach())?, Graph::Recomputed(Box::new(f))),
    };
    if !x.track_op() && !output.track_op() {
        // No tensor here is trained.
        return Ok(output);
    }
    // Without a tracked input, the op would not be part of the graph, and its parameters would get no gradient.
    let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.into_inner() };
    Ok(x.apply_op1(Segment { output: PrecomputedResult::new(&output), graph })?)
}

/// The function that a recomputed segment runs twice.
type Function = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// The private graph of a segment, for its backward pass.
enum Graph {
    /// Input, output and recorded operations; freed by the backward pass.
    Released(Once<(Tensor, Tensor, Tape)>),
    /// The function that rebuilds them.
    Recomputed(Function),
}

/// The custom op that stands for a segment in the outer graph.
struct Segment {
    output: PrecomputedResult,
    graph: Graph,
}

impl CustomOp1 for Segment {
    fn name(&self) -> &'static str {
        "checkpointed-segment"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.output.cpu(self.name())
    }

    fn cuda_fwd(&self, _x: &CudaStorage, _layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.output.cuda(self.name())
    }

    fn metal_fwd(&self, _x: &MetalStorage, _layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        self.output.metal(self.name())
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> CandleResult<Option<Tensor>> {
        let (x, y, tape) = match &self.graph {
            Graph::Released(graph) => match graph.take() {
                Some(graph) => graph,
                None => candle_core::bail!("a second backward pass, but the first one released the activations"),
            },
            Graph::Recomputed(f) => {
                let x = Var::from_tensor(&x.detach())?.into_inner();
                let (y, tape) = Tape::of(|| f(&x));
                (x, y.map_err(CandleError::wrap)?, tape)
            }
        };
        // candle expects a gradient of every tracked input, even if `f` does not use the input.
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
    fn gradients_are_bit_identical_to_the_plain_graph() {
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
    fn parameters_get_gradients_when_the_input_is_untracked() {
        let w = Var::from_tensor(&values(&[4, 4], 0.2)).unwrap();
        for activations in ALL {
            let y = checkpoint(activations, &values(&[3, 4], 0.1), layer(&w)).unwrap();
            assert_eq!(gradients_of(y.sum_all().unwrap(), [&w]).unwrap().len(), 1, "{activations:?}");
        }
    }

    #[test]
    fn plain_backward_and_second_backward_are_errors() {
        let w = Var::from_tensor(&values(&[4, 4], 0.2)).unwrap();
        let y = checkpoint(Activations::Released, &values(&[3, 4], 0.1), layer(&w)).unwrap().sum_all().unwrap();
        assert!(y.backward().unwrap_err().to_string().contains("gradients_of"));
        assert!(gradients_of(y, [&w]).unwrap_err().to_string().contains("second backward"));
    }

    #[test]
    fn views_and_ignored_inputs_match_the_plain_graph() {
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
    fn untracked_results_are_not_wrapped() {
        for activations in ALL {
            let y = checkpoint(activations, &values(&[3, 4], 0.1), |x| Ok(x.tanh()?)).unwrap();
            assert!(!y.track_op());
        }
    }
}
