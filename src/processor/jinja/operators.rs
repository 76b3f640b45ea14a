//! Operators on values, each charged by the size of its operands.

use std::cmp::Ordering;

use super::arguments::int;
use super::ast::{BinaryOp, CompareOp};
use super::budget::Budget;
use super::text::{Writer, to_text};
use super::value::Value;
use super::{Failure, Result};

/// `left op right`.
pub(super) fn binary(budget: &Budget, op: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    match (op, left, right) {
        (BinaryOp::Concat, ..) => concat(budget, &to_text(budget, left)?, &to_text(budget, right)?),
        (BinaryOp::Add, Value::Str(left), Value::Str(right)) => concat(budget, left, right),
        (BinaryOp::Add, Value::List(_), Value::List(_)) => add_lists(budget, left, right),
        (BinaryOp::Multiply, Value::Str(text), count) | (BinaryOp::Multiply, count, Value::Str(text)) => {
            repeat(budget, text, int(count)?)
        }
        (BinaryOp::Multiply, Value::List(_), count) => {
            repeat_list(budget, left.items().unwrap_or_default(), int(count)?)
        }
        (BinaryOp::Multiply, count, Value::List(_)) => {
            repeat_list(budget, right.items().unwrap_or_default(), int(count)?)
        }
        (BinaryOp::Modulo, Value::Str(text), _) => super::format::percent(budget, text, right),
        _ => arithmetic(op, left, right),
    }
}

fn concat(budget: &Budget, left: &str, right: &str) -> Result<Value> {
    budget.text(left.len() + right.len())?;
    Ok([left, right].concat().into())
}

fn add_lists(budget: &Budget, left: &Value, right: &Value) -> Result<Value> {
    let (left, right) = (left.items().unwrap_or_default(), right.items().unwrap_or_default());
    budget.values(left.len() + right.len())?;
    Value::list(budget, [left, right].concat())
}

fn repeat(budget: &Budget, text: &str, count: i64) -> Result<Value> {
    let count = usize::try_from(count).unwrap_or(0);
    budget.text(text.len().saturating_mul(count))?;
    Ok(text.repeat(count).into())
}

fn repeat_list(budget: &Budget, items: &[Value], count: i64) -> Result<Value> {
    let count = usize::try_from(count).unwrap_or(0);
    budget.values(items.len().saturating_mul(count))?;
    Value::list(budget, items.iter().cloned().cycle().take(items.len() * count).collect())
}

fn arithmetic(op: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (left.int(), right.int())
        && op != BinaryOp::Divide
        && !(op == BinaryOp::Power && b < 0)
    {
        return integers(op, a, b).map(Value::Int);
    }
    let (Some(a), Some(b)) = (left.float(), right.float()) else {
        let message = format!("cannot calculate with {} and {}", left.kind(), right.kind());
        return Err(Failure::new(message));
    };
    if b == 0.0 && matches!(op, BinaryOp::Divide | BinaryOp::FloorDivide | BinaryOp::Modulo) {
        return Err(Failure::new("divides by zero"));
    }
    Ok(Value::Float(match op {
        BinaryOp::Add | BinaryOp::Concat => a + b,
        BinaryOp::Subtract => a - b,
        BinaryOp::Multiply => a * b,
        BinaryOp::Divide => a / b,
        BinaryOp::FloorDivide => (a / b).floor(),
        BinaryOp::Modulo => a - b * (a / b).floor(),
        BinaryOp::Power => a.powf(b),
    }))
}

fn integers(op: BinaryOp, a: i64, b: i64) -> Result<i64> {
    if b == 0 && matches!(op, BinaryOp::FloorDivide | BinaryOp::Modulo) {
        return Err(Failure::new("divides by zero"));
    }
    let result = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Subtract => a.checked_sub(b),
        BinaryOp::Multiply => a.checked_mul(b),
        BinaryOp::FloorDivide => floor_divide(a, b),
        BinaryOp::Modulo => floor_divide(a, b).and_then(|quotient| a.checked_sub(quotient.checked_mul(b)?)),
        BinaryOp::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        BinaryOp::Divide | BinaryOp::Concat => None,
    };
    result.ok_or_else(|| Failure::new("calculates a number outside of 64 bits"))
}

