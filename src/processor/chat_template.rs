//! Chat template: the Jinja template (a checkpoint's own, or ChatML) that renders messages to one prompt.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::folder::read_json;
use super::jinja::{MAX_SOURCE_BYTES, Template, Value};
use crate::{Error, Result, files};

/// ChatML of the released models: images, then videos, then text in each message; no default system prompt.
const CHATML: &str = "\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- for part in message.content if part.type == 'image' %}{{ image_token }}{% endfor %}
{%- for part in message.content if part.type == 'video' %}{{ video_token }}{% endfor %}
{%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Form of `content` that a template expects in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentFormat {
    /// A list of `{type: image | video | text, text}`, for multimodal templates.
    Parts,
    /// One string with placeholders, for text-only templates.
    Text,
}

/// A compiled chat template.
///
/// Templates are untrusted programs. The interpreter supports the part of Jinja that chat templates use, bounds time (1
/// million steps), memory (texts of 16 MiB, 128 MiB of values), nesting and recursion, and has neither clock nor file
/// access: `strftime_now` gives 26 July 2024, so that prompts stay the same. An unsupported feature is an error that names it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    template: Arc<Template>,
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

    /// Compiles a template of at most 1 MiB with the settings of HF's `apply_chat_template`: `trim_blocks`,
    /// `lstrip_blocks`, Python's string methods, `raise_exception`, `{% generation %}` blocks.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line of a syntax error or of an unsupported feature.
    pub fn new(source: impl Into<String>) -> Result<Self> {
        let source = source.into();
        let template = Template::new(&source).map_err(|failure| Error::chat_template(failure.to_string()))?.into();
        let mut template = Self { source, template, format: ContentFormat::Parts };
        template.format = template.probe_format();
        Ok(template)
    }

    /// Reads the template of a checkpoint's folder: `chat_template.jinja`, `chat_template.json`, or the field
    /// `chat_template` of `tokenizer_config.json` (of a list of named templates, `default`).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`] for an invalid file, and the errors of [`Self::new`].
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let jinja = folder.join("chat_template.jinja");
        if files::exists(&jinja)? {
            return Self::new(files::read_text(&jinja, MAX_SOURCE_BYTES as u64)?).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            let Some(file) = read_json(&path)? else { continue };
            match file.get("chat_template") {
                None | Some(Json::Null) => {}
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

    /// Tags at which the template may cut an assistant's text, such as `</think>`.
    pub(super) fn tags(&self) -> &[String] {
        self.template.tags()
    }

    pub(super) fn format(&self) -> ContentFormat {
        self.format
    }

    /// Renders messages in HF's form; `special_tokens` holds `bos_token` and others.
    pub(super) fn render<'k>(
        &self,
        messages: &[Value],
        generation_prompt: bool,
        special_tokens: impl IntoIterator<Item = (&'k str, Value)>,
    ) -> Result<String> {
        let variables = [
            ("messages", messages.iter().cloned().collect()),
            ("add_generation_prompt", generation_prompt.into()),
            ("tools", Value::None),
        ];
        let rendered = self.template.render(variables.into_iter().chain(special_tokens));
        rendered.map_err(|failure| Error::chat_template(failure.to_string()))
    }

    /// Probes the content format of a template: a text-only template prints a list of parts verbatim, or fails.
    fn probe_format(&self) -> ContentFormat {
        let shows_text = |content: Value| {
            let message = Value::from_iter([("role", "user".into()), ("content", content)]);
            let prompt = self.render(&[message], false, [("bos_token", "".into()), ("eos_token", "".into())]);
            prompt.is_ok_and(|prompt| prompt.contains("probe") && !prompt.contains("never shown"))
        };
        let part = [("type", "text".into()), ("text", "probe".into()), ("other", "never shown".into())];
        if shows_text("probe".into()) && !shows_text(Value::from_iter([Value::from_iter(part)])) {
            ContentFormat::Text
        } else {
            ContentFormat::Parts
        }
    }
}

fn default_template(field: &Json) -> Option<String> {
    let named = |entry: &&Json| entry["name"] == "default";
    let source = match field {
        Json::Array(list) => &list.iter().find(named).or(list.first())?["template"],
        field => field,
    };
    source.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let part = Value::from_iter([("type", Value::from("text")), ("text", " hi ".into())]);
        let message = Value::from_iter([("role", "user".into()), ("content", Value::from_iter([part]))]);
        ChatTemplate::new(source)?.render(&[message], true, [("bos_token", "<s>".into())])
    }

    #[test]
    fn white_space_and_python_methods_are_as_in_hf() {
        let source =
            "{{ bos_token }}\n  {% if true %}\n{{ messages[0].content[0]['text'].strip() }}\n  {% endif %}\nend";
        assert_eq!(render(source).unwrap(), "<s>\nhi\nend");
        assert_eq!(render("{%- generation -%} a {%- endgeneration %} b").unwrap(), "a b");
    }

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (source, expected) in [
            ("{{ '{:,}|{:,}|{:,}'.format(999, 1000, -123456) }}", "999|1,000|-123,456"),
            ("{{ '{:>12,.2f}|{:,d}'.format(1234567.5, 1234567) }}", "1,234,567.50|1,234,567"),
            ("{{ '{:<7,}|{:,}'.format(1234, 1234.5678) }}", "1,234  |1,234.5678"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
        let date = "{% if strftime_now is defined %}{{ strftime_now('%A, %-d %B %Y, 100%%; %b %m') }}{% endif %}";
        assert_eq!(render(date).unwrap(), "Friday, 26 July 2024, 100%; Jul 07");
        assert!(render("{{ strftime_now('%é') }}").unwrap_err().to_string().contains("supports dates"));
        for source in ["{{ '{:,}'.format('abc') }}", "{{ '{:08,}'.format(1234) }}"] {
            assert!(render(source).unwrap_err().to_string().contains("commas"), "{source}");
        }
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
        // In Llama 3's form: adding a list to text would fail if there were no `bos_token`.
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
