//! One training step: forward, backward, reduction, clipping, update.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use candle_core::{Tensor, Var};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::large_stack::STACK_BYTES;
use super::objectives::{Counts, Loss, Objective};
use super::reduction::{Exchange, Reduction};
use crate::batch::MultimodalBatch;
use crate::distributed::World;
use crate::nn::ops::with_dropout;
use crate::optim::{AdamW, AdamWConfig, Gradients, Schedule, clip_scale, squared_norm};
use crate::{Error, Result};

/// Report on an optimizer step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Loss before the update.
    pub loss: f64,
    /// Named summands of the loss.
    pub parts: BTreeMap<String, f64>,
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
    exchange: Exchange,
    /// Seed of dropout.
    seed: u64,
    /// One single-threaded pool per micro-batch that is computed in parallel; empty without parallelism.
    workers: Vec<ThreadPool>,
}

impl<O: Objective> Trainer<O> {
    /// A trainer of `parameters`; all of them must receive gradients from `objective`.
    pub fn new(objective: O, parameters: BTreeMap<String, Var>, optimizer: AdamW, rule: UpdateRule) -> Self {
        let exchange = Exchange::new(World::default(), &parameters);
        Self { objective, parameters, optimizer, rule, exchange, seed: 0, workers: Vec::new() }
    }