/// Division rounded down, as in Python.
fn floor_divide(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    let rounds_up = a % b != 0 && (a < 0) != (b < 0);
    Some(quotient - i64::from(rounds_up))
}

/// `-value`.
pub(super) fn negative(value: &Value) -> Result<Value> {
    arithmetic(BinaryOp::Multiply, &Value::Int(-1), value)
}

/// `left op right` as a boolean.
pub(super) fn compare(budget: &Budget, op: CompareOp, left: &Value, right: &Value) -> Result<bool> {
    Ok(match op {
        CompareOp::Equal => equal(budget, left, right)?,
        CompareOp::NotEqual => !equal(budget, left, right)?,
        CompareOp::Less => order(budget, left, right)? == Some(Ordering::Less),
        CompareOp::LessEqual => matches!(order(budget, left, right)?, Some(Ordering::Less | Ordering::Equal)),
        CompareOp::Greater => order(budget, left, right)? == Some(Ordering::Greater),
        CompareOp::GreaterEqual => matches!(order(budget, left, right)?, Some(Ordering::Greater | Ordering::Equal)),
        CompareOp::In => contains(budget, right, left)?,
        CompareOp::NotIn => !contains(budget, right, left)?,
    })
}

/// Whether two values are equal; lists and dictionaries by their parts.
pub(super) fn equal(budget: &Budget, left: &Value, right: &Value) -> Result<bool> {
    let _level = budget.enter()?;
    match (left, right) {
        (Value::Undefined, Value::Undefined) | (Value::None, Value::None) => Ok(true),
        (Value::Str(a), Value::Str(b)) => {
            budget.read(a.len().min(b.len()))?;
            Ok(a == b)
        }
        (Value::Namespace(a), Value::Namespace(b)) => Ok(a == b),
        (Value::List(_), Value::List(_)) => {
            let (a, b) = (left.items().unwrap_or_default(), right.items().unwrap_or_default());
            all_equal(a.len() == b.len(), a.iter().zip(b), |(a, b)| equal(budget, a, b))
        }
        (Value::Dict(_), Value::Dict(_)) => {
            let (a, b) = (left.pairs().unwrap_or_default(), right.pairs().unwrap_or_default());
            all_equal(a.len() == b.len(), a.iter(), |(key, value)| equal(budget, value, &right.get(budget, key)?))
        }
        (a, b) => Ok(match (a.int().zip(b.int()), a.float().zip(b.float())) {
            (Some((a, b)), _) => a == b,
            (_, Some((a, b))) => a == b,
            _ => false,
        }),
    }
}

