//! Whether a folder can be that of a model.

use std::path::Path;

use crate::{Error, Result};

/// Refuses a folder without `config.json`, and says which one may be meant instead.
pub(crate) fn check_model_folder(folder: &Path) -> Result<()> {
    const CONFIG: &str = "config.json";
    let export = folder.join("export");
    let problem = if folder.join(CONFIG).is_file() {
        return Ok(());
    } else if !folder.is_dir() {
        "is no folder: give that of a model, or first train the stage that writes it".to_string()
    } else if export.join(CONFIG).is_file() {
        format!("is the folder of a training run: its model is in {}", export.display())
    } else if folder.join("checkpoints").is_dir() {
        "is the folder of a training run without a model yet: `export` is written when the run ends".to_string()
    } else {
        format!("holds no {CONFIG}: give the folder of a model in the form of Hugging Face")
    };
    Err(Error::format(folder, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_folder_may_be_meant() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| check_model_folder(path).unwrap_err().to_string();
        assert!(message(&folder.path().join("none")).contains("first train"));
        assert!(message(folder.path()).contains("config.json"));
        std::fs::create_dir(folder.path().join("checkpoints")).unwrap();
        assert!(message(folder.path()).contains("when the run ends"));
        let export = folder.path().join("export");
        std::fs::create_dir(&export).unwrap();
        std::fs::write(export.join("config.json"), "{}").unwrap();
        assert!(message(folder.path()).contains(&export.display().to_string()));
        check_model_folder(&export).unwrap();
    }
}
