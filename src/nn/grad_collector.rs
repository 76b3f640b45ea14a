//! Collector of parameter gradients in a backward pass.
//!
//! candle's [`GradStore`] adds each gradient to zeros, which takes three buffers of a weight's size instead of one, and
//! it does not see gradients computed inside a [`super::checkpoint`]ed segment. The collector is thread-local: another
//! backward pass must not run on the same thread meanwhile, as a job of a thread pool could.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, Var};

use super::thread_local_scope::scoped;

/// Takes gradients while a backward pass goes on: parameter and gradient.
pub type OnGradient = Box<dyn FnMut(TensorId, Tensor) -> Result<()>>;

/// Parameters whose gradients are collected, and the gradients found so far.
struct Sink {
    parameters: HashSet<TensorId>,
    found: HashMap<TensorId, Tensor>,
    /// Takes the gradients instead.
    taker: Option<OnGradient>,
}

thread_local! {
    /// Collector of the backward pass on this thread. candle calls all backward functions of a pass on one thread.
    static SINK: RefCell<Option<Sink>> = const { RefCell::new(None) };
}

/// Computes the gradients of `loss` with respect to `parameters`, detached: a gradient with its graph would keep all
/// activations alive.
///
/// `loss` is consumed, so that its graph is freed during the pass. A parameter that the loss does not depend on is
/// absent.
///
/// # Errors
/// Errors of candle only.
pub fn gradients_of<'a>(
    loss: Tensor,
    parameters: impl IntoIterator<Item = &'a Var>,
) -> Result<HashMap<TensorId, Tensor>> {
    collect(loss, parameters, None)
}

/// As [`gradients_of`], but hands each gradient to `taker` as soon as it is found, so that it can be sent away while the
/// backward pass goes on. A parameter that is used several times can come several times; its gradients are to be added up.
///
/// # Errors
/// Errors of candle and of `taker`.
pub fn gradients_as_found<'a>(
    loss: Tensor,
    parameters: impl IntoIterator<Item = &'a Var>,
    taker: OnGradient,
) -> Result<()> {
    collect(loss, parameters, Some(taker)).map(drop)
}

fn collect<'a>(
    loss: Tensor,
    parameters: impl IntoIterator<Item = &'a Var>,
    taker: Option<OnGradient>,
) -> Result<HashMap<TensorId, Tensor>> {
    let parameters = parameters.into_iter().map(|var| var.id()).collect();
    let sink = Sink { parameters, found: HashMap::new(), taker };
    let (done, sink) = scoped(&SINK, sink, || deliver_all(loss.backward()?));
    done?;
    match sink {
        Some(sink) => Ok(sink.found),
        None => candle_core::bail!("another backward pass on this thread has taken the gradients"),
    }
}

/// Collects the gradient of `parameter`; returns the gradient, for candle, if the parameter is not collected.
///
/// `gradient` must not share its memory with another tensor: micro-batches accumulate in place.
pub(crate) fn deliver(parameter: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    SINK.with_borrow_mut(|sink| match sink {
        Some(sink) if sink.parameters.contains(&parameter.id()) => sink.add(parameter.id(), &gradient).map(|()| None),
        _ => Ok(Some(gradient)),
    })
}

/// Runs `f` with the collector of this thread.
///
/// # Errors
/// If no gradients are collected: candle does not see the gradients of a segment, so they would be lost.
fn with_sink(f: impl FnOnce(&mut Sink) -> Result<()>) -> Result<()> {
    SINK.with_borrow_mut(|sink| match sink {
        Some(sink) => f(sink),
        None => candle_core::bail!("gradients of parameters in a segment would be lost: use nn::gradients_of"),
    })
}

/// Whether gradients are collected.
///
/// # Errors
/// The errors of [`with_sink`].
pub(super) fn require_sink() -> Result<()> {
    with_sink(|_| Ok(()))
}

/// Collects the gradients of the parameters from a backward pass of candle.
///
/// # Errors
/// The errors of [`with_sink`].
pub(super) fn deliver_all(store: GradStore) -> Result<()> {
    with_sink(|sink| {
        let ids: Vec<TensorId> = store.get_ids().filter(|id| sink.parameters.contains(id)).copied().collect();
        ids.into_iter().try_for_each(|id| store.get_id(id).map_or(Ok(()), |gradient| sink.add(id, gradient)))
    })
}

impl Sink {
    fn add(&mut self, id: TensorId, gradient: &Tensor) -> Result<()> {
        if let Some(taker) = &mut self.taker {
            return taker(id, gradient.detach());
        }
        match self.found.entry(id) {
            // Not in place: a gradient may share its memory with another tensor. Few parameters are used twice.
            Entry::Occupied(mut sum) => *sum.get_mut() = (sum.get() + gradient)?.detach(),
            Entry::Vacant(place) => drop(place.insert(gradient.detach())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ops::linear;
    use super::super::ops::testing::{max_diff, values};
    use super::*;

    #[test]
    fn gradients_equal_those_of_candle() {
        let x = values(&[3, 4], 0.1);
        let (shared, once) = (values(&[4, 4], 0.2), values(&[4], 0.3));
        let [shared, once] = [shared, once].map(|t| Var::from_tensor(&t).unwrap());
        let loss = || {
            let y = linear(&x, &shared, Some(&once)).unwrap().tanh().unwrap();
            linear(&y, &shared, None).unwrap().sqr().unwrap().sum_all().unwrap()
        };
        let expected = loss().backward().unwrap();
        let found = gradients_of(loss(), [&shared, &once]).unwrap();
        assert_eq!(found.len(), 2);
        for var in [&shared, &once] {
            assert_eq!(max_diff(&found[&var.id()], expected.get(var).unwrap()), 0.0);
            assert!(!found[&var.id()].track_op());
        }
    }

    #[test]
    fn only_requested_gradients_are_collected() {
        let [a, b, unused] = [0.1, 0.2, 0.3].map(|start| Var::from_tensor(&values(&[2, 2], start)).unwrap());
        let loss = || linear(&a, &b, None).unwrap().sum_all().unwrap();
        let found = gradients_of(loss(), [&b, &unused]).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&b.id()]);
        assert!(loss().backward().unwrap().get(&b).is_some(), "afterwards, candle's store gets them again");
    }
}
