//! Downloads with a progress bar.

use haplovl::Result;
use haplovl::weights::{ModelSource, ResolvedModel};

/// The files of a model. What is not in the cache is downloaded, with a progress bar if stderr is a terminal.
#[cfg(feature = "hub")]
pub fn model(source: &ModelSource) -> Result<ResolvedModel> {
    use haplovl::weights::Hub;
    use indicatif::{ProgressBar, ProgressStyle};

    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    let shown = bar.clone();
    let hub = Hub::from_env().with_progress(move |progress| {
        shown.set_length(progress.total);
        shown.set_position(progress.bytes);
    });
    let model = source.resolve_with(|id, revision| hub.download(id, revision));
    bar.finish_and_clear();
    model
}

/// The files of a model; this build cannot download.
#[cfg(not(feature = "hub"))]
pub fn model(source: &ModelSource) -> Result<ResolvedModel> {
    source.resolve()
}
