//! Configuration files on disk.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::HaploVlConfig;
use crate::{Error, Result, files};

/// Deserialises a value and names a wrong field by its path. `whole` names the value itself, for errors without a path,
/// and `expected` says what the value should be.
pub(crate) fn from_value<T: DeserializeOwned>(whole: &str, expected: &str, value: &Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| match e.path().iter().next() {
        Some(_) => Error::config(e.path().to_string(), e.inner().to_string()),
        None => Error::config(whole, format!("{}; expected {expected}", e.inner())),
    })
}

impl HaploVlConfig {
    /// Reads and checks a `config.json` in official form or in this crate's form, see [`Self::from_json`].
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not JSON, and the errors of
    /// [`Self::from_json`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_json(files::read_json(path)?).map_err(|e| e.in_file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_and_names_the_file_that_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let message = HaploVlConfig::from_file(&path).unwrap_err().to_string();
        assert!(message.contains("config.json"), "{message}");
        std::fs::write(&path, serde_json::to_string(&HaploVlConfig::tiny()).unwrap()).unwrap();
        assert_eq!(HaploVlConfig::from_file(&path).unwrap(), HaploVlConfig::tiny());
        for broken in ["", "{\"model_type\": \"haplo", "\u{0}"] {
            std::fs::write(&path, broken).unwrap();
            let error = HaploVlConfig::from_file(&path).unwrap_err();
            assert!(matches!(&error, Error::Format { path: named, .. } if *named == path), "{error}");
        }
        let error = HaploVlConfig::from_file(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
