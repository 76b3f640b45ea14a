//! What the fuzz targets share: how an input becomes a file or a JSON value, and what every error must look like.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{DType, Device};
use haplovl::config::HaploVlConfig;
use haplovl::processor::{ChatTemplate, Processor, ProcessorSettings, TextTokenizer};
use haplovl::weights::{TensorSource, open_weights};
use serde_json::Value;

/// The longest error message that is allowed, in bytes.
const MAX_MESSAGE_BYTES: usize = 300;
/// Tensors up to this many elements are loaded as well; larger ones only cost time.
const MAX_LOADED_ELEMENTS: usize = 1 << 16;
/// The built-in model's folder; only its small files are used.
const BUILTIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/builtin");

/// The value of an accepted input; `None` for a refused one, whose message is checked.
pub fn accepted<T, E: Display>(result: Result<T, E>) -> Option<T> {
    result.inspect_err(check_message).ok()
}

/// Panics unless an error is one line of bounded length without control characters.
pub fn check_message(error: &impl Display) {
    let message = error.to_string();
    let shown: String = message.chars().take(1000).collect();
    let bytes = message.len();
    assert!(bytes < MAX_MESSAGE_BYTES, "a message of {bytes} bytes, expected fewer than {MAX_MESSAGE_BYTES}: {shown}");
    assert!(!message.chars().any(char::is_control), "a message with line breaks or control characters: {shown:?}");
}

/// A folder of this process for the files of its inputs, made when it is first asked for.
pub fn folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the folder for temporary files is writable");
        folder
    });
    &FOLDER
}

/// A file of this name with this content, in [`folder`]; it replaces that of the input before.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, content).expect("the folder for temporary files is writable");
    path
}

/// A JSON value: an input that is JSON is merged into `base` (RFC 7396, null removes a field). Most random JSON
/// is refused at its first field; a change of a valid value reaches the checks behind that.
pub fn patched(base: Value, input: &[u8]) -> Option<Value> {
    let patch = serde_json::from_slice(input).ok()?;
    let mut value = base;
    merge(&mut value, patch);
    Some(value)
}

fn merge(value: &mut Value, patch: Value) {
    match (value, patch) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                if change.is_null() {
                    fields.remove(&name);
                } else {
                    merge(fields.entry(name).or_insert(Value::Null), change);
                }
            }
        }
        (value, patch) => *value = patch,
    }
}

/// Opens the weights in [`folder`] and loads what is small: every tensor has the shape that was announced.
pub fn load_weights() {
    let Some(source) = accepted(open_weights(folder())) else { return };
    for name in source.tensor_names() {
        load_tensor(source.as_ref(), &name);
    }
}

fn load_tensor(source: &dyn TensorSource, name: &str) {
    let shape = source.tensor_shape(name).expect("a tensor of the list has a shape").to_vec();
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if elements.is_some_and(|elements| elements <= MAX_LOADED_ELEMENTS) {
        if let Some(tensor) = accepted(source.load_tensor(name, DType::F32, &Device::Cpu)) {
            assert_eq!(tensor.dims(), shape, "tensor {name:?}");
        }
    }
}

/// The configuration of the built-in model.
pub fn builtin_config() -> HaploVlConfig {
    HaploVlConfig::from_file(Path::new(BUILTIN).join("config.json")).expect("the built-in configuration is valid")
}

/// A JSON file of the built-in model.
pub fn builtin_json(name: &str) -> Value {
    let bytes = std::fs::read(Path::new(BUILTIN).join(name)).expect("the built-in model has this file");
    serde_json::from_slice(&bytes).expect("the built-in model's files are JSON")
}

/// The built-in model's processor with another chat template, or with its own.
pub fn processor(template: Option<ChatTemplate>) -> haplovl::Result<Processor> {
    let model = builtin_config();
    let own = || ChatTemplate::from_folder(BUILTIN);
    let template = template.map_or_else(own, |template| Ok(Some(template)))?;
    Processor::new(&model, ProcessorSettings::new(&model), TextTokenizer::from_folder(BUILTIN)?, template)
}

/// Lets code under test catch panics: libFuzzer's hook would end the process first. A panic that nobody catches is
/// still a finding.
pub fn allow_caught_panics() {
    drop(std::panic::take_hook());
}
