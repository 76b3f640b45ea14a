//! Special tokens that a processor needs: placeholders, control tokens of the chat template, the end of a text.

use super::chat_template::ChatTemplate;
use super::conversation::{Conversation, Message};
use super::prompt::Prompt;
use super::tokenizer::TextTokenizer;
use crate::Result;
use crate::config::ProcessorConfig;

/// Maximum length of a control token's name, in characters.
const MAX_CONTROL_TOKEN_CHARS: usize = 64;

/// Special tokens that a processor of these parts needs and the vocabulary lacks, or has as ordinary tokens. Without a
/// template, those of ChatML.
///
/// # Errors
/// [`Error::ChatTemplate`](crate::Error::ChatTemplate) if ChatML cannot be compiled.
pub(crate) fn missing_tokens(
    tokenizer: &TextTokenizer,
    template: Option<&ChatTemplate>,
    tokens: &ProcessorConfig,
) -> Result<Vec<String>> {
    let ProcessorConfig { image_token, video_token, .. } = tokens;
    let placeholders = [image_token, video_token].into_iter().filter(|token| tokenizer.id(token).is_none());
    let mut missing: Vec<String> = placeholders.cloned().collect();
    let chatml;
    let template = match template {
        Some(template) => template,
        None => {
            chatml = ChatTemplate::chatml(image_token, video_token)?;
            &chatml
        }
    };
    let special = tokenizer.named_tokens().map(|(name, token)| (name, token.into()));
    // A template's errors are reported on use: it may fail on this conversation only.
    let prompt =
        Prompt::render(template, &probe(), true, tokens, &[], special).map_or_else(|_| String::new(), |p| p.text);
    let named = tokenizer.named_tokens().filter(|(name, _)| matches!(*name, "bos_token" | "eos_token"));
    for token in control_tokens(&prompt).chain(named.map(|(_, token)| token)) {
        let is_special = tokenizer.id(token).is_some_and(|id| tokenizer.is_special(id));
        if !is_special && !missing.iter().any(|known| known == token) {
            missing.push(token.to_string());
        }
    }
    Ok(missing)
}

/// A short conversation to probe a template with.
pub(super) fn probe() -> Conversation {
    [Message::user(["a".into()]), Message::assistant("b")].into_iter().collect()
}

/// Names written `<|name|>` in a prompt, with either kind of bar.
pub(super) fn control_tokens(prompt: &str) -> impl Iterator<Item = &str> {
    let starts = prompt.match_indices("<|").chain(prompt.match_indices("<｜"));
    starts.filter_map(|(start, bar)| {
        let rest = &prompt[start + bar.len()..];
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '▁');
        let name = rest.char_indices().take(MAX_CONTROL_TOKEN_CHARS).find(|&(_, c)| !is_part(c)).map(|(end, _)| end)?;
        let end = bar.chars().rev().collect::<String>().replace('<', ">");
        (name > 0 && rest[name..].starts_with(&end)).then(|| &prompt[start..start + 2 * bar.len() + name])
    })
}
