//! JSON schemas of requests: bounded, and without keywords that would have no effect.

use std::cell::Cell;
use std::fmt;

use axum::http::StatusCode;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// Place of a schema in a request.
pub const PLACE: &str = "response_format.json_schema.schema";
/// Largest number of JSON values in a schema.
const MAX_VALUES: usize = 10_000;
/// Largest size of all its texts and names in bytes.
const MAX_TEXT: usize = 256 << 10;
/// Largest integer up to which a double holds every one.
const MAX_INTEGER: u64 = 1 << 53;

/// Keywords that describe, and say nothing of what is valid.
const ANNOTATIONS: [&str; 8] =
    ["$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"];
/// Keywords that stand for a whole schema, of which there may be one.
const WHOLE: [&str; 6] = ["$ref", "const", "enum", "anyOf", "oneOf", "allOf"];
/// Keywords that such a one may stand beside.
const BESIDE_WHOLE: [&str; 3] = ["type", "$defs", "definitions"];
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// A schema as it came, within limits.
#[derive(Debug)]
pub struct Schema(Value);

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let room = Room { values: Cell::new(MAX_VALUES), text: Cell::new(MAX_TEXT) };
        Bounded(&room).deserialize(deserializer).map(Self)
    }
}

/// What a schema may still hold.
struct Room {
    values: Cell<usize>,
    text: Cell<usize>,
}

impl Room {
    fn take<E: Error>(&self, values: usize, text: usize) -> Result<(), E> {
        match (self.values.get().checked_sub(values), self.text.get().checked_sub(text)) {
            (Some(values), Some(text)) => {
                self.values.set(values);
                self.text.set(text);
                Ok(())
            }
            _ => Err(E::custom(format!("the schema has more than {MAX_VALUES} values or {MAX_TEXT} bytes of text"))),
        }
    }
}

/// Reads a value as long as there is room, and each name of an object once.
#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Room);

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON schema")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.0.take(1, 0).map(|()| Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.0.take(1, 0).map(|()| value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.0.take(1, 0).map(|()| value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.0.take(1, 0).map(|()| value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.0.take(1, 0)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("is no finite number"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.0.take(1, text.len()).map(|()| text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.0.take(1, 0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        self.0.take(1, 0)?;
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            self.0.take(0, name.len())?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!("has the name {name:.50?} twice")));
            }
            map.insert(name, fields.next_value_seed(self)?);
        }
        Ok(map.into())
    }
}

impl Schema {
    /// The schema, once each of its keywords is known to be held.
    ///
    /// Those that a schema is made of in place, such as `anyOf`, are taken alone: merging them with others could take time
    /// and memory without bound.
    pub fn checked(self) -> Result<Map<String, Value>, ApiError> {
        let mut schema = match self.0 {
            Value::Object(schema) => schema,
            other => return Err(refused(PLACE, format!("is {}, expected an object", shown(&other)))),
        };
        // All drafts agree on the keywords that are taken.
        if let Some(draft) = schema.shift_remove("$schema").filter(|draft| !draft.is_string()) {
            return Err(refused(&format!("{PLACE}.$schema"), format!("is {}, expected a text", shown(&draft))));
        }
        Checker { root: &schema }.object(PLACE, &schema)?;
        Ok(schema)
    }
}

struct Checker<'a> {
    root: &'a Map<String, Value>,
}

