//! What answers depend on, which is kept beside them so that a resumed run adds no others.

use anyhow::Result;
use haplovl::pipeline::ModelSource;
use serde_json::{Map, Value};

use crate::checksum::checksum;
use crate::model::ModelOptions;
use crate::sampling::SamplingOptions;

/// What answers depend on beside their prompts, without what is left at its default. `own_sampling` says whether the model's
/// own sampling settings count, which its checksum covers.
///
/// # Errors
/// If sampling options contradict each other.
pub fn settings(model: &ModelOptions, sampling: &SamplingOptions, own_sampling: bool) -> Result<Map<String, Value>> {
    // A path may be spelled in several ways, and hold another model later.
    let folder = if let ModelSource::Path(folder) = model.source() { checksum(folder) } else { None };
    let name = folder.unwrap_or_else(|| model.source().to_string());
    let mut settings = Map::from_iter([("model".to_owned(), Value::from(name))]);
    settings.extend(model.adapter().map(|adapter| ("adapter".to_owned(), checksum(adapter).into())));
    settings.extend(model.settings());
    settings.extend(sampling.settings(own_sampling)?);
    Ok(settings)
}
