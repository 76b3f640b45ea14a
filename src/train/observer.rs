//! Observers of a training run: the one way in which a run reports what happens.

use std::path::Path;

use super::evaluation::{EvalSample, Evaluation};
use super::metrics::Record;
use super::{Facts, Outcome, Recipe, StepReport};
use crate::{Error, Result};

/// Receiver of the events of a training run; every method does nothing by default.
///
/// Add observers with [`Run::with_observer`](super::Run::with_observer); [`observers`](super::observers) holds those of
/// this crate. They are called in the order in which they were added, on the thread that trains; [`Self::on_end`] on the
/// thread that called [`Run::train`](super::Run::train). Notices about checkpoints can come before [`Self::on_start`].
pub trait TrainObserver: Send {
    /// Whether an error of this observer ends the run (the default). Otherwise the error becomes a notice.
    fn is_required(&self) -> bool {
        true
    }

    /// Called before the first step, and after the checkpoint is loaded if the run is resumed.
    ///
    /// # Errors
    /// As the implementation documents; see [`Self::is_required`].
    fn on_start(&mut self, _start: &RunStart<'_>) -> Result<()> {
        Ok(())
    }

    /// Called after every step. `metrics` holds the loss, learning rate, gradient norm and speed of the step, and the
    /// validation loss and further measures if there was an evaluation after the step.
    ///
    /// # Errors
    /// As the implementation documents; see [`Self::is_required`].
    fn on_step(&mut self, _step: &StepReport, _metrics: &Record) -> Result<()> {
        Ok(())
    }

    /// Called at every evaluation on the validation samples, before [`Self::on_step`] of the same step. The returned
    /// values become metrics of the step.
    ///
    /// # Errors
    /// As the implementation documents; see [`Self::is_required`].
    fn on_evaluation(&mut self, _evaluation: &Evaluation<'_>) -> Result<Measures> {
        Ok(Measures::default())
    }

    /// Called after the checkpoint of `step` was written to the folder `path`.
    ///
    /// # Errors
    /// As the implementation documents; see [`Self::is_required`].
    fn on_checkpoint(&mut self, _step: u64, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// Called for every training sample that is skipped because it is invalid, once for each over the whole run.
    fn on_skipped_sample(&mut self, _sample: &SkippedSample) {}

    /// Called for other messages to the user, such as checkpoints that cannot be resumed from.
    fn on_notice(&mut self, _notice: &str) {}

    /// Called when the run ends, with its outcome or error.
    ///
    /// # Errors
    /// As the implementation documents; see [`Self::is_required`].
    fn on_end(&mut self, _end: std::result::Result<&Outcome, &Error>) -> Result<()> {
        Ok(())
    }
}

/// Start of a training run.
#[derive(Debug)]
#[non_exhaustive]
pub struct RunStart<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Folder of the run, which exists.
    pub output: &'a Path,
    /// Steps that a resumed run has done already; `None` for a new run.
    pub resumed: Option<u64>,
    /// Steps of the whole run.
    pub steps: u64,
    /// Size of the model and a first sample.
    pub facts: &'a Facts,
    /// Validation questions that the model is to answer at evaluations.
    pub eval_samples: &'a [EvalSample],
}

/// Values and notices of an observer at an evaluation.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Measures {
    /// Values by name, which become metrics of the step.
    pub values: Vec<(String, f64)>,
    /// Texts for [`TrainObserver::on_notice`] of all observers.
    pub notices: Vec<String>,
}

impl Measures {
    /// The measures with one more value.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.values.push((name.into(), value));
        self
    }

    /// The measures with one more notice.
    #[must_use]
    pub fn with_notice(mut self, notice: impl Into<String>) -> Self {
        self.notices.push(notice.into());
        self
    }
}

/// Training sample that was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedSample {
    /// Name of the sample in its data set.
    pub sample: String,
    /// Reason.
    pub reason: String,
    /// Different samples skipped so far, this one included.
    pub skipped: u64,
    /// Different samples seen so far, this one included.
    pub seen: u64,
}