    /// A trainer of `parameters` on one of several ranks, with AdamW of these settings.
    ///
    /// The ranks take equal shares of the micro-batches of a step. Each owns some of the parameters: it sums their
    /// gradients, holds their moments and EMA, and updates them; then all get the updated parameters. A step equals that of
    /// one process with the micro-batches of all ranks, but for the order of sums in f32; the same ranks give the same bits.
    ///
    /// # Errors
    /// As [`AdamW::new`].
    pub fn in_world(
        objective: O,
        parameters: BTreeMap<String, Var>,
        settings: AdamWConfig,
        rule: UpdateRule,
        world: World,
    ) -> Result<Self> {
        let exchange = Exchange::new(world, &parameters);
        let optimizer = AdamW::sharded(&parameters, settings, |name| exchange.owns(name))?;
        Ok(Self { exchange, ..Self::new(objective, parameters, optimizer, rule) })
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

    /// The ranks that train together.
    pub fn world(&self) -> &World {
        &self.exchange.world
    }

    /// One update from this rank's share of the micro-batches of the step, whose losses and gradients add up, over all
    /// ranks, to those of the step. With several ranks, all of them call it.
    ///
    /// # Errors
    /// [`Error::Training`] if loss or gradients are not finite, or a parameter got no gradient; parameters and
    /// optimizer are then as they were before, on all ranks. And if another rank has failed.
    pub fn step(&mut self, micro_batches: &[MultimodalBatch]) -> Result<StepReport> {
        let began = Instant::now();
        let step = self.optimizer.steps();
        let own = self.count(micro_batches)?;
        let counts = self.world().gather_all(own)?.into_iter().fold(Counts::default(), |all, own| all + own);
        let (loss, parts, gradients) = self.summed(micro_batches, &counts)?;
        if !loss.is_finite() {
            return Err(refused(step, &format!("the loss is {loss}")));
        }
        let grad_norm = self.norm(step, &gradients)?;
        let learning_rate = self.rule.learning_rate * self.rule.schedule.factor(step, self.rule.total_steps);
        self.optimizer.step(&gradients, learning_rate, clip_scale(grad_norm, self.rule.max_grad_norm))?;
        drop(gradients);
        self.exchange.gather(&self.parameters)?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(StepReport { step: step + 1, loss, parts, learning_rate, grad_norm, counts, seconds })
    }

    /// Loss and its parts over all ranks, and the gradients of the parameters that this rank owns.
    fn summed(&mut self, micro_batches: &[MultimodalBatch], counts: &Counts) -> Result<(f64, Parts, Gradients)> {
        let (share, reduction) = self.reduced(micro_batches, counts)?;
        let mut gradients = match reduction {
            None => share.gradients,
            Some(reduction) => {
                let found = reduction.found().to_vec();
                let gradients = reduction.finish(&self.parameters)?;
                self.exchange.set_order(&found, &self.parameters)?;
                gradients
            }
        };
        let (objective, exchange) = (&self.objective, &self.exchange);
        let may_lack = |name: &str| exchange.owns(name) && objective.may_lack_gradient(name, counts);
        gradients.fill_missing(&self.parameters, may_lack)?;
        let (loss, parts) = self.losses(share.loss, share.parts)?;
        Ok((loss, parts, gradients))
    }

    /// This rank's share of the loss, with the sum of gradients over all ranks that has begun; without other ranks, the
    /// gradients are those of the share.
    ///
    /// Gradients of the last micro-batch leave while its backward pass goes on. Micro-batches in parallel have no last one.
    fn reduced(&self, micro_batches: &[MultimodalBatch], counts: &Counts) -> Result<(Share, Option<Reduction>)> {
        let mut order = longest_first(micro_batches);
        let last = if self.exchange.is_shared() && self.workers.is_empty() { order.pop() } else { None };
        let mut sum = self.sum(&order, counts)?;
        if !self.exchange.is_shared() {
            return Ok((sum, None));
        }
        let mut reduction = self.exchange.begin(std::mem::take(&mut sum.gradients));
        if let Some((at, batch)) = last {
            let share;
            (share, reduction) = with_dropout(self.dropout_seed(at), || self.last_share(batch, counts, reduction))?;
            sum.add(share)?;
        }
        Ok((sum, Some(reduction)))
    }

    /// Loss of the last micro-batch of this rank, whose gradients go to `reduction` as soon as they are found.
    fn last_share(&self, batch: &MultimodalBatch, counts: &Counts, reduction: Reduction) -> Result<(Share, Reduction)> {
        let (share, total) = self.forward(batch, counts)?;
        let reduction = Rc::new(RefCell::new(reduction));
        let taker = Rc::clone(&reduction);
        Gradients::as_found(total, &self.parameters, move |name, gradient| {
            taker.borrow_mut().deliver(name, gradient);
            Ok(())
        })?;
        let reduction = Rc::into_inner(reduction).map(RefCell::into_inner);
        let reduction = reduction.ok_or_else(|| Error::training("a backward pass has not ended; this is a bug"))?;
        Ok((share, reduction))
    }

    /// Loss and its parts over all ranks, added up in their order.
    fn losses(&self, loss: f64, parts: Parts) -> Result<(f64, Parts)> {
        let bits: Vec<(String, u64)> = parts.into_iter().map(|(name, part)| (name, part.to_bits())).collect();
        let (mut sum, mut sums) = (0.0, Parts::new());
        for (loss, parts) in self.world().gather_all((loss.to_bits(), bits))? {
            sum += f64::from_bits(loss);
            parts.into_iter().for_each(|(name, part)| *sums.entry(name).or_default() += f64::from_bits(part));
        }
        Ok((sum, sums))
    }

    /// Global norm of the gradients of all ranks, each of which gives those that it owns.
    fn norm(&self, step: u64, gradients: &Gradients) -> Result<f64> {
        let own = squared_norm(gradients).map_err(|e| refused(step, &e.to_string()).caused_by(e));
        let own = own.and_then(|own| self.optimizer.check_gradients(gradients).map(|()| own));
        let all = self.world().gather_all(self.world().agree(own)?.to_bits())?;
        Ok(all.into_iter().map(f64::from_bits).sum::<f64>().sqrt())
    }

    /// Swaps the parameters and their EMA on all ranks; a second call swaps them back. Without an EMA nothing happens.
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn swap_averages(&mut self) -> Result<()> {
        if self.optimizer.is_averaging() {
            self.optimizer.swap_averages()?;
            self.share_parameters()?;
        }
        Ok(())
    }

    /// Gives every rank the parameters as their owners have them, for example before the first step.
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn share_parameters(&self) -> Result<()> {
        self.exchange.gather(&self.parameters)
    }

    /// Loss, its parts, and gradients over some micro-batches of a step of `counts`: gradients of all parameters that
    /// the loss depends on, and zeros for parameters that may lack a gradient. Other ranks are not asked.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn gradients(&self, micro_batches: &[MultimodalBatch], counts: &Counts) -> Result<(f64, Parts, Gradients)> {
        let Share { loss, parts, mut gradients } = self.sum(&longest_first(micro_batches), counts)?;
        gradients.fill_missing(&self.parameters, |name| self.objective.may_lack_gradient(name, counts))?;
        Ok((loss, parts, gradients))
    }

