//! Observer that writes `metrics.jsonl`.

use crate::Result;
use crate::train::metrics::{MetricsLog, Record};
use crate::train::{RunStart, StepReport, TrainObserver};

/// Observer that writes the metrics of every step to `metrics.jsonl` in the run's folder. An error ends the run:
/// missing metrics cannot be recovered later.
#[derive(Debug, Default)]
pub struct MetricsFile {
    log: Option<MetricsLog>,
}

impl MetricsFile {
    /// Name of the file in the run's folder.
    pub const NAME: &'static str = "metrics.jsonl";
}

impl TrainObserver for MetricsFile {
    fn on_start(&mut self, start: &RunStart<'_>) -> Result<()> {
        self.log = Some(MetricsLog::open(start.output.join(Self::NAME), start.resumed)?);
        Ok(())
    }

    fn on_step(&mut self, _: &StepReport, metrics: &Record) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), |log| log.write(metrics))
    }
}
