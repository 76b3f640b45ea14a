//! Gradient checkpointing: activations are computed again in the backward pass instead of kept.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Error as CandleError, Layout, MetalStorage, Result as CandleResult, Shape,
    Storage, Tensor, TensorId, Var,
};

use crate::Result;

/// Collects the gradients that parameters receive inside checkpointed functions.
///
/// They are found during the backward pass of a recomputed piece of graph, out of reach of the outer
/// [`GradStore`]; [`Self::take`] hands them over after the outer backward pass.
#[derive(Debug)]
pub struct CheckpointScope {
    parameters: HashSet<TensorId>,
    gradients: Mutex<GradStore>,
}

impl CheckpointScope {
    /// A scope for these trainable parameters.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Var>) -> Arc<Self> {
        let parameters = parameters.into_iter().map(|var| var.id()).collect();
        Arc::new(Self { parameters, gradients: Mutex::default() })
    }

    /// The gradients since the last call.
    pub fn take(&self) -> GradStore {
        std::mem::take(&mut *self.gradients.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds up the parameters' gradients, each cut from its graph: a gradient still attached keeps every activation
    /// of the recomputed piece alive.
    fn add(&self, found: GradStore) -> CandleResult<()> {
        let mut sums = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<TensorId> = found.get_ids().filter(|id| self.parameters.contains(id)).copied().collect();
        for id in ids {
            let Some(gradient) = found.get_id(id) else { continue };
            let sum = match sums.get_id(id) {
                Some(sum) => (sum + gradient)?.detach(),
                None => gradient.detach(),
            };
            sums.insert_id(id, sum);
        }
        Ok(())
    }
}

/// `f(x)`, keeping only `x` for the backward pass, in which `f` runs a second time.
///
/// `f` must compute the same both times. The gradients are exactly those of the plain graph: of `x` in the outer
/// store, of the parameters inside `f` in `scope`.
///
/// # Errors
/// Those of `f`.
pub fn checkpoint(
    scope: &Arc<CheckpointScope>,
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let output = f(&x.detach())?;
    if !x.track_op() && !output.track_op() {
        // Nothing in here is trained: there is nothing to compute again.
        return Ok(output);
    }
    // Without a tracked input the op would be no part of the graph, and its parameters would get no gradient.
    let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.into_inner() };
    let output = output.detach();
    let op = Recompute { f: Box::new(f), output: Mutex::new(Some(output)), scope: Arc::clone(scope) };
    Ok(x.apply_op1(op)?)
}

/// What is computed twice.
type Function = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

struct Recompute {
    f: Function,
    /// The result of the first run, on its way into the graph.
    output: Mutex<Option<Tensor>>,
    scope: Arc<CheckpointScope>,
}

impl Recompute {
    /// Hands the finished output to candle, which wants it as the result of this op.
    fn output<S>(&self, copy: impl FnOnce(&Storage, &Layout) -> CandleResult<S>) -> CandleResult<(S, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(output) = output else { candle_core::bail!("a checkpointed output was already taken") };
        let output = output.contiguous()?;
        let (storage, layout) = output.storage_and_layout();
        Ok((copy(&storage, layout)?, layout.shape().clone()))
    }
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.output(|storage, layout| match storage.try_clone(layout)? {
            Storage::Cpu(storage) => Ok(storage),
            _ => candle_core::bail!("a checkpointed layer left the device of its input"),
        })
    }

    fn cuda_fwd(&self, _x: &CudaStorage, _layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.output(|storage, layout| match storage.try_clone(layout)? {
            Storage::Cuda(storage) => Ok(storage),
            _ => candle_core::bail!("a checkpointed layer left the device of its input"),
        })
    }

    fn metal_fwd(&self, _x: &MetalStorage, _layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        self.output(|storage, layout| match storage.try_clone(layout)? {
            Storage::Metal(storage) => Ok(storage),
            _ => candle_core::bail!("a checkpointed layer left the device of its input"),
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> CandleResult<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        let y = (self.f)(&x).map_err(CandleError::wrap)?;
        // The gradient of sum(y * g) with constant g is what g hands back through f.
        let mut gradients = (&y * g.detach())?.sum_all()?.backward()?;
        let dx = gradients.remove(&x).map(|dx| dx.detach());
        self.scope.add(gradients)?;
        Ok(dx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ops::testing::{max_diff, values};
    use super::*;

    #[test]
    fn gradients_equal_the_plain_graph_exactly_also_for_a_shared_parameter() {
        let x = Var::from_tensor(&values(&[3, 4], 0.1)).unwrap();
        let w = Var::from_tensor(&values(&[4, 4], 0.2)).unwrap();
        let layer = {
            let w = w.as_tensor().clone();
            move |x: &Tensor| -> Result<Tensor> { Ok(x.matmul(&w)?.tanh()?) }
        };
        let plain = layer(&layer(&x).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
        let scope = CheckpointScope::new([&w]);
        let y = checkpoint(&scope, &x, layer.clone()).unwrap();
        let y = checkpoint(&scope, &y, layer).unwrap();
        let outer = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(max_diff(outer.get(&x).unwrap(), plain.get(&x).unwrap()), 0.0);
        assert_eq!(max_diff(scope.take().get(&w).unwrap(), plain.get(&w).unwrap()), 0.0);
        assert!(scope.take().get(&w).is_none(), "taken gradients are gone");
    }

    #[test]
    fn parameters_behind_an_untracked_input_get_their_gradient() {
        let w = Var::from_tensor(&values(&[4, 4], 0.2)).unwrap();
        let scope = CheckpointScope::new([&w]);
        let tracked = w.as_tensor().clone();
        let y = checkpoint(&scope, &values(&[3, 4], 0.1), move |x| Ok(x.matmul(&tracked)?)).unwrap();
        y.sum_all().unwrap().backward().unwrap();
        assert!(scope.take().get(&w).is_some());
    }
}
