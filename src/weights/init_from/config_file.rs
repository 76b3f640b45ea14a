//! Configurations that come with weights to inherit.

use std::path::Path;

use serde_json::Value;

use crate::weights::check_model_folder;
use crate::{Error, Result};

/// A configuration is some kilobytes; more than this is not one.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads the `config.json` of a model's folder, of bounded size.
pub(super) fn read_config(folder: &Path) -> Result<Value> {
    check_model_folder(folder)?;
    let path = &folder.join("config.json");
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes > MAX_CONFIG_BYTES {
        return Err(Error::format(path, format!("is {bytes} bytes, expected a configuration")));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::format(path, format!("is not JSON: {e}")))
}
