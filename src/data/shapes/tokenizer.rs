//! A tokenizer for the closed vocabulary of shapes world: one token a word.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::words::vocabulary;
use crate::processor::TextTokenizer;
use crate::{Error, Result};

/// Control tokens and placeholders, in the order of their ids.
const CONTROL: [&str; 5] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"];
const UNKNOWN: &str = "<unk>";
/// Words that only the chat template says.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Ids of [`tokenizer`] that a model configuration has to agree with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShapesTokens {
    /// Number of ids.
    pub vocab_size: usize,
    /// Placeholder of images.
    pub image: u32,
    /// Placeholder of videos.
    pub video: u32,
}

/// The ids of the tokenizer.
pub fn token_ids() -> ShapesTokens {
    ShapesTokens { vocab_size: CONTROL.len() + words().len(), image: 3, video: 4 }
}

/// The words that have a token, behind the control tokens.
fn words() -> Vec<String> {
    std::iter::once(UNKNOWN).chain(ROLES).map(String::from).chain(vocabulary()).collect()
}

/// A tokenizer of words and punctuation marks, with the control tokens of ChatML and the placeholders before them.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizers crate refuses its definition.
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
        // Joins words by spaces and takes those before punctuation away; the first decoder knows of no colon.
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "WordPiece", "prefix": "##", "cleanup": true },
            { "type": "Replace", "pattern": { "String": " :" }, "content": ":" },
        ] },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN },
    });
    let tokenizer = Tokenizer::from_bytes(file.to_string()).map_err(|e| Error::tokenizer(e.to_string()))?;
    let named = [("eos_token", "<|im_end|>"), ("unk_token", UNKNOWN)];
    TextTokenizer::new(tokenizer, named.map(|(name, token)| (name.to_string(), json!(token))).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes::{Scene, ShapesConfig};

    #[test]
    fn captions_survive_the_tokenizer_and_no_word_is_unknown() {
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
    fn words_of_another_world_are_told() {
        let unknown = |text| tokenizer().unwrap().unknown_words(text).unwrap();
        assert_eq!(unknown("is the Zebra left of an elephant or of a Zebra?"), ["Zebra", "elephant"]);
        assert!(unknown("is there a red circle?").is_empty());
        assert!(unknown("").is_empty());
    }

    #[test]
    fn ids_are_those_that_are_told() {
        let (tokenizer, ids) = (tokenizer().unwrap(), token_ids());
        assert_eq!((tokenizer.id("<image>"), tokenizer.id("<video>")), (Some(ids.image), Some(ids.video)));
        assert_eq!(tokenizer.inner().get_vocab_size(true), ids.vocab_size);
    }
}
