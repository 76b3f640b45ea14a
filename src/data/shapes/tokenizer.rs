//! Word-level tokenizer for the closed vocabulary of shapes world.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::words::vocabulary;
use crate::processor::TextTokenizer;
use crate::{Error, Result};

/// Control tokens and placeholders, in the order of their ids.
const CONTROL: [&str; 5] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"];
const UNKNOWN: &str = "<unk>";
/// Words that occur only in the chat template.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Vocabulary size and placeholder ids of [`tokenizer`], for the model configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShapesTokens {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Id of the image placeholder.
    pub image: u32,
    /// Id of the video placeholder.
    pub video: u32,
}

/// Returns the vocabulary size and the placeholder ids of [`tokenizer`].
pub fn token_ids() -> ShapesTokens {
    ShapesTokens { vocab_size: CONTROL.len() + words().len(), image: 3, video: 4 }
}

/// Lists the words of the vocabulary, whose ids follow the control tokens.
fn words() -> Vec<String> {
    std::iter::once(UNKNOWN).chain(ROLES).map(String::from).chain(vocabulary()).collect()
}

/// Builds a tokenizer of words and punctuation marks. The first ids are the control tokens of ChatML and the
/// placeholders.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizers crate rejects the definition.
pub fn tokenizer() -> Result<TextTokenizer> {
    let control = CONTROL.iter().enumerate().map(|(id, token)| {
        json!({ "id": id, "content": token, "special": true, "normalized": false, "single_word": false,
                "lstrip": false, "rstrip": false })
    });
    let all = CONTROL.into_iter().map(String::from).chain(words());
    let vocab: Map<String, Value> = all.zip(0..).map(|(word, id)| (word, json!(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": { "type": "Lowercase" },
        "added_tokens": control.collect::<Vec<_>>(),
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
        // Joins words with spaces and removes spaces before punctuation; WordPiece cleanup does not handle colons.
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "WordPiece", "prefix": "##", "cleanup": true },
            { "type": "Replace", "pattern": { "String": " :" }, "content": ":" },
        ] },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN },
    });
    let tokenizer = file.to_string().parse::<Tokenizer>().map_err(|e| Error::tokenizer(e.to_string()))?;
    let named = [("eos_token", "<|im_end|>"), ("unk_token", UNKNOWN)];
    TextTokenizer::new(tokenizer, named.map(|(name, token)| (name.to_string(), json!(token))).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes::{Scene, ShapesConfig};

    #[test]
    fn captions_round_trip_without_unknown_words() {
        let tokenizer = tokenizer().unwrap();
        let unknown = tokenizer.id(UNKNOWN).unwrap();
        for seed in 0..50 {
            let mut rng = crate::data::random_stream(seed, 1);
            let caption = Scene::generate(seed, &ShapesConfig::default()).caption(&mut rng);
            let ids = tokenizer.encode(&caption).unwrap();
            assert!(!ids.contains(&unknown), "{caption}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), caption);
        }
    }

    #[test]
    fn unknown_words_are_reported() {
        let unknown = |text| tokenizer().unwrap().unknown_words(text).unwrap();
        assert_eq!(unknown("is the Zebra left of an elephant or of a Zebra?"), ["Zebra", "elephant"]);
        assert!(unknown("is there a red circle?").is_empty());
        assert!(unknown("").is_empty());
    }

    #[test]
    fn token_ids_match_the_tokenizer() {
        let (tokenizer, ids) = (tokenizer().unwrap(), token_ids());
        assert_eq!((tokenizer.id("<image>"), tokenizer.id("<video>")), (Some(ids.image), Some(ids.video)));
        assert_eq!(tokenizer.inner().get_vocab_size(true), ids.vocab_size);
    }
}
