//! Jinja's tests: `value is test`.

use super::arguments::{Arguments, int};
use super::ast::{BinaryOp, CompareOp};
use super::budget::Budget;
use super::operators::{binary, compare};
use super::value::Value;
use super::{Failure, Result};

/// `value is name(args)`.
pub(super) fn apply(budget: &Budget, value: &Value, args: Arguments) -> Result<bool> {
    let name = args.name.clone();
    if let Some(op) = comparison(&name) {
        let [other] = args.bind(["other"])?;
        return compare(budget, op, value, &other.unwrap_or(Value::Undefined));
    }
    let [argument] = args.bind(["num"])?;
    let remainder = |divisor: i64| {
        Ok(int(&binary(budget, BinaryOp::Modulo, &Value::Int(int(value)?), &Value::Int(divisor))?)? == 0)
    };
    Ok(match &*name {
        "defined" => !matches!(value, Value::Undefined),
        "undefined" => matches!(value, Value::Undefined),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "string" => matches!(value, Value::Str(_)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.float().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" | "iterable" => matches!(value, Value::Undefined | Value::Str(_) | Value::List(_) | Value::Dict(_)),
        "callable" => matches!(value, Value::Macro(_) | Value::Function(_)),
        "odd" => !remainder(2)?,
        "even" => remainder(2)?,
        "divisibleby" => remainder(int(&argument.unwrap_or(Value::Undefined))?)?,
        "lower" => cased(budget, value, char::is_uppercase, char::is_lowercase)?,
        "upper" => cased(budget, value, char::is_lowercase, char::is_uppercase)?,
        "sameas" => same(value, &argument.unwrap_or(Value::Undefined)),
        other => return Err(Failure::new(format!("the test `is {other}` is not supported in chat templates"))),
    })
}

fn comparison(name: &str) -> Option<CompareOp> {
    Some(match name {
        "eq" | "equalto" | "==" => CompareOp::Equal,
        "ne" | "!=" => CompareOp::NotEqual,
        "lt" | "lessthan" | "<" => CompareOp::Less,
        "le" | "<=" => CompareOp::LessEqual,
        "gt" | "greaterthan" | ">" => CompareOp::Greater,
        "ge" | ">=" => CompareOp::GreaterEqual,
        "in" => CompareOp::In,
        _ => return None,
    })
}

/// Whether a text has letters of one case only.
pub(super) fn cased(budget: &Budget, value: &Value, without: fn(char) -> bool, with: fn(char) -> bool) -> Result<bool> {
    let text = value.str().unwrap_or_default();
    budget.steps(text.len() / 8)?;
    Ok(!text.chars().any(without) && text.chars().any(with))
}

/// Python's `is` for what has one identity; texts and lists are the same if they are one object.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => std::sync::Arc::ptr_eq(a, b),
        (Value::List(a), Value::List(b)) => std::sync::Arc::ptr_eq(a, b),
        _ => false,
    }
}
