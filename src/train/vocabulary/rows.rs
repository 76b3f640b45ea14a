//! Rows of a pretrained model's vocabulary for the tokens of a run.

use std::collections::HashMap;
use std::path::Path;

use super::surfaces::Surfaces;
use crate::Result;
use crate::processor::TextTokenizer;
use crate::weights::{GgufFile, RowMap, RowSource};

/// Vocabulary of a pretrained model.
pub(in crate::train) enum SourceVocabulary {
    /// A tokenizer, which also splits a token into pieces.
    Tokenizer(Box<TextTokenizer>),
    /// The tokens of a GGUF file with their ids.
    Tokens(HashMap<String, u32>),
}

impl SourceVocabulary {
    /// The vocabulary of a model folder; `None` if the folder has no tokenizer.
    pub fn of_folder(folder: &Path) -> Result<Option<Self>> {
        Ok(TextTokenizer::find(folder)?.map(|tokenizer| Self::Tokenizer(Box::new(tokenizer))))
    }

    /// The vocabulary of a language model: of its folder, or of a GGUF file, whose tokens say whether a tokenizer beside it
    /// is its own.
    pub fn of_llm(path: &Path) -> Result<Option<Self>> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let tokens = if is_gguf { GgufFile::open(path)?.tokens()? } else { None };
        let beside = Self::of_folder(path.parent().unwrap_or(Path::new("")))?;
        let Some(tokens) = tokens else { return Ok(beside) };
        let ids: HashMap<String, u32> = tokens.into_iter().zip(0..).collect();
        let agrees = |beside: &Self| ids.iter().all(|(token, &id)| beside.id(token).is_none_or(|found| found == id));
        Ok(beside.filter(agrees).or(Some(Self::Tokens(ids))))
    }

    fn id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Tokenizer(tokenizer) => tokenizer.id(token),
            Self::Tokens(ids) => ids.get(token).copied(),
        }
    }

    /// Whether an id has no token, as that of a row with which a table is padded.
    fn is_padding(&self, id: u32) -> bool {
        match self {
            Self::Tokenizer(tokenizer) => tokenizer.inner().id_to_token(id).is_none(),
            // Converters to GGUF write a token for every row.
            Self::Tokens(ids) => id as usize >= ids.len() || ids.get(&format!("[PAD{id}]")) == Some(&id),
        }
    }

    /// The texts of its tokens, of a vocabulary that can decode them.
    fn surfaces(&self) -> Option<Surfaces<'_>> {
        match self {
            Self::Tokenizer(tokenizer) => Some(Surfaces::new(tokenizer)),
            Self::Tokens(_) => None,
        }
    }

    /// Whether tokens are spelt as in `run`, which its decoder shows.
    fn spells_as(&self, run: &TextTokenizer) -> bool {
        let decoder = |tokenizer: &TextTokenizer| serde_json::to_value(tokenizer.inner().get_decoder()).ok();
        match self {
            Self::Tokenizer(own) => decoder(own) == decoder(run),
            Self::Tokens(_) => true,
        }
    }
}

/// The source of each row of the run's vocabulary of `new_rows` rows: the row of the same token of `source`, whose table
/// has `old_rows` rows, or the mean of the rows of its pieces. Tokens of vocabularies that spell them differently, such as
/// `Ġred` and `▁red`, are the same if they stand for the same text.
///
/// Rows beyond both vocabularies, with which published tables are padded, stay where they are.
pub(in crate::train) fn row_map(
    source: &SourceVocabulary,
    old_rows: usize,
    run: &TextTokenizer,
    new_rows: usize,
) -> Result<RowMap> {
    let has_row = |id: &u32| (*id as usize) < old_rows;
    let (ours, theirs) = (Surfaces::new(run), source.surfaces());
    let by_text = theirs.as_ref().filter(|_| !source.spells_as(run)).map(Surfaces::ids);
    let row = |id: u32| -> RowSource {
        let Some(token) = run.inner().id_to_token(id) else {
            return if has_row(&id) && source.is_padding(id) { RowSource::Row(id) } else { RowSource::Mean };
        };
        let is_text = !run.is_special(id) && !run.is_unknown(id);
        let text = if is_text { ours.text(id) } else { None };
        let same = match (&by_text, &text) {
            (Some(ids), Some(text)) => ids.get(text).copied(),
            _ => source.id(&token),
        };
        match same.filter(has_row) {
            Some(old) => RowSource::Row(old),
            None if is_text => pieces(theirs.as_ref(), text.as_deref().unwrap_or(&token), has_row),
            None => RowSource::Mean,
        }
    };
    RowMap::new((0..u32::try_from(new_rows).unwrap_or(u32::MAX)).map(row).collect(), old_rows)
}

