//! Training loop: batches, steps, evaluations and checkpoints until the run ends.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::checkpoint::{CheckpointManager, Contents};
use super::collate::Prepared;
use super::evaluation::Evaluation;
use super::metrics::{GRAD_NORM, LEARNING_RATE, LOSS, Record, SAMPLES_PER_SECOND, TOKENS_PER_SECOND, VALIDATION_LOSS};
use super::observer::SkippedSample;
use super::outcome::DataReport;
use super::resume::RunState;
use super::{Outcome, Run, StepReport};
use crate::batch::MultimodalBatch;
use crate::data::{Dataset, Loader};
use crate::error::one_line;
use crate::{Error, Result};

/// Number of samples with cut answers that are named; all are counted.
const NAMED_CUT: u64 = 10;

/// State of the training loop.
pub(super) struct TrainingLoop {
    checkpoints: CheckpointManager,
    loader: Loader<Prepared>,
    skipped: Receiver<SkippedSample>,
    state: RunState,
    /// Step of the newest checkpoint, if there is one.
    saved: Option<u64>,
}

impl TrainingLoop {
    /// A loop that starts at `state`; parameters and optimizer have been restored already.
    pub fn new(run: &Run, checkpoints: CheckpointManager, state: RunState) -> Result<Self> {
        let (loader, skipped) = run.data.loader(&run.recipe, state.loader.clone())?;
        let loader = loader.in_world(run.trainer.world().clone())?;
        let done = run.trainer.optimizer().steps();
        Ok(Self { checkpoints, loader, skipped, state, saved: (done > 0).then_some(done) })
    }

    /// Trains until all steps are done, early stopping ends the run, or a stop is requested.
    pub fn run(mut self, run: &mut Run) -> Result<Outcome> {
        let result = self.train(run);
        run.report = DataReport::new(&self.state);
        if let Some(text) = run.report.notice() {
            run.observers.notice(&text);
        }
        result
    }

    fn train(&mut self, run: &mut Run) -> Result<Outcome> {
        while !self.gave_up(run) {
            let done = run.trainer.optimizer().steps();
            if done >= run.length.steps {
                return Ok(Outcome::Finished { export: run.export()? });
            }
            // A signal may have reached any rank.
            if run.trainer.world().any(run.should_stop(done))? {
                return self.stop(run);
            }
            let _span = tracing::info_span!("step", step = done + 1).entered();
            self.step(run)?;
        }
        self.give_up(run)
    }

    fn gave_up(&self, run: &Run) -> bool {
        self.state.gave_up(run.recipe.run.early_stopping_patience)
    }

    /// One step, and the evaluation and checkpoint that are due after it.
    fn step(&mut self, run: &mut Run) -> Result<()> {
        let began = Instant::now();
        let batches = self.next_batches(run)?;
        let report = run.trainer.step(&batches)?;
        // The time includes the wait for samples.
        let report = StepReport { seconds: began.elapsed().as_secs_f64(), ..report };
        let StepReport { step, loss, learning_rate, grad_norm, .. } = report;
        tracing::debug!(step, loss, lr = learning_rate, grad_norm, "step done");
        let (score, measures) = if is_evaluated(run, step) { self.evaluate(run, step)? } else { (None, Vec::new()) };
        let metrics = measures.into_iter().fold(metrics_of(&report), |record, (name, value)| record.with(name, value));
        let improved = score.is_some_and(|loss| self.state.update(loss));
        run.observers.step(&report, &metrics)?;
        let last = step == run.length.steps;
        if step.is_multiple_of(run.recipe.run.save_steps) || improved || last || self.gave_up(run) {
            self.save(run, score)?;
        }
        Ok(())
    }

    /// Validation loss, and the values of all observers including it.
    #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
    fn evaluate(&self, run: &mut Run, step: u64) -> Result<(Option<f64>, Vec<(String, f64)>)> {
        let _span = tracing::info_span!("evaluation", step).entered();
        let (world, mut measures) = (run.trainer.world().clone(), Vec::new());
        let loss = run.averaged(|run| {
            world.from_first(|| {
                let loss = run.trainer.evaluate(&run.validation.batches)?;
                let Run { config, parameters, frozen, data, device, validation, observers, .. } = run;
                let adapted = frozen.as_ref().map(|frozen| &frozen.model);
                let (processor, eval_samples) = (&data.processor, &*validation.questions);
                let evaluation =
                    Evaluation { step, loss, config, parameters, adapted, processor, device, eval_samples };
                measures = observers.evaluation(&evaluation)?;
                // As bits, which are exact also for NaN.
                Ok(loss.to_bits())
            })
        })?;
        let loss = f64::from_bits(loss);
        tracing::info!(step, loss, "evaluation");
        measures.push((VALIDATION_LOSS.into(), loss));
        Ok((Some(loss), measures))
    }

