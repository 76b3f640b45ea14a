//! `config.json` of a model that weights are copied from.

use std::path::Path;

use serde_json::Value;

use crate::weights::{check_model_folder, folder_of};
use crate::{Result, files};

/// Reads the `config.json` of a model folder, or beside a file of weights, up to a size limit.
pub(super) fn read_config(path: &Path) -> Result<Value> {
    let folder = folder_of(path);
    check_model_folder(folder)?;
    files::read_json(folder.join("config.json"))
}