    /// The sum of the shares of some micro-batches.
    fn sum(&self, micro_batches: &[(usize, &MultimodalBatch)], counts: &Counts) -> Result<Share> {
        let mut sum = Share::default();
        let share =
            |at: usize, batch: &MultimodalBatch| with_dropout(self.dropout_seed(at), || self.share(batch, counts));
        self.each(micro_batches, share, |share| sum.add(share))?;
        Ok(sum)
    }

    /// Seed of the dropout of a micro-batch of this rank in the next step, by its number among those of all ranks, which are
    /// dealt in turn.
    fn dropout_seed(&self, micro_batch: usize) -> u64 {
        let micro_batch = micro_batch * self.world().size() + self.world().rank();
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
        let (share, total) = self.forward(batch, counts)?;
        Ok(Share { gradients: Gradients::of(total, &self.parameters)?, ..share })
    }

    /// Loss of one micro-batch of a step of `counts`, with its graph and without gradients yet.
    fn forward(&self, batch: &MultimodalBatch, counts: &Counts) -> Result<(Share, Tensor)> {
        let Loss { total, parts } = self.objective.loss(batch, counts)?;
        let loss = f64::from(total.to_scalar::<f32>()?);
        let parts = parts.into_iter().map(|(name, part)| (name.to_string(), part)).collect();
        Ok((Share { loss, parts, gradients: Gradients::default() }, total))
    }

    /// Applies `f` to each batch and its number, as many at a time as there are workers, and folds the results with `fold`,
    /// in the order of the batches and not of completion, so that sums are deterministic.
    fn each<T: Send>(
        &self,
        batches: &[(usize, &MultimodalBatch)],
        f: impl Fn(usize, &MultimodalBatch) -> Result<T> + Sync,
        mut fold: impl FnMut(T) -> Result<()> + Send,
    ) -> Result<()> {
        if self.workers.is_empty() {
            return batches.iter().try_for_each(|(at, batch)| fold(f(*at, batch)?));
        }
        let waiting = Mutex::new(batches.iter().enumerate());
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

    /// Mean loss over batches, without any update. Other ranks are not asked.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn evaluate(&self, batches: &[MultimodalBatch]) -> Result<f64> {
        let counts = self.count(batches)?;
        let loss =
            |_, batch: &MultimodalBatch| Ok(f64::from(self.objective.loss(batch, &counts)?.total.to_scalar::<f32>()?));
        let mut sum = 0.0;
        self.each(&longest_first(batches), loss, |loss| {
            sum += loss;
            Ok(())
        })?;
        Ok(sum)
    }

    fn count(&self, batches: &[MultimodalBatch]) -> Result<Counts> {
        batches.iter().try_fold(Counts::default(), |sum, batch| Ok(sum + self.objective.counts(batch)?))
    }
}

/// Named summands of a loss.
type Parts = BTreeMap<String, f64>;

/// Batches with their numbers, long ones first, so that no worker is left with one at the end.
fn longest_first(batches: &[MultimodalBatch]) -> Vec<(usize, &MultimodalBatch)> {
    let mut order: Vec<_> = batches.iter().enumerate().collect();
    order.sort_by_key(|(_, batch)| Reverse(batch.input_ids.elem_count()));
    order
}

/// Loss, its parts, and gradients of one micro-batch, or of several.
#[derive(Default)]
struct Share {
    loss: f64,
    parts: Parts,
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