/// Whether all parts are equal, looking no further than the first that is not.
fn all_equal<T>(same_length: bool, parts: impl Iterator<Item = T>, equal: impl Fn(T) -> Result<bool>) -> Result<bool> {
    if !same_length {
        return Ok(false);
    }
    for part in parts {
        if !equal(part)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether any of the values equals `wanted`, looking no further than the first that does.
pub(super) fn any_equal<'v>(
    budget: &Budget,
    values: impl IntoIterator<Item = &'v Value>,
    wanted: &Value,
) -> Result<bool> {
    for value in values {
        if equal(budget, value, wanted)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The order of two values, none for NaN.
pub(super) fn order(budget: &Budget, left: &Value, right: &Value) -> Result<Option<Ordering>> {
    let _level = budget.enter()?;
    match (left, right) {
        (Value::Str(a), Value::Str(b)) => {
            budget.read(a.len().min(b.len()))?;
            Ok(Some(a.cmp(b)))
        }
        (Value::List(_), Value::List(_)) => {
            let (a, b) = (left.items().unwrap_or_default(), right.items().unwrap_or_default());
            for (a, b) in a.iter().zip(b) {
                if !equal(budget, a, b)? {
                    return order(budget, a, b);
                }
            }
            Ok(Some(a.len().cmp(&b.len())))
        }
        (a, b) => match (a.int().zip(b.int()), a.float().zip(b.float())) {
            (Some((a, b)), _) => Ok(Some(a.cmp(&b))),
            (_, Some((a, b))) => Ok(a.partial_cmp(&b)),
            _ => Err(Failure::new(format!("cannot compare {} with {}", left.kind(), right.kind()))),
        },
    }
}

/// `part in whole`.
pub(super) fn contains(budget: &Budget, whole: &Value, part: &Value) -> Result<bool> {
    match (whole, part) {
        (Value::Str(whole), Value::Str(part)) => {
            budget.read(whole.len())?;
            Ok(whole.contains(&**part))
        }
        (Value::List(_), part) => any_equal(budget, whole.items().unwrap_or_default(), part),
        (Value::Dict(_), key) => Ok(!matches!(whole.get(budget, key)?, Value::Undefined)),
        (Value::Undefined, _) => Ok(false),
        (whole, part) => Err(Failure::new(format!("cannot look for {} in {}", part.kind(), whole.kind()))),
    }
}

/// `whole[index]`.
pub(super) fn item(budget: &Budget, whole: &Value, index: &Value) -> Result<Value> {
    let found = match (whole, index) {
        (Value::Undefined, _) => return Err(Failure::new("takes a part of an undefined value")),
        (Value::Dict(_), key) => return whole.get(budget, key),
        (Value::List(_), Value::Int(n)) => {
            let items = whole.items().unwrap_or_default();
            place(*n, items.len()).and_then(|at| items.get(at)).cloned()
        }
        (Value::Str(text), Value::Int(n)) => {
            budget.read(text.len())?;
            let at = place(*n, if *n < 0 { text.chars().count() } else { text.len() });
            at.and_then(|at| text.chars().nth(at)).map(|c| c.to_string().into())
        }
        _ => None,
    };
    Ok(found.unwrap_or(Value::Undefined))
}

/// The place of an index that may count from the end.
fn place(index: i64, length: usize) -> Option<usize> {
    let from_end = if index < 0 { i64::try_from(length).ok()? } else { 0 };
    usize::try_from(index.checked_add(from_end)?).ok()
}

/// `whole[start:stop:step]`.
pub(super) fn slice(budget: &Budget, whole: &Value, [start, stop, step]: [Option<i64>; 3]) -> Result<Value> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Failure::new("slices with a step of 0"));
    }
    match whole {
        Value::Str(text) => {
            budget.read(text.len())?;
            let ascii = text.is_ascii();
            let length = if ascii { text.len() } else { text.chars().count() };
            let (from, count) = slice_bounds(start, stop, step, length);
            let mut writer = Writer::new(budget);
            if step == 1 {
                let byte =
                    |n: usize| if ascii { n } else { text.char_indices().nth(n).map_or(text.len(), |(at, _)| at) };
                writer.push(&text[byte(from)..byte(from + count)])?;
            } else {
                budget.steps(length)?;
                let chars: Vec<char> = text.chars().collect();
                budget.values(chars.len() / 4)?;
                picks(from, step, count).filter_map(|at| chars.get(at)).try_for_each(|c| writer.repeat(*c, 1))?;
            }
            Ok(writer.text.into())
        }
        Value::List(_) => {
            let items = whole.items().unwrap_or_default();
            let (from, count) = slice_bounds(start, stop, step, items.len());
            budget.values(count)?;
            Value::list(budget, picks(from, step, count).filter_map(|at| items.get(at)).cloned().collect())
        }
        Value::Undefined => Value::list(budget, vec![]),
        other => Err(Failure::new(format!("cannot slice {}", other.kind()))),
    }
}

/// Python's first index of a slice and the number of its items.
fn slice_bounds(start: Option<i64>, stop: Option<i64>, step: i64, length: usize) -> (usize, usize) {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |given: Option<i64>, default: i64| match given {
        None => default,
        Some(n) if n < 0 => n.saturating_add(length).clamp(low, high),
        Some(n) => n.clamp(low, high),
    };
    let (from, to) =
        if step > 0 { (bound(start, low), bound(stop, high)) } else { (bound(start, high), bound(stop, low)) };
    let distance = if step > 0 { to - from } else { from - to };
    let step = step.unsigned_abs();
    let count = u64::try_from(distance).map_or(0, |distance| distance.div_ceil(step));
    (usize::try_from(from).unwrap_or(0), usize::try_from(count).unwrap_or(0))
}

fn picks(from: usize, step: i64, count: usize) -> impl Iterator<Item = usize> {
    let step = isize::try_from(step).unwrap_or(isize::MAX);
    (0..count).filter_map(move |n| from.checked_add_signed(step.checked_mul(isize::try_from(n).ok()?)?))
}
