//! Observer that draws the loss curves.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::train::metrics::{LOSS, Record, VALIDATION_LOSS};
use crate::train::plot::{Plot, Series};
use crate::train::{RunStart, StepReport, TrainObserver};

/// Observer that draws the training and validation loss to `loss.svg` in the run's folder at every checkpoint. An error
/// becomes a notice.
///
/// The plot of a resumed run shows earlier steps as far as `metrics.jsonl` holds them.
#[derive(Debug, Default)]
pub struct LossPlot {
    path: PathBuf,
    stage: &'static str,
    training: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
}

impl LossPlot {
    fn add(&mut self, metrics: &Record) {
        let step = metrics.step as f64;
        self.training.extend(metrics.get(LOSS).map(|loss| (step, loss)));
        self.validation.extend(metrics.get(VALIDATION_LOSS).map(|loss| (step, loss)));
    }
}

impl TrainObserver for LossPlot {
    fn is_required(&self) -> bool {
        false
    }

    fn on_start(&mut self, start: &RunStart<'_>) -> Result<()> {
        *self = Self { path: start.output.join("loss.svg"), stage: start.recipe.stage.name(), ..Self::default() };
        let metrics = start.output.join(super::MetricsFile::NAME);
        let Some(resumed) = start.resumed else { return Ok(()) };
        if !crate::files::exists(&metrics)? {
            return Ok(());
        }
        let records = crate::train::metrics::read_metrics(metrics)?;
        records.iter().filter(|record| record.step <= resumed).for_each(|record| self.add(record));
        Ok(())
    }

    fn on_step(&mut self, _: &StepReport, metrics: &Record) -> Result<()> {
        self.add(metrics);
        Ok(())
    }

    fn on_checkpoint(&mut self, _: u64, _: &Path) -> Result<()> {
        let series = |name: &str, points: &[(f64, f64)]| Series { name: name.into(), points: points.to_vec() };
        let mut curves = vec![series("training", &self.training)];
        if !self.validation.is_empty() {
            curves.push(series("validation", &self.validation));
        }
        Plot::losses(format!("{}: loss", self.stage), curves).write_svg(&self.path)
    }
}
