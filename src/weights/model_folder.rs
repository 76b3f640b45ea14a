//! Check that a folder is a model folder.

use std::path::Path;

use crate::{Error, Result};

/// Folder of a model that is given by its folder or by a file of weights in it.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|_| path.is_file()).unwrap_or(path)
}

/// Rejects a folder without `config.json`, with a hint at the folder that may be meant instead.
pub(crate) fn check_model_folder(folder: &Path) -> Result<()> {
    const CONFIG: &str = "config.json";
    let export = folder.join("export");
    let problem = if folder.join(CONFIG).is_file() {
        return Ok(());
    } else if !folder.is_dir() {
        "is not a folder: give the folder of a model, or first train the stage that exports it".to_string()
    } else if export.join(CONFIG).is_file() {
        format!("is the folder of a training run: its model is in {}", export.display())
    } else if folder.join("checkpoints").is_dir() {
        "is the folder of a training run without a model yet: `export` is written when the run ends".to_string()
    } else if let Some(gguf) = gguf_in(folder) {
        format!("holds no {CONFIG}: give the folder of a model, or for a language model the file `{gguf:.60}` in it")
    } else {
        format!("holds no {CONFIG}: give the folder of a model in the form of Hugging Face")
    };
    Err(Error::format(folder, problem))
}

/// Name of the first GGUF file in a folder.
fn gguf_in(folder: &Path) -> Option<String> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    files.filter(|name| name.to_ascii_lowercase().ends_with(".gguf")).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_suggest_the_right_folder() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| check_model_folder(path).unwrap_err().to_string();
        assert!(message(&folder.path().join("none")).contains("first train"));
        assert!(message(folder.path()).contains("config.json"));
        std::fs::write(folder.path().join("x.gguf"), "").unwrap();
        assert!(message(folder.path()).contains("the file `x.gguf` in it"));
        std::fs::create_dir(folder.path().join("checkpoints")).unwrap();
        assert!(message(folder.path()).contains("when the run ends"));
        let export = folder.path().join("export");
        std::fs::create_dir(&export).unwrap();
        std::fs::write(export.join("config.json"), "{}").unwrap();
        assert!(message(folder.path()).contains(&export.display().to_string()));
        check_model_folder(&export).unwrap();
    }
}
