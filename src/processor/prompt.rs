//! Rendering of a conversation to one prompt, which records the spans of message text.
//!
//! Message text passes through the chat template between invisible delimiters. They tell afterwards where control
//! tokens must not be read (all message text) and what a model is trained to produce (the assistant's text).
//!
//! Templates of reasoning models cut an assistant's text at tags such as `</think>`. The parts between tags have
//! delimiters of their own, so that each survives or vanishes as a whole.

use std::ops::Range;

use super::chat_template::{ChatTemplate, ContentFormat};
use super::conversation::{Conversation, Message, Role};
use super::jinja::Value;
use crate::config::ProcessorConfig;
use crate::{Error, Result};

// Unicode reserves these code points for internal use: no text has a reason to contain them.
const START: char = '\u{FDD0}';
const ASSISTANT_START: char = '\u{FDD1}';
const END: char = '\u{FDD2}';

/// A rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompt {
    pub(super) text: String,
    /// Spans of message text, in order.
    pub(super) spans: Vec<Span>,
}

/// A span of message text in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Byte range in the prompt, without surrounding white space.
    pub(super) range: Range<usize>,
    /// Whether the text is the assistant's.
    pub(super) assistant: bool,
}

impl Prompt {
    pub(super) fn render<'k>(
        template: &ChatTemplate,
        conversation: &Conversation,
        generation_prompt: bool,
        tokens: &ProcessorConfig,
        tags: &[&str],
        special_tokens: impl IntoIterator<Item = (&'k str, Value)>,
    ) -> Result<Self> {
        if conversation.messages.is_empty() {
            return Err(Error::prompt("the conversation has no message, expected at least one"));
        }
        let messages = conversation.messages.iter().enumerate();
        let messages = messages.map(|(n, message)| {
            let parts = Parts::new(message, n, tokens, tags)?;
            let content = parts.content(template.format(), tokens);
            Ok(Value::from_iter([("role", message.role.name().into()), ("content", content)]))
        });
        let messages: Vec<_> = messages.collect::<Result<_>>()?;
        let prompt = Self::without_marks(&template.render(&messages, generation_prompt, special_tokens)?)?;
        Ok(prompt.with_tags(tags))
    }

    /// The same prompt, whose spans of the assistant include the tags before and between them: the model produces these
    /// tags too.
    fn with_tags(self, tags: &[&str]) -> Self {
        let text = self.text.as_str();
        let mut spans: Vec<Span> = Vec::with_capacity(self.spans.len());
        for mut span in self.spans {
            let start = if span.assistant { start_of_tags(&text[..span.range.start], tags) } else { span.range.start };
            let has_tags = start < span.range.start;
            span.range.start = start;
            match spans.last_mut().filter(|last| last.assistant && has_tags) {
                Some(last) if text[last.range.end.min(start)..start].trim().is_empty() => {
                    last.range.end = span.range.end
                }
                _ => spans.push(span),
            }
        }
        Self { text: self.text, spans }
    }

    fn without_marks(marked: &str) -> Result<Self> {
        let (mut text, mut spans, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
        for c in marked.chars() {
            match (c, open) {
                (START | ASSISTANT_START, None) => open = Some((text.len(), c == ASSISTANT_START)),
                (END, Some((start, assistant))) => {
                    spans.push(Span { range: start..text.len(), assistant });
                    open = None;
                }
                (START | ASSISTANT_START | END, _) => return Err(torn()),
                _ => text.push(c),
            }
        }
        if open.is_some() { Err(torn()) } else { Ok(Self { text, spans }) }
    }
}

fn torn() -> Error {
    Error::chat_template(
        "splits or rewrites message text, so user text cannot be separated from control tokens; use a template that \
         inserts `content` unchanged",
    )
}

/// Parts of a message as the template gets them.
struct Parts {
    images: usize,
    videos: usize,
    texts: Vec<String>,
}

impl Parts {
    /// The parts of message number `n`, with delimiters around its texts.
    fn new(message: &Message, n: usize, tokens: &ProcessorConfig, tags: &[&str]) -> Result<Self> {
        let (images, videos) = (message.images().count(), message.videos().count());
        if message.role == Role::Assistant {
            return Ok(Self { images, videos, texts: message.texts().map(|text| mark_parts(text, tags)).collect() });
        }
        if message.role != Role::User {
            return Ok(Self { images, videos, texts: message.texts().map(|text| mark(text, message.role)).collect() });
        }
        let images_placed = placed(message, n, &tokens.image_token, images)?;
        let videos_placed = placed(message, n, &tokens.video_token, videos)?;
        let placed: Vec<&str> = [(images_placed, &tokens.image_token), (videos_placed, &tokens.video_token)]
            .into_iter()
            .filter_map(|(placed, token)| placed.then_some(token.as_str()))
            .collect();
        Ok(Self {
            images: if images_placed { 0 } else { images },
            videos: if videos_placed { 0 } else { videos },
            texts: message.texts().map(|text| mark_around(text, &placed)).collect(),
        })
    }