/// All observers of a run.
#[derive(Default)]
pub(super) struct Observers(Vec<Observed>);

struct Observed {
    observer: Box<dyn TrainObserver>,
    /// Last error of an observer that is not required, so that one error is not repeated at every step.
    last_error: Option<String>,
}

impl Observers {
    pub fn push(&mut self, observer: Box<dyn TrainObserver>) {
        self.0.push(Observed { observer, last_error: None });
    }

    pub fn start(&mut self, start: &RunStart<'_>) -> Result<()> {
        self.each(|observer| observer.on_start(start))
    }

    pub fn step(&mut self, step: &StepReport, metrics: &Record) -> Result<()> {
        self.each(|observer| observer.on_step(step, metrics))
    }

    /// The values that all observers return together.
    pub fn evaluation(&mut self, evaluation: &Evaluation<'_>) -> Result<Vec<(String, f64)>> {
        let mut all = Measures::default();
        self.each(|observer| {
            let Measures { values, notices } = observer.on_evaluation(evaluation)?;
            all.values.extend(values);
            all.notices.extend(notices);
            Ok(())
        })?;
        all.notices.iter().for_each(|notice| self.notice(notice));
        Ok(all.values)
    }

    pub fn checkpoint(&mut self, step: u64, path: &Path) -> Result<()> {
        self.each(|observer| observer.on_checkpoint(step, path))
    }

    pub fn skipped_sample(&mut self, sample: &SkippedSample) {
        let SkippedSample { sample: name, reason, skipped, seen } = sample;
        tracing::warn!(sample = %name, %reason, skipped, seen, "sample skipped");
        self.0.iter_mut().for_each(|observed| observed.observer.on_skipped_sample(sample));
    }

    pub fn notice(&mut self, notice: &str) {
        self.0.iter_mut().for_each(|observed| observed.observer.on_notice(notice));
    }

    pub fn end(&mut self, end: std::result::Result<&Outcome, &Error>) -> Result<()> {
        self.each(|observer| observer.on_end(end))
    }

    /// Calls `event` for every observer, and returns the first error of a required one.
    fn each(&mut self, mut event: impl FnMut(&mut dyn TrainObserver) -> Result<()>) -> Result<()> {
        let (mut first, mut notices) = (Ok(()), Vec::new());
        for Observed { observer, last_error } in &mut self.0 {
            let Err(error) = event(observer.as_mut()) else { continue };
            if observer.is_required() {
                first = first.and(Err(error));
                continue;
            }
            let text = error.to_string();
            if last_error.as_ref() != Some(&text) {
                tracing::warn!(error = %text, "observer failed");
                notices.push(text.clone());
            }
            *last_error = Some(text);
        }
        notices.iter().for_each(|notice| self.notice(notice));
        first
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Failing {
        required: bool,
        notices: Sender<String>,
    }

    impl TrainObserver for Failing {
        fn is_required(&self) -> bool {
            self.required
        }

        fn on_checkpoint(&mut self, step: u64, _: &Path) -> Result<()> {
            Err(Error::training(format!("full in {}", step / 2)))
        }

        fn on_notice(&mut self, notice: &str) {
            self.notices.send(notice.into()).unwrap();
        }
    }

    #[test]
    fn errors_of_required_observers_end_the_run_and_others_become_a_notice() {
        let (notices, received) = channel();
        let mut observers = Observers::default();
        observers.push(Box::new(Failing { required: false, notices: notices.clone() }));
        (2..=5).for_each(|step| observers.checkpoint(step, Path::new("")).unwrap());
        assert_eq!(received.try_iter().collect::<Vec<_>>(), ["training: full in 1", "training: full in 2"]);
        observers.push(Box::new(Failing { required: true, notices }));
        assert!(observers.checkpoint(5, Path::new("")).unwrap_err().to_string().contains("full in 2"));
    }
}
