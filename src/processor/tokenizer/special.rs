//! Added tokens of a folder without `tokenizer.json`: `added_tokens_decoder`, `added_tokens.json`,
//! `special_tokens_map.json` and the named tokens of `tokenizer_config.json`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::processor::folder::read_json;
use crate::{Error, Result};

/// Fields of `tokenizer_config.json` that name one token.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Field that lists more special tokens.
const MORE: &str = "additional_special_tokens";

/// A token with the properties that matter when it is looked for in a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Declared {
    id: Option<u32>,
    special: bool,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
}

/// Text of a token that is given as a string or as an object with `content`.
pub(super) fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Completes `tokenizer_config.json` with `special_tokens_map.json` and the defaults of the tokenizer's class.
pub(super) fn complete(config: &mut Map<String, Value>, folder: &Path, defaults: &[(&str, &str)]) -> Result<()> {
    if let Some(Value::Object(map)) = read_json(&folder.join("special_tokens_map.json"))? {
        for (name, token) in map.into_iter().filter(|(name, _)| is_token_field(name)) {
            config.entry(name).or_insert(token);
        }
    }
    for (name, token) in defaults {
        config.entry(*name).or_insert(json!(token));
    }
    // An absent token may be written as null, which takes the default away.
    config.retain(|name, token| !is_token_field(name) || !token.is_null());
    Ok(())
}

fn is_token_field(name: &str) -> bool {
    NAMED.contains(&name) || name == MORE
}

/// The entries of `added_tokens` in `tokenizer.json`, in the order of their ids, for a model with the tokens of `vocab`.
///
/// # Errors
/// [`Error::Tokenizer`] naming a token whose id contradicts the vocabulary or leaves a hole, [`Error::Format`] for an
/// invalid file.
pub(super) fn added_tokens(
    folder: &Path,
    config: &Map<String, Value>,
    vocab: &HashMap<String, u32>,
) -> Result<Vec<Value>> {
    let declared = declared(folder, config)?;
    let mut ids: BTreeMap<u32, String> = BTreeMap::new();
    let mut new: BTreeMap<u32, String> = BTreeMap::new();
    let mut late = Vec::new();
    for (text, token) in &declared {
        let id = match (vocab.get(text), token.id) {
            (Some(&known), Some(id)) if known != id => return Err(collision(text, id, known)),
            (Some(&known), _) => known,
            (None, Some(id)) => {
                new.insert(id, text.clone());
                id
            }
            (None, None) => {
                late.push(text.clone());
                continue;
            }
        };
        if let Some(other) = ids.insert(id, text.clone()) {
            return Err(Error::tokenizer(format!(
                "`{other}` and `{text}` both have id {id}: give each token its own id"
            )));
        }
    }
    let size = u32::try_from(vocab.len()).unwrap_or(u32::MAX);
    for (expected, (&id, text)) in (size..).zip(&new) {
        if id != expected {
            return Err(Error::tokenizer(format!(
                "the added token `{text}` has id {id}, expected {expected}, the first free one: number added tokens \
                 without holes after the vocabulary"
            )));
        }
    }
    let next = size.saturating_add(u32::try_from(new.len()).unwrap_or(u32::MAX));
    ids.extend((next..).zip(late));
    let entry = |(id, text): (u32, String)| {
        let token = declared.get(&text).cloned().unwrap_or_default();
        entry(id, &text, &token)
    };
    Ok(ids.into_iter().map(entry).collect())
}

/// Slow tokenizers look for added tokens in the text as it is, before normalisation.
fn entry(id: u32, text: &str, token: &Declared) -> Value {
    json!({
        "id": id, "content": text, "single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip,
        "normalized": false, "special": token.special,
    })
}

fn collision(text: &str, id: u32, known: u32) -> Error {
    Error::tokenizer(format!(
        "the added token `{text}` has id {id}, but id {known} in the vocabulary: remove it from the added tokens, or \
         copy the tokenizer's files again"
    ))
}

/// All added tokens by their text; ids are known of some.
fn declared(folder: &Path, config: &Map<String, Value>) -> Result<BTreeMap<String, Declared>> {
    let mut tokens = BTreeMap::new();
    if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
        for (id, token) in decoder {
            let text = content(token).ok_or_else(|| Error::tokenizer(format!("added token {id} has no `content`")))?;
            tokens.insert(text.to_string(), properties(token, Some(parse_id(text, id)?)));
        }
    }
    if let Some(Value::Object(added)) = read_json(&folder.join("added_tokens.json"))? {
        for (text, id) in added {
            let id = parse_id(&text, &id.to_string())?;
            let token = tokens.entry(text.clone()).or_insert(Declared { id: Some(id), ..Declared::default() });
            if token.id != Some(id) {
                return Err(collision(&text, id, token.id.unwrap_or_default()));
            }
        }
    }
    let named = NAMED.iter().filter_map(|name| config.get(*name));
    let more = config.get(MORE).and_then(Value::as_array).into_iter().flatten();
    for token in named.chain(more) {
        let Some(text) = content(token).filter(|text| !text.is_empty()) else { continue };
        tokens.entry(text.to_string()).or_insert_with(|| properties(token, None)).special = true;
    }
    Ok(tokens)
}

fn properties(token: &Value, id: Option<u32>) -> Declared {
    let is = |field: &str| token.get(field).and_then(Value::as_bool).unwrap_or(false);
    Declared { id, special: is("special"), lstrip: is("lstrip"), rstrip: is("rstrip"), single_word: is("single_word") }
}

fn parse_id(text: &str, id: &str) -> Result<u32> {
    id.parse()
        .map_err(|_| Error::tokenizer(format!("the added token `{text}` has id {id}, expected a number below 2^32")))
}

/// A post-processor that puts a token before and another one after a text; `null` for none.
pub(super) fn surround(before: Option<(&str, u32)>, after: Option<(&str, u32)>) -> Value {
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let special = |(token, _): (&str, u32)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let around = |name: &str| {
        let text = json!({ "Sequence": { "id": name, "type_id": 0 } });
        before.map(special).into_iter().chain([text]).chain(after.map(special))
    };
    let entry = |(token, id): (&str, u32)| (token.to_string(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    let tokens: Map<String, Value> = before.into_iter().chain(after).map(entry).collect();
    json!({
        "type": "TemplateProcessing", "special_tokens": tokens,
        "single": around("A").collect::<Vec<_>>(), "pair": around("A").chain(around("B")).collect::<Vec<_>>(),
    })
}
