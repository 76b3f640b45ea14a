//! Files of the processor in a model folder.

use std::path::Path;

use serde_json::{Value, json};

use super::chat_template::ChatTemplate;
use super::processor::ProcessorSettings;
use super::tokenizer::TextTokenizer;
use crate::config::{HaploVlConfig, PreprocessorConfig, ProcessorConfig};
use crate::weights::write_bytes_atomically;
use crate::{Error, Result, files};

const IMAGE: &str = "preprocessor_config.json";
const VIDEO: &str = "video_processor/preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";

/// Reads a JSON file; `None` if it does not exist.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    if !files::exists(path)? {
        return Ok(None);
    }
    files::read_json(path).map(Some)
}

pub(super) fn read_settings(folder: &Path, model: &HaploVlConfig) -> Result<ProcessorSettings> {
    let mut settings = ProcessorSettings::new(model);
    let [image, video] = [IMAGE, VIDEO].map(|name| folder.join(name));
    for (path, preprocessor) in [(&image, &mut settings.image), (&video, &mut settings.video)] {
        if let Some(json) = read_json(path)? {
            *preprocessor = PreprocessorConfig::from_json(json, &model.vision).map_err(|e| e.in_file(path))?;
        }
    }
    settings.tokens = read_tokens(folder, model)?;
    Ok(settings)
}

/// Reads the placeholders.
pub(super) fn read_tokens(folder: &Path, model: &HaploVlConfig) -> Result<ProcessorConfig> {
    let path = folder.join(PROCESSOR);
    match read_json(&path)? {
        Some(json) => ProcessorConfig::from_json(json, &model.vision).map_err(|e| e.in_file(&path)),
        None => Ok(ProcessorConfig::new(&model.vision)),
    }
}

pub(super) fn write(
    folder: &Path,
    settings: &ProcessorSettings,
    tokenizer: &TextTokenizer,
    template: &ChatTemplate,
) -> Result<()> {
    let videos = folder.join("video_processor");
    std::fs::create_dir_all(&videos).map_err(|e| Error::io(&videos, e))?;
    let mut tokenizer_config = tokenizer.config().clone();
    tokenizer_config.entry("tokenizer_class").or_insert(json!("PreTrainedTokenizerFast"));
    tokenizer_config.insert("chat_template".into(), json!(template.source()));
    for (name, content) in [
        (IMAGE, settings.image.to_json()),
        (VIDEO, settings.video.to_json()),
        (PROCESSOR, settings.tokens.to_json()),
        ("chat_template.json", json!({ "chat_template": template.source() })),
        ("tokenizer_config.json", Value::Object(tokenizer_config)),
    ] {
        write_bytes_atomically(folder.join(name), format!("{content:#}\n").as_bytes())?;
    }
    let tokenizer = tokenizer.inner().to_string(true).map_err(|e| Error::tokenizer(e.to_string()).caused_by(e))?;
    write_bytes_atomically(folder.join("tokenizer.json"), tokenizer.as_bytes())
}
