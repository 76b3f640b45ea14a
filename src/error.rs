//! The error type of the library.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of the fallible functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error, of any type.
pub type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Upper bound of a message's length in characters; text from files and users may be of any length.
const MAX_CHARS: usize = 300;

/// All errors of this crate.
///
/// [`Display`](fmt::Display) gives a self-contained line of less than 300 characters: it names the field, file or
/// tensor, what was found, what was expected, what to do, and the cause. Control characters are escaped, and the middle
/// of longer messages is left out. [`source`](std::error::Error::source) returns the cause for programmatic use.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A field of a configuration, recipe or option has an invalid value.
    Config {
        /// Path of the field, for example `pre_decoder.num_attention_heads`.
        field: String,
        /// Found value, expected value, and advice.
        message: String,
        /// The cause, if another library found it.
        source: Option<Source>,
    },
    /// A file could not be read or written.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file is readable but its content is invalid.
    Format {
        /// The file.
        path: PathBuf,
        /// Found value, expected value, and advice.
        message: String,
        /// The cause, if another library detected it.
        source: Option<Source>,
    },
    /// The tensors of a checkpoint do not match the model.
    Weights(Message),
    /// An image or video frame is invalid.
    Image {
        /// File name, or position of the image in the input.
        name: String,
        /// Found value, expected value, and advice.
        message: String,
        /// The cause, if another library detected it.
        source: Option<Source>,
    },
    /// The tokenizer is invalid or does not match the model.
    Tokenizer(Message),
    /// The chat template failed on a conversation.
    ChatTemplate(Message),
    /// A prompt does not match its images, or exceeds the model's context.
    Prompt(Message),
    /// A batch is inconsistent, or does not match the model.
    Batch(Message),
    /// Generation failed.
    Generation(Message),
    /// The requested device or dtype is not available.
    Device(Message),
    /// A training or evaluation data set is invalid.
    Data(Message),
    /// A training checkpoint is damaged, or belongs to another run.
    Checkpoint {
        /// Folder of the checkpoint.
        path: PathBuf,
        /// Found value, expected value, and advice.
        message: String,
        /// The cause, if another error led to it.
        source: Option<Source>,
    },
    /// Training failed.
    Training(Message),
    /// A download from the model hub failed.
    Hub(Message),
    /// An error of the tensor library candle.
    Candle(candle_core::Error),
}

/// Message of an error, and its cause.
#[derive(Debug)]
pub struct Message {
    text: String,
    source: Option<Source>,
}

impl Message {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), source: None }
    }

    /// Found value, expected value, and advice.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Constructors of variants that hold a [`Message`] alone.
macro_rules! message_constructors {
    ($($name:ident => $variant:ident),* $(,)?) => {
        $(
            #[doc = concat!("An [`Error::", stringify!($variant), "`] with this message.")]
            pub fn $name(message: impl Into<String>) -> Self {
                Self::$variant(Message::new(message))
            }
        )*
    };
}

/// Pattern of the variants that hold a [`Message`] alone, bound to `$message`.
macro_rules! with_message {
    ($message:ident) => {
        Self::Weights($message)
            | Self::Tokenizer($message)
            | Self::ChatTemplate($message)
            | Self::Prompt($message)
            | Self::Batch($message)
            | Self::Generation($message)
            | Self::Device($message)
            | Self::Data($message)
            | Self::Training($message)
            | Self::Hub($message)
    };
}

/// Pattern of the variants with a field `source` that may be empty.
macro_rules! with_fields {
    ($source:ident) => {
        Self::Config { $source, .. }
            | Self::Format { $source, .. }
            | Self::Image { $source, .. }
            | Self::Checkpoint { $source, .. }
    };
}

impl Error {
    message_constructors! {
        weights => Weights,
        tokenizer => Tokenizer,
        chat_template => ChatTemplate,
        prompt => Prompt,
        batch => Batch,
        generation => Generation,
        device => Device,
        data => Data,
        training => Training,
        hub => Hub,
    }

    /// An [`Error::Config`] for `field`.
    pub fn config(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { field: field.into(), message: message.into(), source: None }
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// An [`Error::Format`] for `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), message: message.into(), source: None }
    }

    /// An [`Error::Image`] for the image called `name`.
    pub fn image(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Image { name: name.into(), message: message.into(), source: None }
    }

