//! Files of the small model that is part of this crate; `assets/builtin/README.md` describes its training and abilities.

use tempfile::TempDir;

use crate::{Error, Result};

/// Content of `config.json`.
pub(crate) const CONFIG: &str = include_str!("../../assets/builtin/config.json");
/// Content of `model.safetensors`.
pub(crate) static WEIGHTS: &[u8] = include_bytes!("../../assets/builtin/model.safetensors");

/// The other files, by their paths in the model's folder.
const OTHERS: [(&str, &str); 7] = [
    ("chat_template.json", include_str!("../../assets/builtin/chat_template.json")),
    ("generation_config.json", include_str!("../../assets/builtin/generation_config.json")),
    ("preprocessor_config.json", include_str!("../../assets/builtin/preprocessor_config.json")),
    ("processor_config.json", include_str!("../../assets/builtin/processor_config.json")),
    ("tokenizer.json", include_str!("../../assets/builtin/tokenizer.json")),
    ("tokenizer_config.json", include_str!("../../assets/builtin/tokenizer_config.json")),
    (
        "video_processor/preprocessor_config.json",
        include_str!("../../assets/builtin/video_processor/preprocessor_config.json"),
    ),
];

/// Writes the model folder to a temporary folder, which is removed with the returned value.
///
/// # Errors
/// [`Error::Io`] if a file cannot be written.
pub(super) fn unpack() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("haplovl-builtin-").tempdir();
    let folder = folder.map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let others = OTHERS.iter().map(|(name, text)| (*name, text.as_bytes()));
    for (name, bytes) in others.chain([("config.json", CONFIG.as_bytes()), ("model.safetensors", WEIGHTS)]) {
        let path = folder.path().join(name);
        let parent = path.parent().unwrap_or(folder.path());
        std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes)).map_err(|e| Error::io(&path, e))?;
    }
    Ok(folder)
}
