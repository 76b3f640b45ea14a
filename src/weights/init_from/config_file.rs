//! `config.json` of a model that weights are copied from.

use std::path::Path;

use serde_json::Value;

use crate::weights::check_model_folder;
use crate::{Error, Result, files};

/// Reads the `config.json` of a model folder, up to a size limit.
pub(super) fn read_config(folder: &Path) -> Result<Value> {
    check_model_folder(folder)?;
    let path = &folder.join("config.json");
    let text = files::read(path, files::MAX_MODEL_JSON_BYTES)?;
    serde_json::from_slice(&text).map_err(|e| Error::format(path, format!("is not JSON: {e}")).caused_by(e))
}
