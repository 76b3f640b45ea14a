//! One training step: forward, backward, reduction, clipping, update.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Var;

use super::objective::{Counts, Objective};
use crate::batch::MultimodalBatch;
use crate::nn::CheckpointScope;
use crate::optim::{AdamW, Gradients, Schedule, clip_scale, global_norm};
use crate::{Error, Result};

/// Stack of [`on_large_stack`]: candle walks and drops graphs recursively.
const STACK_BYTES: usize = 256 << 20;

/// Brings together the gradients of all processes of a data-parallel run.
///
/// The loop itself never changes: one process needs nothing, and an all-reduce over NCCL or MPI goes in here.
pub trait GradientReducer: Send {
    /// Adds up `counts` over all processes; called before any loss, which is divided by the result.
    ///
    /// # Errors
    /// If a process cannot be reached.
    fn reduce_counts(&mut self, counts: Counts) -> Result<Counts>;

    /// Adds up gradients over all processes.
    ///
    /// # Errors
    /// If a process cannot be reached.
    fn reduce_gradients(&mut self, gradients: Gradients) -> Result<Gradients>;
}

/// The reducer of a run in one process: hands everything back.
#[derive(Debug, Default)]
pub struct SingleProcess;

impl GradientReducer for SingleProcess {
    fn reduce_counts(&mut self, counts: Counts) -> Result<Counts> {
        Ok(counts)
    }

    fn reduce_gradients(&mut self, gradients: Gradients) -> Result<Gradients> {
        Ok(gradients)
    }
}

/// What a step reports.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The loss that was minimised.
    pub loss: f64,
    /// Its named summands.
    pub parts: BTreeMap<&'static str, f64>,
    /// Peak of the schedule times its factor at this step.
    pub learning_rate: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// What the step held.
    pub counts: Counts,
    /// Wall time.
    pub seconds: f64,
}

/// How parameters are moved.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateRule {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Steps of the whole run, which the schedule spans.
    pub total_steps: u64,
    /// Gradients with a larger global norm are scaled down to it.
    pub max_grad_norm: f64,
}

/// An objective, the parameters it trains, and their optimizer.
pub struct Trainer<O> {
    objective: O,
    parameters: BTreeMap<String, Var>,
    optimizer: AdamW,
    rule: UpdateRule,
    scope: Option<Arc<CheckpointScope>>,
    reducer: Box<dyn GradientReducer>,
}

impl<O: Objective> Trainer<O> {
    /// A trainer of `parameters`; all of them must receive gradients from `objective`.
    ///
    /// `scope` is the one that the objective's model was given, if layers are recomputed in the backward pass.
    pub fn new(
        objective: O,
        parameters: BTreeMap<String, Var>,
        optimizer: AdamW,
        rule: UpdateRule,
        scope: Option<Arc<CheckpointScope>>,
    ) -> Self {
        Self { objective, parameters, optimizer, rule, scope, reducer: Box::new(SingleProcess) }
    }

    /// The same trainer as one process of several.
    #[must_use]
    pub fn with_reducer(self, reducer: Box<dyn GradientReducer>) -> Self {
        Self { reducer, ..self }
    }

    /// The objective.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// The trained parameters.
    pub fn parameters(&self) -> &BTreeMap<String, Var> {
        &self.parameters
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// The optimizer, to load its state when resuming.
    pub fn optimizer_mut(&mut self) -> &mut AdamW {
        &mut self.optimizer
    }

    /// One update from some micro-batches, whose losses and gradients add up to those of the step.
    ///
    /// # Errors
    /// [`Error::Training`] if loss or gradients are not finite, or a parameter got no gradient; parameters and
    /// optimizer are then as they were before.
    pub fn step(&mut self, micro_batches: &[MultimodalBatch]) -> Result<StepReport> {
        let began = Instant::now();
        let step = self.optimizer.steps();
        let counts = self.reducer.reduce_counts(self.count(micro_batches)?)?;
        let (loss, parts, gradients) = self.gradients(micro_batches, &counts)?;
        if !loss.is_finite() {
            return Err(refused(step, &format!("the loss is {loss}")));
        }
        let gradients = self.reducer.reduce_gradients(gradients)?;
        let grad_norm = global_norm(&gradients).map_err(|e| refused(step, &e.to_string()))?;
        let learning_rate = self.rule.learning_rate * self.rule.schedule.factor(step, self.rule.total_steps);
        self.optimizer.step(&gradients, learning_rate, clip_scale(grad_norm, self.rule.max_grad_norm))?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(StepReport { step: step + 1, loss, parts, learning_rate, grad_norm, counts, seconds })
    }

    /// Loss, its parts, and the gradients of all parameters over some micro-batches of a step of `counts`.
    ///
    /// # Errors
    /// [`Error::Training`] if a parameter got no gradient.
    pub fn gradients(
        &self,
        micro_batches: &[MultimodalBatch],
        counts: &Counts,
    ) -> Result<(f64, BTreeMap<&'static str, f64>, Gradients)> {
        let (mut total, mut parts, mut gradients) = (0.0, BTreeMap::new(), Gradients::default());
        for batch in micro_batches {
            let loss = self.objective.loss(batch, counts)?;
            total += f64::from(loss.total.to_scalar::<f32>()?);
            loss.parts.into_iter().for_each(|(name, part)| *parts.entry(name).or_default() += part);
            // The store keeps the whole graph alive; only detached gradients of parameters outlive this line.
            gradients.accumulate(Gradients::collect(&self.parameters, loss.total.backward()?)?)?;
            if let Some(scope) = &self.scope {
                gradients.accumulate(Gradients::collect(&self.parameters, scope.take())?)?;
            }
        }
        gradients.fill_missing(&self.parameters, |name| self.objective.may_lack_gradient(name, counts))?;
        Ok((total, parts, gradients))
    }

    /// Mean loss over batches, without any update.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn evaluate(&self, batches: &[MultimodalBatch]) -> Result<f64> {
        let counts = self.count(batches)?;
        let losses = batches.iter().map(|batch| {
            let loss = self.objective.loss(batch, &counts)?.total.to_scalar::<f32>()?;
            Ok(f64::from(loss))
        });
        losses.sum()
    }

    fn count(&self, batches: &[MultimodalBatch]) -> Result<Counts> {
        batches.iter().try_fold(Counts::default(), |sum, batch| Ok(sum + self.objective.counts(batch)?))
    }
}

fn refused(step: u64, why: &str) -> Error {
    Error::Training(format!(
        "step {}: {why}; the update was refused and the last checkpoint is good: resume with a lower learning rate, or \
         look at the samples of this step",
        step + 1
    ))
}

/// Runs `f` on a thread with a stack large enough for the graphs of deep models.
///
/// # Errors
/// Those of `f`, and [`Error::Training`] if the thread cannot be started or panics.
pub fn on_large_stack<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("trainer".into()).stack_size(STACK_BYTES);
        let handle = thread.spawn_scoped(scope, f).map_err(|e| Error::Training(format!("no thread: {e}")))?;
        handle.join().map_err(|_| Error::Training("the training thread panicked; this is a bug".into()))?
    })
}
