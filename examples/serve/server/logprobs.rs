//! Log probabilities of tokens in both of OpenAI's forms.

use haplovl::pipeline::{LoadedModel, TokenLogprob};
use serde_json::{Map, Value, json};

/// Log probabilities of an answer's tokens so far.
#[derive(Debug, Default)]
pub struct Logprobs {
    tokens: Vec<Token>,
    /// Characters of the text before the first token.
    offset: usize,
}

#[derive(Debug)]
struct Token {
    text: String,
    logprob: f32,
    alternatives: Vec<(String, f32)>,
}

impl Logprobs {
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Appends tokens.
    pub fn extend(&mut self, model: &LoadedModel, tokens: Vec<TokenLogprob>) -> haplovl::Result<()> {
        // Each alone: a token that is a part of a character, or special, is shown as the tokenizer decodes it.
        let text = |id: u32| model.processor().tokenizer().decode(&[id], false);
        for token in tokens {
            let alternatives = token.alternatives.into_iter().map(|(id, logprob)| Ok((text(id)?, logprob)));
            let alternatives = alternatives.collect::<haplovl::Result<_>>()?;
            self.tokens.push(Token { text: text(token.id)?, logprob: token.logprob, alternatives });
        }
        Ok(())
    }

    /// None, to follow these.
    pub fn empty_after(&self) -> Self {
        let characters = |token: &Token| token.text.chars().count();
        Self { tokens: vec![], offset: self.offset + self.tokens.iter().map(characters).sum::<usize>() }
    }

    pub fn for_chat(&self) -> Value {
        let one =
            |text: &str, logprob: f32| json!({ "token": text, "logprob": number(logprob), "bytes": text.as_bytes() });
        let tokens = self.tokens.iter().map(|token| {
            let mut value = one(&token.text, token.logprob);
            let alternatives = token.alternatives.iter().map(|(text, logprob)| one(text, *logprob));
            value["top_logprobs"] = alternatives.collect::<Vec<_>>().into();
            value
        });
        json!({ "content": tokens.collect::<Vec<_>>(), "refusal": null })
    }

    pub fn for_completion(&self) -> Value {
        let mut offset = self.offset;
        let offsets = self.tokens.iter().map(|token| {
            let before = offset;
            offset += token.text.chars().count();
            before
        });
        let offsets = offsets.collect::<Vec<_>>();
        let alternatives = self.tokens.iter().map(|token| {
            let alternatives = token.alternatives.iter().map(|(text, logprob)| (text.clone(), number(*logprob)));
            alternatives.collect::<Map<_, _>>()
        });
        json!({
            "tokens": self.tokens.iter().map(|token| &token.text).collect::<Vec<_>>(),
            "token_logprobs": self.tokens.iter().map(|token| number(token.logprob)).collect::<Vec<_>>(),
            "top_logprobs": alternatives.collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

/// A log probability as JSON has it: minus infinity becomes OpenAI's smallest, -9999.
fn number(logprob: f32) -> Value {
    json!(f64::from(logprob.max(-9999.0)))
}
