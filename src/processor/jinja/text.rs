//! Values as text: as Python prints them, and as JSON.

use std::sync::Arc;

use super::budget::Budget;
use super::value::Value;
use super::{Failure, Result};

/// The text of a value, as `str()` of Python gives it; undefined is empty.
pub(super) fn to_text(budget: &Budget, value: &Value) -> Result<Arc<str>> {
    if let Value::Str(text) = value {
        return Ok(text.clone());
    }
    let mut writer = Writer::new(budget);
    writer.value(value, false)?;
    Ok(writer.text.into())
}

/// Text under construction. Each piece is charged before it is written.
pub(super) struct Writer<'b> {
    budget: &'b Budget,
    pub(super) text: String,
}

impl<'b> Writer<'b> {
    pub(super) fn new(budget: &'b Budget) -> Self {
        Self { budget, text: String::new() }
    }

    pub(super) fn push(&mut self, piece: &str) -> Result<()> {
        self.reserve(piece.len())?;
        self.text.push_str(piece);
        Ok(())
    }

    pub(super) fn repeat(&mut self, piece: char, count: usize) -> Result<()> {
        self.reserve(count.saturating_mul(piece.len_utf8()))?;
        self.text.extend(std::iter::repeat_n(piece, count));
        Ok(())
    }

    fn reserve(&self, bytes: usize) -> Result<()> {
        // What is there is charged once only, but counts towards the largest text.
        self.budget.text_after(self.text.len(), bytes)
    }

    /// A value as Python prints it; `quoted` as inside of a list.
    pub(super) fn value(&mut self, value: &Value, quoted: bool) -> Result<()> {
        let _level = self.budget.enter()?;
        match value {
            Value::Undefined => Ok(()),
            Value::None => self.push("None"),
            Value::Bool(true) => self.push("True"),
            Value::Bool(false) => self.push("False"),
            Value::Int(n) => self.push(&n.to_string()),
            Value::Float(x) => self.push(&float(*x)),
            Value::Str(text) if quoted => self.quoted(text),
            Value::Str(text) => self.push(text),
            Value::List(_) => self.list(value.items().unwrap_or_default()),
            Value::Dict(_) => self.dict(value.pairs().unwrap_or_default()),
            Value::Namespace(_) | Value::Loop(_) | Value::Macro(_) | Value::Function(_) => {
                Err(Failure::new(format!("{} cannot be printed", value.kind())))
            }
        }
    }

    fn list(&mut self, items: &[Value]) -> Result<()> {
        self.push("[")?;
        for (n, item) in items.iter().enumerate() {
            self.push(if n == 0 { "" } else { ", " })?;
            self.value(item, true)?;
        }
        self.push("]")
    }

    fn dict(&mut self, pairs: &[(Value, Value)]) -> Result<()> {
        self.push("{")?;
        for (n, (key, value)) in pairs.iter().enumerate() {
            self.push(if n == 0 { "" } else { ", " })?;
            self.value(key, true)?;
            self.push(": ")?;
            self.value(value, true)?;
        }
        self.push("}")
    }

    /// A string as Python's `repr` shows it.
    fn quoted(&mut self, text: &str) -> Result<()> {
        let quote = if text.contains('\'') && !text.contains('"') { "\"" } else { "'" };
        self.push(quote)?;
        self.escaped(text, |c| match c {
            '\\' => Some("\\\\".into()),
            '\n' => Some("\\n".into()),
            '\r' => Some("\\r".into()),
            '\t' => Some("\\t".into()),
            '\'' if quote == "'" => Some("\\'".into()),
            c if c.is_ascii_control() => Some(format!("\\x{:02x}", u32::from(c))),
            _ => None,
        })?;
        self.push(quote)
    }

    /// A text with some characters replaced.
    pub(super) fn escaped(&mut self, text: &str, escape: impl Fn(char) -> Option<String>) -> Result<()> {
        let mut from = 0;
        for (at, c) in text.char_indices() {
            if let Some(escaped) = escape(c) {
                self.push(&text[from..at])?;
                self.push(&escaped)?;
                from = at + c.len_utf8();
            }
        }
        self.push(&text[from..])
    }

    /// A value as `json.dumps` writes it, with `indent` spaces a level or in one line.
    pub(super) fn json(&mut self, value: &Value, indent: Option<usize>, depth: usize) -> Result<()> {
        let _level = self.budget.enter()?;
        match value {
            Value::None => self.push("null"),
            Value::Bool(b) => self.push(if *b { "true" } else { "false" }),
            Value::Int(n) => self.push(&n.to_string()),
            Value::Float(x) => self.push(&float(*x)),
            Value::Str(text) => self.json_string(text),
            Value::List(_) => {
                let items = value.items().unwrap_or_default();
                self.json_group(["[", "]"], items, indent, depth, |writer, item| writer.json(item, indent, depth + 1))
            }
            Value::Dict(_) => {
                let pairs = value.pairs().unwrap_or_default();
                self.json_group(["{", "}"], pairs, indent, depth, |writer, (key, value)| {
                    writer.json_string(&to_text(writer.budget, key)?)?;
                    writer.push(": ")?;
                    writer.json(value, indent, depth + 1)
                })
            }
            other => Err(Failure::new(format!("`tojson` cannot write {}", other.kind()))),
        }
    }

    fn json_group<T>(
        &mut self,
        [open, close]: [&str; 2],
        parts: &[T],
        indent: Option<usize>,
        depth: usize,
        mut write: impl FnMut(&mut Self, &T) -> Result<()>,
    ) -> Result<()> {
        self.push(open)?;
        for (n, part) in parts.iter().enumerate() {
            let comma = if indent.is_some() { "," } else { ", " };
            self.push(if n == 0 { "" } else { comma })?;
            self.json_line(indent, depth + 1)?;
            write(self, part)?;
        }
        if !parts.is_empty() {
            self.json_line(indent, depth)?;
        }
        self.push(close)
    }

    fn json_line(&mut self, indent: Option<usize>, depth: usize) -> Result<()> {
        let Some(indent) = indent else { return Ok(()) };
        self.push("\n")?;
        self.repeat(' ', indent.saturating_mul(depth))
    }

    fn json_string(&mut self, text: &str) -> Result<()> {
        self.push("\"")?;
        self.escaped(text, |c| match c {
            '"' => Some("\\\"".into()),
            '\\' => Some("\\\\".into()),
            '\n' => Some("\\n".into()),
            '\r' => Some("\\r".into()),
            '\t' => Some("\\t".into()),
            '\u{8}' => Some("\\b".into()),
            '\u{c}' => Some("\\f".into()),
            c if c < ' ' => Some(format!("\\u{:04x}", u32::from(c))),
            _ => None,
        })?;
        self.push("\"")
    }
}

/// A number as Python prints it: the shortest digits that read back, with an exponent from 1e16 on and below 1e-4.
pub(super) fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan".into()
        } else if x > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if x != 0.0 && !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ if x.fract() == 0.0 => format!("{x:.1}"),
        _ => x.to_string(),
    }
}