/// Rows of the pieces of a text that is no token of the source.
fn pieces(source: Option<&Surfaces<'_>>, text: &str, has_row: impl Fn(&u32) -> bool) -> RowSource {
    let mut rows = source.map_or_else(Vec::new, |source| source.pieces(text));
    rows.retain(has_row);
    if rows.is_empty() { RowSource::Mean } else { RowSource::Pieces(rows) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};
    use tokenizers::Tokenizer;

    use super::*;

    /// A tokenizer of characters and the pairs of `merges`, in this order.
    fn tokenizer(tokens: &[&str], merges: &[[&str; 2]]) -> TextTokenizer {
        let vocab: Map<_, _> = tokens.iter().zip(0..).map(|(token, id)| (token.to_string(), json!(id))).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": { "type": "Fuse" },
            "model": { "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": tokens[0] },
        });
        TextTokenizer::new(file.to_string().parse::<Tokenizer>().unwrap(), Map::new()).unwrap()
    }

    #[test]
    fn rows_follow_tokens_pieces_and_padding() {
        use RowSource::{Mean, Pieces, Row};
        let source = SourceVocabulary::Tokenizer(Box::new(tokenizer(&["?", "a", "b", "x"], &[])));
        let run = tokenizer(&["?", "b", "a", "ab", "z", "az"], &[["a", "b"], ["a", "z"]]);
        let map = row_map(&source, 8, &run, 9).unwrap();
        // The unknown z has no pieces, and of `az` only the known one counts.
        let rows = vec![Row(0), Row(2), Row(1), Pieces(vec![1, 2]), Mean, Pieces(vec![1]), Row(6), Row(7), Mean];
        assert_eq!(map, RowMap::new(rows, 8).unwrap());
        let same = tokenizer(&["?", "a", "b", "x"], &[]);
        assert!(row_map(&source, 8, &same, 8).unwrap().is_identity());
    }

    /// A tokenizer with spaces before words, written as `space`, and the merge of a space and `a`.
    fn spaced(space: &str, tokens: &[&str], decoder: &str) -> TextTokenizer {
        let tokens: Vec<String> = tokens.iter().map(|token| token.replace('_', space)).collect();
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let json = tokenizer(&tokens, &[[space, "a"]]).inner().to_string(false).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&json).unwrap();
        file["decoder"] = serde_json::from_str(decoder).unwrap();
        file["normalizer"] = json!({ "type": "Replace", "pattern": { "String": " " }, "content": space });
        TextTokenizer::new(file.to_string().parse::<Tokenizer>().unwrap(), Map::new()).unwrap()
    }

    #[test]
    fn rows_follow_the_texts_of_tokens_that_are_spelt_differently() {
        use RowSource::{Pieces, Row};
        let bytes = r#"{ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false }"#;
        let source = spaced("Ġ", &["?", "Ġ", "a", "red", "Ġred", "Ġa", "b"], bytes);
        let metaspace = r#"{ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false }"#;
        let run = spaced("\u{2581}", &["?", "_a", "_red", "red", "b", "_", "a", "_b", "_ab"], metaspace);
        let map = row_map(&SourceVocabulary::Tokenizer(Box::new(source)), 7, &run, 9).unwrap();
        let rows = vec![Row(0), Row(5), Row(4), Row(3), Row(6), Row(1), Row(2), Pieces(vec![1, 6]), Pieces(vec![5, 6])];
        assert_eq!(map, RowMap::new(rows, 7).unwrap());
    }

    #[test]
    fn tokens_of_a_file_are_enough() {
        let source = SourceVocabulary::Tokens([("?".into(), 0), ("b".into(), 1)].into());
        let map = row_map(&source, 2, &tokenizer(&["?", "a", "b"], &[]), 3).unwrap();
        assert_eq!(map, RowMap::new(vec![RowSource::Row(0), RowSource::Mean, RowSource::Row(1)], 2).unwrap());
    }
}