    fn content(&self, format: ContentFormat, tokens: &ProcessorConfig) -> Value {
        match format {
            ContentFormat::Parts => {
                let images = (0..self.images).map(|_| Value::from_iter([("type", "image".into())]));
                let videos = (0..self.videos).map(|_| Value::from_iter([("type", "video".into())]));
                let text = |text: &String| Value::from_iter([("type", "text".into()), ("text", text.as_str().into())]);
                let texts = self.texts.iter().map(text);
                images.chain(videos).chain(texts).collect()
            }
            ContentFormat::Text => {
                let placeholders = tokens.image_token.repeat(self.images) + &tokens.video_token.repeat(self.videos);
                Value::from(placeholders + &self.texts.concat())
            }
        }
    }
}

/// Whether the user placed the images (or videos) of message `n` in the text: once for each, or not at all.
fn placed(message: &Message, n: usize, token: &str, given: usize) -> Result<bool> {
    let written: usize = message.texts().map(|text| text.matches(token).count()).sum();
    if written != 0 && written != given {
        return Err(Error::prompt(format!(
            "message {} says `{token}` {written} time(s) but comes with {given}: write it once for each, or leave it \
             out to have them first",
            n + 1
        )));
    }
    Ok(written != 0)
}

/// Adds delimiters around a text, except for placeholders in it.
fn mark_around(text: &str, placeholders: &[&str]) -> String {
    let Some((token, rest)) = placeholders.split_first() else { return mark(text, Role::User) };
    let pieces: Vec<_> = text.split(token).map(|piece| mark_around(piece, rest)).collect();
    pieces.join(token)
}

/// Adds delimiters around the parts of an assistant's text between tags.
fn mark_parts(text: &str, tags: &[&str]) -> String {
    let next = |text: &str| {
        let tag_at = |at: usize| tags.iter().find(|tag| text[at..].starts_with(**tag)).map(|tag| at..at + tag.len());
        text.match_indices(['<', '[']).find_map(|(at, _)| tag_at(at))
    };
    if next(text).is_none() {
        return mark(text, Role::Assistant);
    }
    let part = |part: &str| if part.trim().is_empty() { part.to_string() } else { mark(part, Role::Assistant) };
    let (mut marked, mut rest) = (String::new(), text);
    while let Some(range) = next(rest) {
        marked += &part(&rest[..range.start]);
        marked += &rest[range.clone()];
        rest = &rest[range.end..];
    }
    marked + &part(rest)
}

/// Start of the tags at the end of a text, with white space between them; the length of the text if there is none.
fn start_of_tags(text: &str, tags: &[&str]) -> usize {
    let mut start = text.len();
    let mut rest = text;
    while let Some(before) = tags.iter().find_map(|tag| rest.trim_end().strip_suffix(tag)) {
        (rest, start) = (before, before.len());
    }
    start
}

/// Adds delimiters around a text; white space at its ends stays outside, so that a template's `trim` still works.
fn mark(text: &str, role: Role) -> String {
    let text = text.replace([START, ASSISTANT_START, END], "\u{FFFD}");
    let core = text.trim();
    if core.is_empty() && role != Role::Assistant {
        return text;
    }
    let start = if role == Role::Assistant { ASSISTANT_START } else { START };
    let (before, after) = text.split_at(text.len() - text.trim_start().len());
    format!("{before}{start}{core}{END}{}", &after[core.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HaploVlConfig;
    use crate::processor::Content;

    fn render(template: &str, messages: &[Message]) -> Result<Prompt> {
        let tokens = ProcessorConfig::new(&HaploVlConfig::tiny().vision);
        let conversation = messages.iter().cloned().collect();
        let template = ChatTemplate::new(template)?;
        let tags: Vec<&str> = template.tags().iter().map(String::as_str).collect();
        Prompt::render(&template, &conversation, false, &tokens, &tags, [])
    }

    fn image_part() -> Content {
        image::RgbImage::new(2, 2).into()
    }

    #[test]
    fn marks_survive_a_template_that_trims() {
        let template = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}";
        let prompt = render(template, &[Message::user([" a b\n".into()]), Message::assistant("c ")]).unwrap();
        assert_eq!(prompt.text, "[a b][c]");
        let said = |n: usize| (&prompt.text[prompt.spans[n].range.clone()], prompt.spans[n].assistant);
        assert_eq!([said(0), said(1)], [("a b", false), ("c", true)]);
    }

    #[test]
    fn placeholders_stand_first_or_where_the_user_wrote_them() {
        let chatml = ChatTemplate::chatml("<image>", "<video>").unwrap();
        let text = |content: Vec<Content>| render(chatml.source(), &[Message::user(content)]).map(|prompt| prompt.text);
        let first = text(vec!["what?".into(), image_part()]).unwrap();
        assert_eq!(first, "<|im_start|>user\n<image>what?<|im_end|>\n");
        let amid = text(vec![image_part(), image_part(), "a <image> b <image> c".into()]).unwrap();
        assert_eq!(amid, "<|im_start|>user\na <image> b <image> c<|im_end|>\n");
        let wrong = text(vec![image_part(), "<image> or <image>?".into()]).unwrap_err().to_string();
        assert!(wrong.contains("message 1 says `<image>` 2 time(s) but comes with 1"), "{wrong}");
    }

    #[test]
    fn marks_in_the_text_are_not_mistaken_for_ours() {
        let prompt = render("{{ messages[0].content }}", &[Message::user(["a\u{FDD2}b".into()])]).unwrap();
        assert_eq!((prompt.text.as_str(), prompt.spans[0].range.clone()), ("a\u{FFFD}b", 0..5));
    }

    #[test]
    fn a_template_may_cut_reasoning_and_the_rest_is_learnt_with_its_tags() {
        let qwen = "{% for m in messages %}{% set content = m.content %}{% set reasoning = '' %}\
            {% if m.role == 'assistant' and '</think>' in content %}\
            {% set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\
            {% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}\
            [{{ m.role }}]{% if loop.last and m.role == 'assistant' %}<think>\n{{ reasoning }}\n</think>\n\n{% endif %}\
            {{ content }}{% endfor %}";
        let said = "<think>\nwhy\n</think>\n\nb";
        let messages = [Message::user(["a".into()]), Message::assistant(said), Message::user(["</think> c".into()])];
        let prompt = render(qwen, &messages).unwrap();
        assert_eq!(prompt.text, "[user]a[assistant]b[user]</think> c");
        assert_eq!(&prompt.text[prompt.spans[1].range.clone()], "b");
        let prompt = render(qwen, &messages[..2]).unwrap();
        assert_eq!(&prompt.text[prompt.spans[1].range.clone()], said);
        assert_eq!(prompt.spans.len(), 2);
        // Without reasoning the template writes an empty block, which the model has to produce as well.
        let prompt = render(qwen, &[Message::user(["a".into()]), Message::assistant("b")]).unwrap();
        assert_eq!(&prompt.text[prompt.spans[1].range.clone()], "<think>\n\n</think>\n\nb");
    }

    #[test]
    fn a_template_that_cuts_texts_is_refused() {
        let error = render("{{ messages[0].content.split(' ')[0] }}", &[Message::user(["a b".into()])]).unwrap_err();
        assert!(error.to_string().contains("splits or rewrites message text"));
    }
}
