//! Tape of the operations of [`super::ops`] in execution order, and a backward pass over it.
//!
//! candle's backward pass allocates zeros for each gradient and adds the gradient to them, again for every reshape, on
//! its own threads, which keep spinning beside the kernels. This backward pass forwards a gradient without a copy, and
//! adds only if a tensor has two. candle's graph is recorded too, as a fallback for segments with other operations.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result, Tensor, TensorId};

use super::grad_collector::{deliver, deliver_all, require_sink};
use super::ops::residual;
use super::thread_local_scope::scoped;

type Shared<Op> = Arc<Box<Op>>;

enum Node {
    One(Shared<dyn CustomOp1 + Send + Sync>, Tensor),
    Two(Shared<dyn CustomOp2 + Send + Sync>, [Tensor; 2]),
    Three(Shared<dyn CustomOp3 + Send + Sync>, [Tensor; 3]),
}

/// The recorded operations of a thread, each with its result.
#[derive(Default)]
pub(super) struct Tape(Vec<(Node, Tensor)>);

thread_local! {
    /// The tape of the segment that this thread is computing.
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Applies `op` to a tensor, and records the operation.
pub(super) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    let op: Shared<dyn CustomOp1 + Send + Sync> = Arc::new(Box::new(op));
    let result = x.apply_op1_arc(op.clone())?;
    Ok(record(result, || Node::One(op, x.clone())))
}

/// Applies `op` to two tensors, and records the operation.
pub(super) fn apply2(x: &Tensor, y: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    let op: Shared<dyn CustomOp2 + Send + Sync> = Arc::new(Box::new(op));
    let result = x.apply_op2_arc(y, op.clone())?;
    Ok(record(result, || Node::Two(op, [x.clone(), y.clone()])))
}

/// Applies `op` to three tensors, and records the operation.
pub(super) fn apply3(x: &Tensor, y: &Tensor, z: &Tensor, op: impl CustomOp3 + Send + Sync + 'static) -> Result<Tensor> {
    let op: Shared<dyn CustomOp3 + Send + Sync> = Arc::new(Box::new(op));
    let result = x.apply_op3_arc(y, z, op.clone())?;
    Ok(record(result, || Node::Three(op, [x.clone(), y.clone(), z.clone()])))
}

fn record(result: Tensor, node: impl FnOnce() -> Node) -> Tensor {
    if result.track_op() {
        TAPE.with_borrow_mut(|tape| {
            if let Some(tape) = tape {
                tape.0.push((node(), result.clone()));
            }
        });
    }
    result
}

impl Node {
    fn inputs(&self) -> &[Tensor] {
        match self {
            Self::One(_, x) => std::slice::from_ref(x),
            Self::Two(_, inputs) => inputs,
            Self::Three(_, inputs) => inputs,
        }
    }

    /// Inputs of the operation, each with its gradient if there is one.
    fn backward(&self, result: &Tensor, g: &Tensor) -> Result<Vec<(&Tensor, Option<Tensor>)>> {
        Ok(match self {
            Self::One(op, x) => vec![(x, op.bwd(x, result, g)?)],
            Self::Two(op, [x, y]) => {
                let (dx, dy) = op.bwd(x, y, result, g)?;
                vec![(x, dx), (y, dy)]
            }
            Self::Three(op, [x, y, z]) => {
                let (dx, dy, dz) = op.bwd(x, y, z, result, g)?;
                vec![(x, dx), (y, dy), (z, dz)]
            }
        })
    }
}

impl Tape {
    /// Runs `f`; returns its result and the tape of its operations.
    pub fn of<R>(f: impl FnOnce() -> R) -> (R, Self) {
        let (result, tape) = scoped(&TAPE, Self::default(), f);
        (result, tape.unwrap_or_default())
    }

    /// Computes the gradient of `x`, if there is one, from the gradient `g` of `y`; the collector receives parameter
    /// gradients.
    ///
    /// # Errors
    /// If no gradients are collected, and from the operations.
    pub fn backward(self, x: &Tensor, y: Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        require_sink()?;
        if !self.leads_to(&y) {
            // The gradient of sum(y * g) with constant g equals the backward pass of g through y.
            let mut store = (y * g.detach())?.sum_all()?.backward()?;
            let dx = store.remove(x).map(|dx| dx.detach());
            return deliver_all(store).map(|()| dx);
        }
        let mut gradients = Gradients { input: x.id(), found: Vec::new() };
        gradients.add(&y, g.detach())?;
        // Dropped, so that the inputs of each operation are freed right after its backward pass.
        drop(y);
        for (node, result) in self.0.into_iter().rev() {
            if let Some(g) = gradients.take(&result) {
                for (of, gradient) in node.backward(&result, &g)? {
                    gradient.map_or(Ok(()), |gradient| gradients.add(of, gradient.detach()))?;
                }
            }
        }
        Ok(gradients.take(x))
    }