    /// An [`Error::Checkpoint`] for the folder `path`.
    pub fn checkpoint(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.as_ref().to_path_buf(), message: message.into(), source: None }
    }

    /// The same error with `cause` as its source; the message should say the cause already. [`Error::Io`] and
    /// [`Error::Candle`] keep what they have.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Source>) -> Self {
        match &mut self {
            with_fields!(source) => *source = Some(cause.into()),
            with_message!(message) => message.source = Some(cause.into()),
            Self::Io { .. } | Self::Candle(_) => {}
        }
        self
    }

    /// The same error with the file that contains the configuration field.
    pub(crate) fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Self::Config { field, message, source } => {
                let message = format!("field `{field}` {message}");
                Self::Format { path: path.as_ref().to_path_buf(), message, source }
            }
            other => other,
        }
    }

    /// The message before truncation and escaping.
    fn message(&self) -> String {
        match self {
            Self::Config { field, message, .. } => format!("configuration field `{field}`: {message}"),
            Self::Io { path, source } => format!("{}: {source}", path.display()),
            Self::Format { path, message, .. } => format!("{}: {message}", path.display()),
            Self::Image { name, message, .. } => format!("image {name}: {message}"),
            Self::Checkpoint { path, message, .. } => format!("checkpoint {}: {message}", path.display()),
            Self::Weights(message) => message.text.clone(),
            Self::Tokenizer(message) => format!("tokenizer: {}", message.text),
            Self::ChatTemplate(message) => format!("chat template: {}", message.text),
            Self::Prompt(message) => format!("prompt: {}", message.text),
            Self::Batch(message) => format!("batch: {}", message.text),
            Self::Generation(message) => format!("generation: {}", message.text),
            Self::Device(message) => format!("device: {}", message.text),
            Self::Data(message) => format!("data: {}", message.text),
            Self::Training(message) => format!("training: {}", message.text),
            Self::Hub(message) => format!("hub: {}", message.text),
            Self::Candle(error) => describe(error),
        }
    }
}

/// Text of an error of candle, without the backtrace that it has where `RUST_BACKTRACE` is set. Errors of this crate that
/// went through candle are as they were.
fn describe(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => describe(inner),
        candle_core::Error::Wrapped(own) => own.to_string(),
        other => format!("tensor operation: {other}"),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message()))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Candle(error) => Some(error),
            with_fields!(source) => source.as_deref().map(as_error),
            with_message!(message) => message.source.as_deref().map(as_error),
        }
    }
}

fn as_error<'a>(source: &'a (dyn std::error::Error + Send + Sync + 'static)) -> &'a (dyn std::error::Error + 'static) {
    source
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(error)
    }
}

/// `text` as one line of less than [`MAX_CHARS`] characters: line breaks become spaces, other control characters are
/// escaped, so that the content of a file cannot control a terminal, and the middle of a long text is left out.
pub(crate) fn one_line(text: &str) -> String {
    // Only the start and the end of a long text are needed; escaping lengthens a character at most tenfold.
    let (start, end) = match text.len() > 8 * MAX_CHARS {
        true => (
            &text[..text.floor_char_boundary(4 * MAX_CHARS)],
            &text[text.ceil_char_boundary(text.len() - 4 * MAX_CHARS)..],
        ),
        false => (text, ""),
    };
    let line: Vec<char> = escaped(start).chars().chain(escaped(end).chars()).collect();
    if line.len() < MAX_CHARS && end.is_empty() {
        return line.into_iter().collect();
    }
    let (head, tail) = (&line[..MAX_CHARS * 3 / 5], &line[line.len() - MAX_CHARS / 3..]);
    head.iter().chain(&[' ', '…', ' ']).chain(tail).collect()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
        if i > 0 {
            out.push(' ');
        }
        for c in line.chars() {
            if c.is_control() || is_invisible(c) { out.extend(c.escape_default()) } else { out.push(c) }
        }
    }
    out
}

/// Whether a character is invisible or changes how the text around it is shown.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn messages_are_one_short_line_without_control_characters() {
        for hostile in ["\u{1b}[31mred".into(), "a\nb\r\n  c".to_string(), "x".repeat(10 << 20), "\0".repeat(5000)] {
            let message = Error::format("file.json", format!("found `{hostile}`, expected `q8_0`")).to_string();
            assert!(message.chars().count() < 300 && !message.chars().any(char::is_control), "{message}");
            assert!(message.starts_with("file.json: found `") && message.ends_with("`, expected `q8_0`"), "{message}");
        }
        assert_eq!(Error::data("a\n\tb\u{7}").to_string(), "data: a b\\u{7}");
    }

    #[test]
    fn causes_are_kept() {
        let cause = || std::io::Error::other("no");
        for error in [
            Error::io("x", cause()),
            Error::weights("w").caused_by(cause()),
            Error::format("x", "w").caused_by(cause()),
            Error::image("x", "w").caused_by(cause()),
        ] {
            assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("no"), "{error}");
        }
        assert!(Error::hub("w").source().is_none());
    }
}