    /// The micro-batches of the next step that this rank takes: those of all ranks are dealt in turn. Skipped samples are
    /// reported even if there are too many of them.
    fn next_batches(&mut self, run: &mut Run) -> Result<Vec<MultimodalBatch>> {
        let form = run.recipe.stage.sample_form();
        let count = run.recipe.update.gradient_accumulation_steps;
        let (mut batches, mut cut) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let group = self.loader.next();
            self.skipped.try_iter().for_each(|sample| run.observers.skipped_sample(&sample));
            let group = group.ok_or_else(|| Error::data("no training samples are left"))??;
            let prepared = group.samples.iter().zip(group.rows.iter().flatten());
            cut.extend(prepared.filter(|(_, prepared)| prepared.is_cut).map(|(index, _)| *index));
            self.state.loader = group.state;
            if !group.is_own {
                continue;
            }
            let rows = group.rows.into_iter().map(|row| row.into_iter().map(|prepared| prepared.sequence).collect());
            batches.push(form.collate(rows.collect(), &run.config, &run.device)?);
        }
        let cut = run.trainer.world().gather_all(cut)?.concat();
        self.count_cut(&cut, run);
        Ok(batches)
    }

    /// Counts samples whose answers were cut, and names the first ones.
    fn count_cut(&mut self, samples: &[usize], run: &mut Run) {
        for index in samples {
            if self.state.cut.insert(*index) && self.state.cut.len() <= NAMED_CUT {
                let name = one_line(&run.data.samples.describe(*index));
                run.observers.notice(&format!("{name}: the end of its last answer is cut"));
            }
        }
    }

    fn save(&mut self, run: &mut Run, score: Option<f64>) -> Result<PathBuf> {
        let step = run.trainer.optimizer().steps();
        let contents = Contents {
            step,
            parameters: &run.parameters.tensors(),
            optimizer: &run.trainer.optimizer().state()?,
            state: &self.state,
            score,
        };
        let path = self.checkpoints.save_in(run.trainer.world(), &contents)?;
        self.saved = Some(step);
        tracing::info!(step, path = %path.display(), "checkpoint");
        run.observers.checkpoint(step, &path)?;
        Ok(path)
    }

    /// Ends the run with a checkpoint of the current step.
    fn stop(&mut self, run: &mut Run) -> Result<Outcome> {
        let step = run.trainer.optimizer().steps();
        let checkpoint = match step {
            0 => None,
            step if self.saved == Some(step) => Some(self.checkpoints.path(step)),
            _ => Some(self.save(run, None)?),
        };
        Ok(Outcome::Stopped { step, checkpoint })
    }

    /// Exports the parameters with the lowest validation loss.
    fn give_up(&self, run: &mut Run) -> Result<Outcome> {
        let step = run.trainer.optimizer().steps();
        let best_step = self.checkpoints.best()?.unwrap_or(step);
        if best_step != step {
            run.load(&self.checkpoints.load(best_step)?)?;
        }
        run.observers.notice(&format!(
            "the validation loss no longer falls: the run ends early, with the parameters of step {best_step}"
        ));
        Ok(Outcome::GaveUp { step, best_step, export: run.export()? })
    }
}

fn is_evaluated(run: &Run, step: u64) -> bool {
    let due = step.is_multiple_of(run.recipe.run.eval_steps) || step == run.length.steps;
    due && !run.validation.batches.is_empty()
}

fn metrics_of(report: &StepReport) -> Record {
    let record = Record::new(report.step)
        .with(LOSS, report.loss)
        .with(LEARNING_RATE, report.learning_rate)
        .with(GRAD_NORM, report.grad_norm)
        .with(SAMPLES_PER_SECOND, report.counts.samples as f64 / report.seconds)
        .with(TOKENS_PER_SECOND, report.counts.tokens as f64 / report.seconds);
    report.parts.iter().fold(record, |record, (name, value)| record.with(format!("{LOSS}/{name}"), *value))
}
