//! Reading a recipe file and applying overrides to it.

use std::path::Path;

use super::Recipe;
use super::names::{canonical, canonicalise};
use crate::files::{MAX_TEXT_BYTES, read_text};
use crate::{Error, Result};

/// Reads the recipe file `path` and applies `overrides` of the form `KEY=VALUE`.
///
/// An error says whether the file or which of the overrides it comes from: the last one that changed the error.
pub(super) fn read(path: &Path, overrides: &[String]) -> Result<Recipe> {
    let text = read_text(path, MAX_TEXT_BYTES)?;
    let fail = |message: String| Error::format(path, message);
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| fail(e.to_string()).caused_by(e))?;
    canonicalise(&mut table).map_err(fail)?;
    let mut recipe = parse(&table);
    let mut blamed = None;
    for setting in overrides {
        set(&mut table, setting).map_err(|why| refused(setting, &why))?;
        let now = parse(&table);
        if now.as_ref().err().map(ToString::to_string) != recipe.as_ref().err().map(ToString::to_string) {
            blamed = Some(setting);
        }
        recipe = now;
    }
    recipe.map_err(|error| match (blamed, &error) {
        (Some(setting), Error::Config { field, message, .. }) => {
            refused(setting, &format!("`{field}` {message}")).caused_by(error)
        }
        (Some(setting), _) => refused(setting, &error.to_string()).caused_by(error),
        (None, Error::Config { .. }) => error.in_file(path),
        (None, _) => error,
    })
}

/// Parses and validates a recipe table with current field names.
fn parse(table: &toml::Table) -> Result<Recipe> {
    let recipe: Recipe = serde_path_to_error::deserialize(toml::Value::Table(table.clone())).map_err(|e| {
        let field = e.path().to_string();
        let message = match value_at(table, &field) {
            // The parser's message would be about Rust types.
            Some(found) if e.inner().message().contains("unit variant") => {
                format!("is {found}, expected one of its names as a string")
            }
            _ => format!("cannot be read: {}", with_nearest(e.inner().message())),
        };
        Error::config(field, message).caused_by(e.into_inner())
    })?;
    recipe.validate()?;
    Ok(recipe)
}

/// A message of the parser, which for an unknown name ends with all that are known: with only the nearest of them, if one
/// is near.
fn with_nearest(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(found) = names.next().filter(|_| message.starts_with("unknown ")) else { return message.to_string() };
    // The parser does not know the fields that a training source has beside those of its kind.
    let near = names.chain(["weight", "kind"]).map(|name| (edits(found, name), name)).min();
    let limit = found.chars().count().div_ceil(4);
    match (near, message.split_once(',')) {
        (Some((distance, name)), Some((start, _))) if distance <= limit => format!("{start}: did you mean `{name}`?"),
        _ => message.to_string(),
    }
}

/// Number of characters to insert, remove or replace to make one name of the other.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.chars().enumerate() {
            let best = (diagonal + usize::from(a != b)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row.last().copied().unwrap_or_default()
}

fn value_at<'a>(table: &'a toml::Table, path: &str) -> Option<&'a toml::Value> {
    let mut keys = path.split('.');
    let first = table.get(keys.next()?);
    keys.fold(first, |value, key| value?.as_table()?.get(key))
}

/// The error for an invalid override, which names the setting instead of the file.
fn refused(setting: &str, why: &str) -> Error {
    let key = setting.split('=').next().unwrap_or_default();
    Error::config(key, format!("set by the override `{setting}`: {why}"))
}

/// Applies `a.b.c=value`; the value is TOML, or else a plain string.
fn set(recipe: &mut toml::Table, setting: &str) -> std::result::Result<(), String> {
    let Some((path, value)) = setting.split_once('=') else {
        return Err("expected KEY=VALUE, such as update.steps=100".into());
    };
    let path = canonical(path.trim());
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut table = &mut *recipe;
    for key in keys {
        let entry = table.entry(key).or_insert_with(|| toml::Table::new().into());
        if key == "tokenizer" && entry.is_str() {
            // A string is the short form of a table with `source` alone.
            *entry = toml::Table::from_iter([("source".to_string(), entry.clone())]).into();
        }
        table = entry.as_table_mut().ok_or_else(|| format!("`{key}` is not a table"))?;
    }
    table.insert(last.into(), toml_value(value));
    if let Some(other) = alternative(&path) {
        table.remove(other);
    }
    canonicalise(recipe)
}

/// The field of the same table that a field replaces: an override of one is meant instead of the other.
fn alternative(path: &str) -> Option<&'static str> {
    match path {
        "update.steps" => Some("epochs"),
        "update.epochs" => Some("steps"),
        _ => None,
    }
}

fn toml_value(text: &str) -> toml::Value {
    let parsed = format!("value = {text}").parse::<toml::Table>();
    // A line break in the text could add more keys.
    let one = parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    one.unwrap_or_else(|| toml::Value::String(text.into()))
}
