//! One training step: forward, backward, reduction, clipping, update.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use candle_core::Var;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::large_stack::STACK_BYTES;
use super::objectives::{Counts, Loss, Objective};
use crate::batch::MultimodalBatch;
use crate::nn::ops::with_dropout;
use crate::optim::{AdamW, Gradients, Schedule, clip_scale, global_norm};
use crate::{Error, Result};

/// All-reduce over the processes of a data-parallel run, for example by NCCL or MPI; a single process needs none.
pub trait GradientReducer: Send + Sync {
    /// Adds up `counts` over all processes; called before any loss, which is divided by the result.
    ///
    /// # Errors
    /// If a process cannot be reached.
    fn reduce_counts(&mut self, counts: Counts) -> Result<Counts>;

    /// Adds up a loss, or a part of one, over all processes, for logs and so that all processes reject the same steps.
    ///
    /// # Errors
    /// If a process cannot be reached.
    fn reduce_loss(&mut self, loss: f64) -> Result<f64>;

    /// Adds up gradients over all processes.
    ///
    /// # Errors
    /// If a process cannot be reached.
    fn reduce_gradients(&mut self, gradients: Gradients) -> Result<Gradients>;
}

/// Reducer of a run in one process, which returns everything unchanged.
#[derive(Debug, Default)]
pub struct SingleProcess;

impl GradientReducer for SingleProcess {
    fn reduce_counts(&mut self, counts: Counts) -> Result<Counts> {
        Ok(counts)
    }

    fn reduce_loss(&mut self, loss: f64) -> Result<f64> {
        Ok(loss)
    }

    fn reduce_gradients(&mut self, gradients: Gradients) -> Result<Gradients> {
        Ok(gradients)
    }
}

/// Report on an optimizer step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Loss before the update.
    pub loss: f64,
    /// Named summands of the loss.
    pub parts: BTreeMap<&'static str, f64>,
    /// Learning rate of this step, before the factors of parameter groups.
    pub learning_rate: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Counts of the step.
    pub counts: Counts,
    /// Wall time.
    pub seconds: f64,
}

/// Learning rate, schedule and gradient clipping of a [`Trainer`].
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateRule {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning rate schedule.
    pub schedule: Schedule,
    /// Steps of the whole run, which the schedule spans.
    pub total_steps: u64,
    /// Gradients with a larger global norm are scaled down to it.
    pub max_grad_norm: f64,
}

/// Objective, the parameters it trains, and their optimizer.
pub struct Trainer<O> {
    objective: O,
    parameters: BTreeMap<String, Var>,
    optimizer: AdamW,
    rule: UpdateRule,
    reducer: Box<dyn GradientReducer>,
    /// Seed of dropout.
    seed: u64,
    /// One single-threaded pool per micro-batch that is computed in parallel; empty without parallelism.
    workers: Vec<ThreadPool>,
}

impl<O: Objective> Trainer<O> {
    /// A trainer of `parameters`; all of them must receive gradients from `objective`.
    pub fn new(objective: O, parameters: BTreeMap<String, Var>, optimizer: AdamW, rule: UpdateRule) -> Self {
        Self { objective, parameters, optimizer, rule, reducer: Box::new(SingleProcess), seed: 0, workers: Vec::new() }
    }

