//! Value of a record's field, from JSON, a table or an archive.

use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};

use super::super::{BadSample, SampleResult};
use super::brief;

/// Fields of a record in order; a name may occur twice.
pub(in crate::data) type Row = Vec<(String, Value)>;

/// Value of a field. Unlike a JSON value it can be bytes, and an object may have a name twice.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::data) enum Value {
    Null,
    Bool(bool),
    /// A number as text, since no field is computed with.
    Number(String),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Object(Row),
}

impl Value {
    /// Whether there is anything in the value: no null, blank text, or list or object of only such values.
    pub fn is_set(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(_) | Self::Number(_) => true,
            Self::Text(text) => !text.trim().is_empty(),
            Self::Bytes(bytes) => !bytes.is_empty(),
            Self::List(values) => values.iter().any(Self::is_set),
            Self::Object(fields) => fields.iter().any(|(_, value)| value.is_set()),
        }
    }

    /// Kind and, if it is short, content of the value for messages.
    pub fn shown(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(value) => format!("`{value}`"),
            Self::Number(number) => format!("the number {}", brief(number)),
            Self::Text(text) => format!("\"{}\"", brief(text)),
            Self::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Self::List(_) => "a list".into(),
            Self::Object(_) => "an object".into(),
        }
    }

    /// Text, also of a number, a truth value, or bytes that are UTF-8.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Self::Text(text) | Self::Number(text) => Some(text.clone()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Bytes(bytes) => String::from_utf8(bytes.clone()).ok(),
            _ => None,
        }
    }
}

/// Fields of a JSON object. `NaN`, `Infinity` and numbers that are too large, which Python writes and JSON forbids, are
/// read as null.
pub(in crate::data) fn parse_object(json: &[u8]) -> SampleResult<Row> {
    match parse(json)? {
        Value::Object(fields) => Ok(fields),
        other => Err(BadSample::BrokenRecord(format!("is {}, expected a JSON object", other.shown()))),
    }
}

/// Value of a JSON text, as lenient as [`parse_object`].
pub(super) fn parse(json: &[u8]) -> SampleResult<Value> {
    if let Err(e) = std::str::from_utf8(json) {
        let message = format!("is not UTF-8 from byte {} on: save the file as UTF-8", e.valid_up_to());
        return Err(BadSample::BrokenRecord(message));
    }
    lenient_json(json).map_err(|e| {
        let start = brief(&String::from_utf8_lossy(json));
        let advice =
            if e.to_string().starts_with("trailing characters") { ", expected one record per line" } else { "" };
        BadSample::BrokenRecord(format!("{e}{advice}: \"{start}\""))
    })
}

/// A list in a text, as tables have it.
///
/// # Errors
/// [`BadSample::BrokenRecord`] for a list in Python's notation, which has single quotes.
pub(super) fn list_in(text: &str) -> SampleResult<Option<Value>> {
    let text = text.trim();
    if !text.starts_with('[') {
        return Ok(None);
    }
    match parse(text.as_bytes()) {
        Ok(list) => Ok(Some(list)),
        Err(_) if text.ends_with(']') && ["['", "[{'", "[\""].iter().any(|start| text.starts_with(start)) => {
            let message =
                format!("is \"{}\", a list in Python's notation: write it as JSON, with `json.dumps`", brief(text));
            Err(BadSample::BrokenRecord(message))
        }
        Err(_) => Ok(None),
    }
}

/// Value of a JSON text with numbers that JSON forbids, see [`parse_object`].
pub(crate) fn lenient_json<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|error| serde_json::from_slice(&finite(json)).map_err(|_| error))
}

/// The JSON text with null in place of numbers that are not finite.
fn finite(json: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(json.len()), 0);
    while let Some(&byte) = json.get(at) {
        let rest = &json[at..];
        let length = match byte {
            b'"' => string_length(rest),
            _ => rest.iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count().max(1),
        };
        let token = &rest[..length];
        let number = std::str::from_utf8(token).ok().and_then(|token| token.parse::<f64>().ok());
        out.extend(if number.is_some_and(|number| !number.is_finite()) { b"null" } else { token });
        at += length;
    }
    out
}

/// Length of the JSON string at the start of `json`, with its quotes.
fn string_length(json: &[u8]) -> usize {
    let mut escaped = false;
    let end = json.iter().skip(1).position(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(json.len(), |end| end + 2)
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = fields.next_entry()? {
            object.push(field);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_forbids_are_null_and_strings_stay() {
        let row = parse_object(br#"{"a": NaN, "b": [-Infinity, 1e999, 5], "c": "NaN \" Infinity", "a": 1}"#).unwrap();
        let text = |text: &str| Value::Text(text.into());
        let five = Value::Number("5".into());
        assert_eq!(row[0], ("a".into(), Value::Null));
        assert_eq!(row[1].1, Value::List(vec![Value::Null, Value::Null, five]));
        assert_eq!((&row[2].1, row.len()), (&text("NaN \" Infinity"), 4));
        let broken = parse_object(b"{\"a\": NaN, oops}").unwrap_err().to_string();
        assert!(broken.starts_with("broken record: ") && broken.contains("column"), "{broken}");
        assert!(parse_object(b"5").unwrap_err().to_string().contains("is the number 5, expected a JSON object"));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        assert!(parse(&b"[".repeat(100_000)).is_err());
        assert!(parse(&b"{\"a\":".repeat(100_000)).is_err());
    }
}
