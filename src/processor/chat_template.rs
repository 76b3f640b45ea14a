//! The Jinja template that turns messages into one prompt: a checkpoint's own, or ChatML.

use std::fmt::Write as _;
use std::path::Path;
use std::{fmt, io};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value as JinjaValue;
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Value, json};

use super::folder::read_json;
use crate::{Error, Result};

/// ChatML as the released models use it: in each message pictures, then videos, then text; no default system prompt.
const CHATML: &str = "\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- for part in message.content if part.type == 'image' %}{{ image_token }}{% endfor %}
{%- for part in message.content if part.type == 'video' %}{{ video_token }}{% endfor %}
{%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Steps that a template may take: far more than any conversation needs, and still over in a second.
const FUEL: u64 = 5_000_000;
/// How long a prompt, or what one of Python's string methods makes, may be.
const MAX_MIB: usize = 16;
const MAX_BYTES: usize = MAX_MIB << 20;
/// Digits of a width in `format`.
const MAX_WIDTH_DIGITS: usize = 4;
const NAME: &str = "chat_template";

/// What a template wants as a message's `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentFormat {
    /// A list of `{type: image | video | text, text}`, of templates made for pictures.
    Parts,
    /// One string, of templates made for text only; placeholders stand in it.
    Text,
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    format: ContentFormat,
}

impl ChatTemplate {
    /// ChatML, for checkpoints without a template.
    ///
    /// # Errors
    /// None in practice: the template is a constant, with `<image>` and `<video>` written into it.
    pub fn chatml(image_token: &str, video_token: &str) -> Result<Self> {
        let quoted = |token: &str| format!("{{{{ {} }}}}", json!(token));
        let source = CHATML.replace("{{ image_token }}", &quoted(image_token));
        Self::new(source.replace("{{ video_token }}", &quoted(video_token)))
    }

    /// Compiles a template as HF's `apply_chat_template` would: `trim_blocks`, `lstrip_blocks`, Python's string
    /// methods, `raise_exception`, `{% generation %}` blocks. There is no clock and no file access, and endless loops
    /// and endless prompts are cut off.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line of a syntax error.
    pub fn new(source: impl Into<String>) -> Result<Self> {
        let source = source.into();
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(template_error)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, without_generation_tags(&source)).map_err(template_error)?;
        let mut template = Self { source, environment, format: ContentFormat::Parts };
        template.format = template.probe_format();
        Ok(template)
    }

    /// The template of a checkpoint's folder: `chat_template.jinja`, `chat_template.json`, or the field
    /// `chat_template` of `tokenizer_config.json`, where a list holds named ones and `default` is taken.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`] for a file that is there but unusable, and as [`Self::new`].
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let jinja = folder.join("chat_template.jinja");
        if jinja.exists() {
            return Self::new(std::fs::read_to_string(&jinja).map_err(|e| Error::io(&jinja, e))?).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            let Some(file) = read_json(&path)? else { continue };
            match file.get("chat_template") {
                None | Some(Value::Null) => {}
                Some(field) => {
                    let message = "`chat_template` is neither a string nor a list of `name` and `template`";
                    let source = default_template(field).ok_or_else(|| Error::format(&path, message))?;
                    return Self::new(source).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn format(&self) -> ContentFormat {
        self.format
    }

    /// Renders messages of HF's shape; `special_tokens` holds `bos_token` and the like.
    pub(super) fn render(
        &self,
        messages: &[JinjaValue],
        generation_prompt: bool,
        special_tokens: JinjaValue,
    ) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        let variables = context! {
            messages => messages.to_vec(),
            add_generation_prompt => generation_prompt,
            tools => (),
            ..special_tokens
        };
        let mut prompt = Prompt::default();
        template.render_captured_to(variables, &mut prompt).map_err(template_error)?;
        String::from_utf8(prompt.0).map_err(|e| Error::chat_template(e.to_string()))
    }

    /// Tells by trying what the template was made for: one for text prints a list of parts as it stands, or fails.
    fn probe_format(&self) -> ContentFormat {
        let shows_text = |content: JinjaValue| {
            let message = context! { role => "user", content => content };
            let prompt = self.render(&[message], false, context! { bos_token => "", eos_token => "" });
            prompt.is_ok_and(|prompt| prompt.contains("probe") && !prompt.contains("never shown"))
        };
        let part = context! { type => "text", text => "probe", other => "never shown" };
        if shows_text("probe".into()) && !shows_text(vec![part].into()) {
            ContentFormat::Text
        } else {
            ContentFormat::Parts
        }
    }
}

/// The bytes of a prompt, as long as they are not too many.
#[derive(Default)]
struct Prompt(Vec<u8>);

impl io::Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Methods of Python's strings and dictionaries; those that make text out of little are measured first.
fn python_method(
    state: &mut State<'_, '_>,
    value: &JinjaValue,
    method: &str,
    args: &[JinjaValue],
) -> std::result::Result<JinjaValue, JinjaError> {
    if value.as_str().is_some_and(|text| makes_too_much(text, method, args)) {
        let message = format!("`{method}` would make a text of more than {MAX_MIB} MiB");
        return Err(JinjaError::new(ErrorKind::InvalidOperation, message));
    }
    unknown_method_callback(state, value, method, args)
}

fn makes_too_much(text: &str, method: &str, args: &[JinjaValue]) -> bool {
    match (method, args) {
        ("replace", [old, new, ..]) => {
            let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
            text.len().saturating_add(text.matches(old).count().saturating_mul(new.len())) > MAX_BYTES
        }
        ("join", [values]) => {
            let mut left = Budget(MAX_BYTES);
            values.try_iter().is_ok_and(|mut values| values.any(|value| write!(left, "{value}{text}").is_err()))
        }
        ("format", _) => text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > MAX_WIDTH_DIGITS),
        _ => false,
    }
}

