//! Observers of this crate: progress on stderr, metrics, TensorBoard, the loss plot and validation transcripts.

mod eval_samples;
mod loss_plot;
mod metrics_file;
mod progress;
mod tensorboard;

pub use eval_samples::EvalSamples;
pub use loss_plot::LossPlot;
pub use metrics_file::MetricsFile;
pub use progress::Progress;
pub use tensorboard::TensorBoard;

use super::TrainObserver;

/// All observers of this crate: what the `train` example uses.
pub fn all() -> Vec<Box<dyn TrainObserver>> {
    vec![
        Box::new(Progress::default()),
        Box::new(MetricsFile::default()),
        Box::new(TensorBoard::default()),
        Box::new(LossPlot::default()),
        Box::new(EvalSamples::default()),
    ]
}
