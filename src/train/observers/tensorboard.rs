//! Observer that writes TensorBoard event files.

use crate::Result;
use crate::train::metrics::Record;
use crate::train::tensorboard::TensorBoardWriter;
use crate::train::{RunStart, StepReport, TrainObserver};

/// Observer that writes the metrics of every step to event files in `tensorboard/` in the run's folder. An error
/// becomes a notice.
#[derive(Debug, Default)]
pub struct TensorBoard {
    writer: Option<TensorBoardWriter>,
}

impl TrainObserver for TensorBoard {
    fn is_required(&self) -> bool {
        false
    }

    fn on_start(&mut self, start: &RunStart<'_>) -> Result<()> {
        self.writer = Some(TensorBoardWriter::create(start.output.join("tensorboard"), start.resumed)?);
        Ok(())
    }

    fn on_step(&mut self, _: &StepReport, metrics: &Record) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.write(metrics))
    }
}