/// Bytes that may still be written, to nowhere.
struct Budget(usize);

impl fmt::Write for Budget {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

fn default_template(field: &Value) -> Option<String> {
    let named = |entry: &&Value| entry["name"] == "default";
    let source = match field {
        Value::Array(list) => &list.iter().find(named).or(list.first())?["template"],
        field => field,
    };
    source.as_str().map(str::to_owned)
}

/// HF marks what the assistant says by `{% generation %}`, a tag of its own that prints nothing: here a block that is
/// always taken, so that the tags' control of white space stays as it is.
fn without_generation_tags(source: &str) -> String {
    let mut rest = source;
    let mut plain = String::with_capacity(source.len());
    while let Some((before, tag, after)) = next_tag(rest) {
        plain.push_str(before);
        plain.push_str(&match tag.trim_matches(['-', '+']).trim() {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        });
        rest = after;
    }
    plain + rest
}

/// What stands before the inside of the next `{% tag %}`, its inside, and what follows.
fn next_tag(source: &str) -> Option<(&str, &str, &str)> {
    let start = source.find("{%")? + 2;
    let end = start + source[start..].find("%}")?;
    Some((&source[..start], &source[start..end], &source[end..]))
}

fn template_error(error: JinjaError) -> Error {
    let advice = match error.kind() {
        ErrorKind::OutOfFuel => "; does it loop endlessly?".into(),
        ErrorKind::WriteFailure => format!("; the prompt has more than {MAX_MIB} MiB"),
        ErrorKind::SyntaxError => "; mend the checkpoint's chat template".into(),
        _ => String::new(),
    };
    Error::chat_template(format!("{error}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let message = context! { role => "user", content => vec![context! { type => "text", text => " hi " }] };
        ChatTemplate::new(source)?.render(&[message], true, context! { bos_token => "<s>" })
    }

    #[test]
    fn white_space_and_python_methods_are_as_in_hf() {
        let source =
            "{{ bos_token }}\n  {% if true %}\n{{ messages[0].content[0]['text'].strip() }}\n  {% endif %}\nend";
        assert_eq!(render(source).unwrap(), "<s>\nhi\nend");
        assert_eq!(render("{%- generation -%} a {%- endgeneration %} b").unwrap(), "a b");
    }

    #[test]
    fn failures_say_why() {
        let message = |source| render(source).unwrap_err().to_string();
        assert!(message("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
        assert!(message("{% for x in %}").contains("mend the checkpoint's chat template"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(message(endless).contains("does it loop endlessly?"));
        for huge in [
            "{{ '{:>99999999999}'.format('x') }}",
            "{{ ('a' * 1000000).replace('a', 'b' * 100000) }}",
            "{{ ('x' * 1000000).join(range(100000)) }}",
            "{{ 'a ' * 50000000 }}",
        ] {
            assert!(message(huge).contains("more than 16 MiB"), "{huge}: {}", message(huge));
        }
    }

    #[test]
    fn templates_for_text_are_told_apart() {
        let format = |source| ChatTemplate::new(source).unwrap().format();
        assert_eq!(format("{% for m in messages %}{{ m.role + m.content }}{% endfor %}"), ContentFormat::Text);
        assert_eq!(format("{% for m in messages %}{{ m.content }}{% endfor %}"), ContentFormat::Text);
        // In Llama 3's way: the sum with a list would fail, were there no `bos_token`.
        let trimmed = "{% for m in messages %}{{ bos_token + m['content'] | trim + eos_token }}{% endfor %}";
        assert_eq!(format(trimmed), ContentFormat::Text);
        assert_eq!(ChatTemplate::chatml("<image>", "<video>").unwrap().format(), ContentFormat::Parts);
    }

    #[test]
    fn folders_may_keep_the_template_in_three_places() {
        let folder = tempfile::tempdir().unwrap();
        let source = || ChatTemplate::from_folder(&folder).unwrap().map(|template| template.source().to_owned());
        assert_eq!(source(), None);
        let named =
            json!({ "chat_template": [{ "name": "tools", "template": "t" }, { "name": "default", "template": "d" }] });
        std::fs::write(folder.path().join("tokenizer_config.json"), named.to_string()).unwrap();
        assert_eq!(source().unwrap(), "d");
        std::fs::write(folder.path().join("chat_template.json"), r#"{"chat_template": "j"}"#).unwrap();
        assert_eq!(source().unwrap(), "j");
        std::fs::write(folder.path().join("chat_template.jinja"), "own file").unwrap();
        assert_eq!(source().unwrap(), "own file");
    }
}
