//! Downloads with a progress bar.

use std::path::PathBuf;

use haplovl::Result;
use haplovl::pipeline::ModelSource;

/// The folder of a model. What is not in the cache is downloaded, with a progress bar if stderr is a terminal.
#[cfg(feature = "hub")]
pub fn folder(source: &ModelSource) -> Result<PathBuf> {
    use haplovl::weights::Hub;
    use indicatif::{ProgressBar, ProgressStyle};

    let ModelSource::Named { name, revision } = source else { return source.folder() };
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    let shown = bar.clone();
    let hub = Hub::from_env().with_progress(move |progress| {
        shown.set_length(progress.total);
        shown.set_position(progress.bytes);
    });
    let folder = hub.resolve(name, revision.as_deref());
    bar.finish_and_clear();
    folder
}

/// The folder of a model; this build cannot download.
#[cfg(not(feature = "hub"))]
pub fn folder(source: &ModelSource) -> Result<PathBuf> {
    source.folder()
}