    /// The same trainer with up to `threads` micro-batches computed in parallel, each on its own thread.
    ///
    /// Small models are much faster this way on a CPU: their operations are too short to be split over threads. Results
    /// are identical bit for bit. Activations take memory for each parallel micro-batch, and so do gradients that wait
    /// to be summed in order.
    ///
    /// # Errors
    /// [`Error::Training`] if a thread cannot be started.
    pub fn with_parallel(self, threads: usize) -> Result<Self> {
        let worker = |i: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(1).stack_size(STACK_BYTES);
            let pool = pool.thread_name(move |_| format!("trainer-{i}")).build();
            pool.map_err(|e| Error::training(format!("a thread cannot be started: {e}")).caused_by(e))
        };
        let threads = if threads > 1 { threads } else { 0 };
        Ok(Self { workers: (0..threads).map(worker).collect::<Result<_>>()?, ..self })
    }

    /// The same trainer with this seed of dropout, whose masks depend on seed, step, micro-batch and layer alone.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The same trainer as one of several data-parallel processes.
    #[must_use]
    pub fn with_reducer(self, reducer: Box<dyn GradientReducer>) -> Self {
        Self { reducer, ..self }
    }

    /// Sets the steps of the whole run, which the schedule spans.
    pub fn set_total_steps(&mut self, steps: u64) {
        self.rule.total_steps = steps;
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
        let (loss, mut parts, gradients) = self.gradients(micro_batches, &counts)?;
        let loss = self.reducer.reduce_loss(loss)?;
        for part in parts.values_mut() {
            *part = self.reducer.reduce_loss(*part)?;
        }
        if !loss.is_finite() {
            return Err(refused(step, &format!("the loss is {loss}")));
        }
        let gradients = self.reducer.reduce_gradients(gradients)?;
        let grad_norm = global_norm(&gradients).map_err(|e| refused(step, &e.to_string()).caused_by(e))?;
        let learning_rate = self.rule.learning_rate * self.rule.schedule.factor(step, self.rule.total_steps);
        self.optimizer.step(&gradients, learning_rate, clip_scale(grad_norm, self.rule.max_grad_norm))?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(StepReport { step: step + 1, loss, parts, learning_rate, grad_norm, counts, seconds })
    }

    /// Loss, its parts, and gradients over some micro-batches of a step of `counts`: gradients of all parameters that
    /// the loss depends on, and zeros for parameters that may lack a gradient.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn gradients(
        &self,
        micro_batches: &[MultimodalBatch],
        counts: &Counts,
    ) -> Result<(f64, BTreeMap<&'static str, f64>, Gradients)> {
        let mut sum = Share::default();
        let share =
            |at: usize, batch: &MultimodalBatch| with_dropout(self.dropout_seed(at), || self.share(batch, counts));
        self.each(micro_batches, share, |share| sum.add(share))?;
        let Share { loss, parts, mut gradients } = sum;
        gradients.fill_missing(&self.parameters, |name| self.objective.may_lack_gradient(name, counts))?;
        Ok((loss, parts, gradients))
    }

    /// Seed of the dropout of a micro-batch of the next step.
    fn dropout_seed(&self, micro_batch: usize) -> u64 {
        // Finaliser of SplitMix64, so that neighbouring steps and micro-batches have unrelated seeds.
        let mix = |seed: u64| {
            let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            seed ^ (seed >> 31)
        };
        mix(mix(mix(self.seed.wrapping_add(1)) ^ self.optimizer.steps()) ^ micro_batch as u64)
    }

    /// Loss and gradients of one micro-batch of a step of `counts`.
    fn share(&self, batch: &MultimodalBatch, counts: &Counts) -> Result<Share> {
        let Loss { total, parts } = self.objective.loss(batch, counts)?;
        let loss = f64::from(total.to_scalar::<f32>()?);
        Ok(Share { loss, parts: parts.into_iter().collect(), gradients: Gradients::of(total, &self.parameters)? })
    }

    /// Applies `f` to each batch and its number, as many at a time as there are workers, and folds the results with `fold`.
    ///
    /// Long batches come first, so that no worker is left with one at the end. Results are folded in that order, not in
    /// the order of completion, so that sums are deterministic.
    fn each<T: Send>(
        &self,
        batches: &[MultimodalBatch],
        f: impl Fn(usize, &MultimodalBatch) -> Result<T> + Sync,
        mut fold: impl FnMut(T) -> Result<()> + Send,
    ) -> Result<()> {
        let mut order: Vec<_> = batches.iter().enumerate().collect();
        order.sort_by_key(|(_, batch)| Reverse(batch.input_ids.elem_count()));
        if self.workers.is_empty() {
            return order.into_iter().try_for_each(|(at, batch)| fold(f(at, batch)?));
        }
        let waiting = Mutex::new(order.iter().enumerate());
        let fold = Mutex::new(InOrder { fold, early: BTreeMap::new(), next: 0 });
        let work = || -> Result<()> {
            // A closure, so that the lock is not held for the whole iteration.
            let next = || locked(&waiting).next();
            while let Some((place, (at, batch))) = next() {
                let done = f(*at, batch).and_then(|result| locked(&fold).take(place, result));
                // The remaining batches are dropped: the step has failed.
                done.inspect_err(|_| while next().is_some() {})?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = self.workers.iter().map(|worker| scope.spawn(|| worker.install(work))).collect();
            let ended: Vec<_> = running.into_iter().map(|running| running.join()).collect();
            let panicked = |_| Error::training("a training thread panicked; this is a bug");
            ended.into_iter().try_for_each(|ended| ended.map_err(panicked)?)
        })
    }

    /// Mean loss over batches, without any update.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn evaluate(&self, batches: &[MultimodalBatch]) -> Result<f64> {
        let counts = self.count(batches)?;
        let loss =
            |_, batch: &MultimodalBatch| Ok(f64::from(self.objective.loss(batch, &counts)?.total.to_scalar::<f32>()?));
        let mut sum = 0.0;
        self.each(batches, loss, |loss| {
            sum += loss;
            Ok(())
        })?;
        Ok(sum)
    }

    fn count(&self, batches: &[MultimodalBatch]) -> Result<Counts> {
        batches.iter().try_fold(Counts::default(), |sum, batch| Ok(sum + self.objective.counts(batch)?))
    }
}

/// Loss, its parts, and gradients of one micro-batch, or of several.
#[derive(Default)]
struct Share {
    loss: f64,
    parts: BTreeMap<&'static str, f64>,
    gradients: Gradients,
}

impl Share {
    fn add(&mut self, other: Self) -> Result<()> {
        self.loss += other.loss;
        other.parts.into_iter().for_each(|(name, part)| *self.parts.entry(name).or_default() += part);
        self.gradients.accumulate(other.gradients)
    }
}

/// In-order fold of results that arrive in any order.
struct InOrder<T, F> {
    fold: F,
    early: BTreeMap<usize, T>,
    next: usize,
}

impl<T, F: FnMut(T) -> Result<()>> InOrder<T, F> {
    fn take(&mut self, place: usize, result: T) -> Result<()> {
        self.early.insert(place, result);
        while let Some(result) = self.early.remove(&self.next) {
            (self.fold)(result)?;
            self.next += 1;
        }
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(step: u64, why: &str) -> Error {
    Error::training(format!(
        "step {}: {why}; the update was rejected and the last checkpoint is valid: resume with a lower learning rate, or \
         check the samples of this step",
        step + 1
    ))
}