    /// Whether the tape holds all operations that lead to `y`.
    fn leads_to(&self, y: &Tensor) -> bool {
        let made: HashSet<TensorId> = self.0.iter().map(|(_, result)| result.id()).collect();
        let is_known = |t: &Tensor| !t.track_op() || t.is_variable() || made.contains(&t.id());
        is_known(y) && self.0.iter().flat_map(|(node, _)| node.inputs()).all(is_known)
    }
}

/// Gradients of intermediate tensors that were not yet propagated.
struct Gradients {
    input: TensorId,
    /// Tensors with their gradients: few at a time, in a deterministic order.
    found: Vec<(Tensor, Tensor)>,
}

impl Gradients {
    fn add(&mut self, of: &Tensor, gradient: Tensor) -> Result<()> {
        if !of.track_op() {
            return Ok(());
        }
        if of.is_variable() && of.id() != self.input {
            // A copy: the gradients of a sum share one tensor, and micro-batches accumulate in place. Weight gradients
            // of linear layers have been collected already.
            return deliver(of, gradient.copy()?.detach()).map(drop);
        }
        let sum = match self.take(of) {
            Some(before) => residual(&before, &gradient)?,
            None => gradient,
        };
        self.found.push((of.clone(), sum));
        Ok(())
    }

    fn take(&mut self, of: &Tensor) -> Option<Tensor> {
        let place = self.found.iter().position(|(tensor, _)| tensor.id() == of.id())?;
        Some(self.found.swap_remove(place).1)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::activation_checkpoint::{Activations, checkpoint};
    use super::super::gradients_of;
    use super::super::ops::testing::{max_diff, values};
    use super::super::ops::{linear, linear_as, rms_norm};
    use super::*;
    use crate::options::Precision;

    /// Parameters used twice or through views, gradients from several uses, and `other` between recorded operations.
    fn assert_gradients(is_whole: bool, other: fn(&Tensor) -> Result<Tensor>) {
        let [x, w, scale, square] = [(&[3, 4][..], 0.1), (&[8, 4], 0.2), (&[4], 0.3), (&[4, 4], 0.4)]
            .map(|(dims, start)| Var::from_tensor(&values(dims, start)).unwrap());
        let parameters = [&x, &w, &scale, &square];
        let (w, scale, square) = (w.as_tensor().clone(), scale.as_tensor().clone(), square.as_tensor().clone());
        let f = move |x: &Tensor| -> crate::Result<Tensor> {
            let y = residual(&rms_norm(x, &scale, 1e-6)?, x)?;
            let heads = other(&linear_as(&y, &w, None, Precision::Full, (6, 4))?)?;
            let z = residual(&linear(&heads, &square, None)?, &linear(&heads, &square, Some(&scale))?)?;
            let z = linear_as(&z, &w, None, Precision::Full, (3, 16))?;
            Ok(residual(&rms_norm(&residual(&z, &z)?, &values(&[16], 0.5), 1e-6)?, &z)?)
        };
        let (y, tape) = Tape::of(|| f(&x).unwrap());
        assert_eq!(tape.leads_to(&y), is_whole);
        let plain = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for activations in [Activations::Released, Activations::Recomputed] {
            let loss = checkpoint(activations, &x, f.clone()).unwrap().sqr().unwrap().sum_all().unwrap();
            let found = gradients_of(loss, parameters).unwrap();
            for var in parameters {
                let (found, expected) = (&found[&var.id()], plain.get(var).unwrap());
                // A matrix used twice is summed in another order.
                assert!(max_diff(found, expected) < 2e-5, "{activations:?} {:?}", var.dims());
            }
        }
    }

    #[test]
    fn gradients_equal_those_of_the_graph_also_with_foreign_operations() {
        assert_gradients(true, |x| Ok(x.clone()));
        assert_gradients(false, |x| x.tanh());
        assert_gradients(false, |x| x.t()?.contiguous()?.t()?.contiguous());
    }

    #[test]
    fn nothing_is_recorded_without_a_tape_or_a_parameter() {
        let x = values(&[3, 4], 0.1);
        let tracked = Var::from_tensor(&x).unwrap();
        let sum = |x: &Tensor| residual(x, x).unwrap();
        assert_eq!(Tape::of(|| sum(&x)).1.0.len(), 0);
        assert_eq!(Tape::of(|| (sum(&tracked), Tape::of(|| sum(&tracked)))).1.0.len(), 1);
        sum(&tracked);
        assert!(TAPE.with_borrow(Option::is_none));
    }
}