impl Checker<'_> {
    fn schema(&self, place: &str, schema: &Value) -> Result<(), ApiError> {
        match schema {
            Value::Object(schema) => self.object(place, schema),
            Value::Bool(_) => Ok(()),
            other => Err(refused(place, format!("is {}, expected a schema", shown(other)))),
        }
    }

    fn object(&self, place: &str, schema: &Map<String, Value>) -> Result<(), ApiError> {
        if let Some(whole) = schema.keys().find(|keyword| WHOLE.contains(&keyword.as_str())) {
            let fits = |keyword: &str| ANNOTATIONS.contains(&keyword) || BESIDE_WHOLE.contains(&keyword);
            if let Some(other) = schema.keys().find(|keyword| *keyword != whole && !fits(keyword)) {
                let message = format!("stands beside `{other:.50}`, expected `{whole}` beside `type` and texts only");
                return Err(refused(&format!("{place}.{whole}"), message));
            }
        }
        schema.iter().try_for_each(|(keyword, value)| self.keyword(&format!("{place}.{keyword}"), keyword, value))
    }

    fn keyword(&self, place: &str, keyword: &str, value: &Value) -> Result<(), ApiError> {
        let expect = |holds: bool, what: &str| match holds {
            true => Ok(()),
            false => Err(refused(place, format!("is {}, expected {what}", shown(value)))),
        };
        match keyword {
            "properties" | "$defs" | "definitions" => self.named(place, value),
            "items" | "additionalProperties" => self.schema(place, value),
            "prefixItems" | "anyOf" | "oneOf" => self.list(place, value),
            "allOf" => {
                expect(value.as_array().is_some_and(|list| list.len() == 1), "a list of one schema: merge them")?;
                self.list(place, value)
            }
            "$ref" => expect(self.is_reference(value), "`#`, or `#/$defs/NAME` with such a name there"),
            "const" => expect(is_exact(value), "no integer beyond 2^53"),
            "enum" => {
                expect(value.as_array().is_some_and(|list| !list.is_empty()), "a list of values")?;
                expect(is_exact(value), "no integer beyond 2^53")
            }
            "type" => expect(is_type(value), "a type, or a list of types"),
            "required" => expect(is_list_of(value, Value::is_string), "a list of names"),
            "pattern" => expect(value.is_string(), "a regular expression"),
            "format" => expect(is_among(value, &FORMATS), &format!("one of {}", FORMATS.join(", "))),
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                expect(value.as_u64().is_some_and(|count| u32::try_from(count).is_ok()), "a count")
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                expect(value.is_number() && is_exact(value), "a number, no integer beyond 2^53")
            }
            "multipleOf" => expect(is_step(value), "a number above 0 of up to four digits, such as 5 or 0.01"),
            _ if ANNOTATIONS.contains(&keyword) => Ok(()),
            _ => {
                let message = format!("`{place}` is no keyword that this server holds answers to: leave it out");
                Err(ApiError::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message).with_param(place))
            }
        }
    }

    fn named(&self, place: &str, value: &Value) -> Result<(), ApiError> {
        let expected = || refused(place, format!("is {}, expected an object of schemas", shown(value)));
        let schemas = value.as_object().ok_or_else(expected)?;
        schemas.iter().try_for_each(|(name, schema)| self.schema(&format!("{place}.{name}"), schema))
    }

    fn list(&self, place: &str, value: &Value) -> Result<(), ApiError> {
        let expected = || refused(place, format!("is {}, expected a list of schemas", shown(value)));
        let schemas = value.as_array().filter(|list| !list.is_empty()).ok_or_else(expected)?;
        schemas.iter().enumerate().try_for_each(|(n, schema)| self.schema(&format!("{place}[{n}]"), schema))
    }

    /// Whether a reference is to the whole schema or to one of its definitions.
    fn is_reference(&self, value: &Value) -> bool {
        let Some(reference) = value.as_str() else { return false };
        let definition = || {
            let (group, name) = reference.strip_prefix("#/")?.split_once('/')?;
            // Such names would have to be unescaped.
            let is_plain = !name.contains(['/', '~', '%']);
            (is_plain && ["$defs", "definitions"].contains(&group)).then(|| self.root.get(group)?.get(name)).flatten()
        };
        reference == "#" || definition().is_some()
    }
}

/// Whether all integers of a value are doubles, as which they are compiled.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            let size = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
            size.is_none_or(|size| size <= MAX_INTEGER)
        }
        Value::Array(list) => list.iter().all(is_exact),
        Value::Object(map) => map.values().all(is_exact),
        _ => true,
    }
}

/// Whether a value is a step between numbers that a grammar can count by in bounded time.
fn is_step(value: &Value) -> bool {
    let text = value.as_number().map(Number::to_string).unwrap_or_default();
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let digits = format!("{whole}{}", part.trim_end_matches('0')).parse::<u32>();
    part.len() < 10 && digits.is_ok_and(|digits| (1..10_000).contains(&digits))
}

fn is_type(value: &Value) -> bool {
    is_among(value, &TYPES) || is_list_of(value, |kind| is_among(kind, &TYPES)) && value[0].is_string()
}

fn is_among(value: &Value, texts: &[&str]) -> bool {
    value.as_str().is_some_and(|text| texts.contains(&text))
}

fn is_list_of(value: &Value, holds: impl Fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(holds))
}

fn refused(place: &str, message: impl fmt::Display) -> ApiError {
    ApiError::invalid(place, format!("`{place}` {message}"))
}

/// The beginning of a value.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => format!("`{:.60}`", other.to_string()),
    }
}
