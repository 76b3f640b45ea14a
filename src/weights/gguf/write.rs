//! Writing GGUF files.

use std::path::Path;

use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Value};

use super::MODEL_FILE;
use crate::weights::write_atomically;
use crate::{Error, Result};

/// Value of `general.architecture` for a HaploVL model.
const ARCHITECTURE: &str = "haplovl";
/// Longest tensor name in bytes that is written, the limit of llama.cpp.
const MAX_NAME: usize = 64;

/// Writes the tensors of a HaploVL model under their own names to `model.gguf` in `folder`, atomically.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Weights`] for a tensor name that is too long for GGUF.
pub fn save_gguf(folder: impl AsRef<Path>, tensors: &[(String, QTensor)]) -> Result<()> {
    let path = &folder.as_ref().join(MODEL_FILE);
    if let Some((name, _)) = tensors.iter().find(|(name, _)| name.len() > MAX_NAME) {
        return Err(Error::weights(format!(
            "the tensor name `{name}` is longer than the {MAX_NAME} bytes that GGUF allows"
        )));
    }
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let architecture = Value::String(ARCHITECTURE.into());
    write_atomically(path, |writer| {
        let written = gguf_file::write(writer, &[("general.architecture", &architecture)], &tensors);
        written.map_err(|e| Error::format(path, format!("cannot be written: {e}")).caused_by(e))
    })
}
