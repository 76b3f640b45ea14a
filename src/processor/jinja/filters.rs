//! Jinja's filters: `value | filter(args)`.

use std::cmp::Ordering;
use std::sync::Arc;

use super::arguments::{Arguments, int, text};
use super::ast::BinaryOp;
use super::budget::Budget;
use super::methods::{strip, written};
use super::operators::{any_equal, binary, item, order};
use super::text::to_text;
use super::value::Value;
use super::{Failure, Result, predicates};

/// `value | name(args)`.
pub(super) fn apply(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    let _level = budget.enter()?;
    let name = args.name.clone();
    match &*name {
        "upper" | "lower" | "title" | "capitalize" => {
            let [] = args.bind([])?;
            change_case(budget, &name, &to_text(budget, value)?)
        }
        "trim" => {
            let [chars] = args.bind(["chars"])?;
            strip(budget, "strip", &to_text(budget, value)?, chars.as_ref())
        }
        "replace" => replace(budget, &to_text(budget, value)?, args),
        "escape" | "e" => escape(budget, value),
        "indent" => indent(budget, &to_text(budget, value)?, args),
        "format" => super::format::percent(budget, &to_text(budget, value)?, &Value::list(budget, args.positional)?),
        "wordcount" => {
            let text = to_text(budget, value)?;
            budget.steps(text.len() / 8)?;
            length(text.split_whitespace().count())
        }
        "string" => to_text(budget, value).map(Value::Str),
        "safe" => Ok(value.clone()),
        "tojson" => tojson(budget, value, args),
        "int" | "float" | "abs" | "round" => number(budget, value, args),
        "default" | "d" => default(value, args),
        _ => of_items(budget, value, args),
    }
}

/// Filters of lists, and of what can be read as one.
fn of_items(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    let name = args.name.clone();
    match &*name {
        "length" | "count" => count(budget, value),
        "first" => item(budget, &as_list(budget, value)?, &Value::Int(0)),
        "last" => item(budget, &as_list(budget, value)?, &Value::Int(-1)),
        "list" => as_list(budget, value),
        "items" => items(budget, value),
        "reverse" => match value {
            Value::Str(text) => {
                budget.text(text.len())?;
                Ok(text.chars().rev().collect::<String>().into())
            }
            value => Value::list(budget, elements(budget, value)?.into_iter().rev().collect()),
        },
        "join" => {
            let [separator, attribute] = args.bind(["d", "attribute"])?;
            let values = attribute_of_each(budget, elements(budget, value)?, attribute.as_ref())?;
            join(budget, &Value::list(budget, values)?, &to_text(budget, &separator.unwrap_or("".into()))?)
        }
        "sum" => {
            let [attribute, start] = args.bind(["attribute", "start"])?;
            let values = attribute_of_each(budget, elements(budget, value)?, attribute.as_ref())?;
            values
                .iter()
                .try_fold(start.unwrap_or(Value::Int(0)), |sum, value| binary(budget, BinaryOp::Add, &sum, value))
        }
        "min" | "max" | "sort" | "unique" => ordered(budget, value, args),
        "dictsort" => dictsort(budget, value, args),
        "map" => map(budget, value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(budget, value, args),
        other => Err(Failure::new(format!("the filter `{other}` is not supported in chat templates"))),
    }
}

// --- texts ------------------------------------------------------------------------------------------------------

/// `upper`, `lower`, `title` and `capitalize`.
pub(super) fn change_case(budget: &Budget, name: &str, receiver: &str) -> Result<Value> {
    // Some letters have longer ones in the other case, of three times their bytes at most.
    budget.text(receiver.len().saturating_mul(3))?;
    budget.steps(receiver.len() / 8)?;
    Ok(match name {
        "upper" => receiver.to_uppercase(),
        "lower" => receiver.to_lowercase(),
        "capitalize" => {
            let mut chars = receiver.chars();
            let first: String = chars.by_ref().take(1).flat_map(char::to_uppercase).collect();
            first + &chars.as_str().to_lowercase()
        }
        _ => {
            let mut begins = true;
            let mut title = String::with_capacity(receiver.len());
            for c in receiver.chars() {
                if begins {
                    title.extend(c.to_uppercase())
                } else {
                    title.extend(c.to_lowercase())
                }
                begins = !c.is_alphanumeric() && c != '\'';
            }
            title
        }
    }
    .into())
}

/// `replace(old, new, count)`.
pub(super) fn replace(budget: &Budget, receiver: &str, args: Arguments) -> Result<Value> {
    let [old, new, count] = args.bind(["old", "new", "count"])?;
    let (old, new) = (old.unwrap_or(Value::Undefined), new.unwrap_or(Value::Undefined));
    let (old, new) = (text(&old)?, text(&new)?);
    let count = count.filter(|count| !matches!(count, Value::None)).as_ref().map(int).transpose()?;
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    budget.steps(receiver.len() / 8)?;
    let places = receiver.matches(old).count().min(count);
    budget.text(receiver.len().saturating_add(places.saturating_mul(new.len())))?;
    Ok(receiver.replacen(old, new, count).into())
}

fn escape(budget: &Budget, value: &Value) -> Result<Value> {
    let text = to_text(budget, value)?;
    written(budget, |writer| {
        writer.escaped(&text, |c| {
            let escaped = match c {
                '&' => "&amp;",
                '<' => "&lt;",
                '>' => "&gt;",
                '"' => "&#34;",
                '\'' => "&#39;",
                _ => return None,
            };
            Some(escaped.into())
        })
    })
}

/// `indent(width, first, blank)`.
fn indent(budget: &Budget, receiver: &str, args: Arguments) -> Result<Value> {
    let [width, first, blank] = args.bind(["width", "first", "blank"])?;
    let [first, blank] = [first, blank].map(|flag| flag.is_some_and(|flag| flag.is_true()));
    let width = width.unwrap_or(Value::Int(4));
    let count = width.int().map(|width| usize::try_from(width).unwrap_or(0));
    written(budget, |writer| {
        for (n, line) in receiver.split('\n').enumerate() {
            writer.push(if n == 0 { "" } else { "\n" })?;
            if if n == 0 { first } else { blank || !line.is_empty() } {
                match count {
                    Some(count) => writer.repeat(' ', count)?,
                    None => writer.push(text(&width)?)?,
                }
            }
            writer.push(line)?;
        }
        Ok(())
    })
}

/// `tojson`, as HF has it: no escapes for HTML, characters outside of ASCII as they are, keys in their own order.
fn tojson(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    // Jinja's own first parameter is `indent`, HF's is `ensure_ascii`.
    let jinja = matches!(args.positional.first(), Some(Value::Int(_)));
    let names = if jinja {
        ["indent", "ensure_ascii", "separators", "sort_keys"]
    } else {
        ["ensure_ascii", "indent", "separators", "sort_keys"]
    };
    let [first, second, separators, sort_keys] = args.bind(names)?;
    let (indent, ensure_ascii) = if jinja { (first, second) } else { (second, first) };
    for (name, given) in [("ensure_ascii", ensure_ascii), ("separators", separators), ("sort_keys", sort_keys)] {
        if given.is_some_and(|given| given.is_true()) {
            return Err(Failure::new(format!("`tojson` with `{name}` is not supported in chat templates")));
        }
    }
    let indent = indent.filter(|indent| !matches!(indent, Value::None)).as_ref().map(int).transpose()?;
    let indent = indent.map(|indent| usize::try_from(indent).unwrap_or(0));
    written(budget, |writer| writer.json(value, indent, 0))
}

/// The texts of a list's items, with a separator between.
pub(super) fn join(budget: &Budget, list: &Value, separator: &str) -> Result<Value> {
    let items = elements(budget, list)?;
    written(budget, |writer| {
        for (n, item) in items.iter().enumerate() {
            writer.push(if n == 0 { "" } else { separator })?;
            writer.value(item, false)?;
        }
        Ok(())
    })
}

// --- numbers and defaults ---------------------------------------------------------------------------------------

fn number(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    let name = args.name.clone();
    let [argument, _] = args.bind([if &*name == "round" { "precision" } else { "default" }, "base"])?;
    let parsed = value.str().map(str::trim);
    budget.read(parsed.map_or(0, str::len))?;
    let float = value.float().or_else(|| parsed?.parse().ok());
    match &*name {
        "abs" if value.int().is_some_and(|n| n != i64::MIN) => Ok(Value::Int(value.int().unwrap_or_default().abs())),
        "abs" => float.map(|x| Value::Float(x.abs())).ok_or_else(|| Failure::new("`abs` needs a number")),
        "int" => {
            let int = value.int().or_else(|| parsed?.parse().ok()).or_else(|| float.map(|x| x as i64));
            Ok(int.map_or_else(|| argument.unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => Ok(float.map_or_else(|| argument.unwrap_or(Value::Float(0.0)), Value::Float)),
        _ => {
            if value.int().is_some() {
                return Ok(value.clone());
            }
            let float = float.ok_or_else(|| Failure::new("`round` needs a number"))?;
            let digits = argument.as_ref().map(int).transpose()?.unwrap_or(0).clamp(0, 15);
            // The digits that Python would print, ties to even.
            Ok(Value::Float(format!("{float:.*}", usize::try_from(digits).unwrap_or(0)).parse().unwrap_or(float)))
        }
    }
}

fn default(value: &Value, args: Arguments) -> Result<Value> {
    let [default, boolean] = args.bind(["default_value", "boolean"])?;
    let replaces_false = boolean.is_some_and(|boolean| boolean.is_true());
    let replaced = matches!(value, Value::Undefined) || replaces_false && !value.is_true();
    Ok(if replaced { default.unwrap_or("".into()) } else { value.clone() })
}

// --- lists ------------------------------------------------------------------------------------------------------

/// What iterating over a value gives: items of a list, characters of a string, keys of a dictionary.
pub(super) fn elements(budget: &Budget, value: &Value) -> Result<Vec<Value>> {
    match value {
        Value::Undefined => Ok(vec![]),
        Value::List(_) => {
            let items = value.items().unwrap_or_default();
            budget.values(items.len())?;
            Ok(items.to_vec())
        }
        Value::Dict(_) => {
            let pairs = value.pairs().unwrap_or_default();
            budget.values(pairs.len())?;
            Ok(pairs.iter().map(|(key, _)| key.clone()).collect())
        }
        Value::Str(text) => {
            // Each character is a text of its own.
            budget.values(text.len().saturating_mul(2))?;
            Ok(text.chars().map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str)).collect())
        }
        other => Err(Failure::new(format!("cannot iterate over {}", other.kind()))),
    }
}

fn as_list(budget: &Budget, value: &Value) -> Result<Value> {
    match value {
        Value::List(_) => Ok(value.clone()),
        value => Value::list(budget, elements(budget, value)?),
    }
}

fn length(count: usize) -> Result<Value> {
    Ok(Value::Int(i64::try_from(count).unwrap_or(i64::MAX)))
}

fn count(budget: &Budget, value: &Value) -> Result<Value> {
    match value {
        Value::Str(text) => {
            budget.read(text.len())?;
            length(text.chars().count())
        }
        Value::Undefined => length(0),
        value => match (value.items(), value.pairs()) {
            (Some(items), _) => length(items.len()),
            (_, Some(pairs)) => length(pairs.len()),
            _ => Err(Failure::new(format!("{} has no length", value.kind()))),
        },
    }
}

/// Keys and values of a dictionary as a list of pairs.
pub(super) fn items(budget: &Budget, value: &Value) -> Result<Value> {
    let pairs = match value {
        Value::Undefined => &[],
        value => {
            value.pairs().ok_or_else(|| Failure::new(format!("`items` needs a mapping, found {}", value.kind())))?
        }
    };
    let pairs = pairs.iter().map(|(key, value)| Value::list(budget, vec![key.clone(), value.clone()]));
    let pairs = pairs.collect::<Result<_>>()?;
    Value::list(budget, pairs)
}

/// `a.b.0` of a value, as filters take it.
fn attribute(budget: &Budget, value: &Value, path: &Value) -> Result<Value> {
    let Some(path) = path.str() else { return item(budget, value, path) };
    path.split('.').try_fold(value.clone(), |value, part| match part.parse() {
        Ok(index) => item(budget, &value, &Value::Int(index)),
        Err(_) if matches!(value, Value::Undefined) => Ok(Value::Undefined),
        Err(_) => item(budget, &value, &part.into()),
    })
}

fn attribute_of_each(budget: &Budget, values: Vec<Value>, path: Option<&Value>) -> Result<Vec<Value>> {
    match path {
        Some(path) => values.iter().map(|value| attribute(budget, value, path)).collect(),
        None => Ok(values),
    }
}

fn map(budget: &Budget, value: &Value, mut args: Arguments) -> Result<Value> {
    let values = elements(budget, value)?;
    if args.positional.is_empty() {
        let [path, default] = args.bind(["attribute", "default"])?;
        let path = path.ok_or_else(|| Failure::new("`map` needs a filter or `attribute`"))?;
        let found = values.iter().map(|value| match (attribute(budget, value, &path)?, &default) {
            (Value::Undefined, Some(default)) => Ok(default.clone()),
            (found, _) => Ok(found),
        });
        let found = found.collect::<Result<_>>()?;
        return Value::list(budget, found);
    }
    let filter = Arc::from(text(&args.positional.remove(0))?);
    let mapped = values.iter().map(|value| apply(budget, value, args.again(budget, &filter)?));
    let mapped = mapped.collect::<Result<_>>()?;
    Value::list(budget, mapped)
}

/// `select`, `reject`, `selectattr` and `rejectattr`.
fn select(budget: &Budget, value: &Value, mut args: Arguments) -> Result<Value> {
    let rejects = args.name.starts_with("reject");
    let taken = |args: &mut Arguments| if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    let path = if args.name.ends_with("attr") { taken(&mut args) } else { None };
    let test = taken(&mut args);
    let test = test.as_ref().map(text).transpose()?.map(Arc::from);
    let mut kept = Vec::new();
    for value in elements(budget, value)? {
        let tested = path.as_ref().map_or(Ok(value.clone()), |path| attribute(budget, &value, path))?;
        let passes = match &test {
            Some(test) => predicates::apply(budget, &tested, args.again(budget, test)?)?,
            None => tested.is_true(),
        };
        if passes != rejects {
            kept.push(value);
        }
    }
    Value::list(budget, kept)
}

/// `min`, `max`, `sort` and `unique`, which ignore the case of strings unless `case_sensitive`.
fn ordered(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    let name = args.name.clone();
    let (reverse, sensitive, path) = if &*name == "sort" {
        let [reverse, sensitive, path] = args.bind(["reverse", "case_sensitive", "attribute"])?;
        (reverse.is_some_and(|reverse| reverse.is_true()), sensitive, path)
    } else {
        let [sensitive, path] = args.bind(["case_sensitive", "attribute"])?;
        (false, sensitive, path)
    };
    let values = elements(budget, value)?;
    let mut keyed = Vec::with_capacity(values.len());
    for value in values {
        let key = path.as_ref().map_or(Ok(value.clone()), |path| attribute(budget, &value, path))?;
        keyed.push((folded(budget, key, sensitive.as_ref())?, value));
    }
    if &*name == "unique" {
        return unique(budget, keyed);
    }
    let mut values = sort(budget, keyed, reverse)?.into_iter().map(|(_, value)| value);
    match &*name {
        "min" => Ok(values.next().unwrap_or(Value::Undefined)),
        "max" => Ok(values.next_back().unwrap_or(Value::Undefined)),
        _ => Value::list(budget, values.collect()),
    }
}

fn folded(budget: &Budget, key: Value, sensitive: Option<&Value>) -> Result<Value> {
    match &key {
        Value::Str(text) if !sensitive.is_some_and(Value::is_true) => change_case(budget, "lower", text),
        _ => Ok(key),
    }
}

/// A value after the key that it is ordered by.
type Keyed = (Value, Value);

/// Sorts by key with a merge sort, stable in both directions. A sort of the standard library may panic at keys without a
/// total order (NaN, or integers beside floats), and cannot end at the first pair that has no order.
fn sort(budget: &Budget, mut left: Vec<Keyed>, reverse: bool) -> Result<Vec<Keyed>> {
    if left.len() < 2 {
        return Ok(left);
    }
    let right = left.split_off(left.len() / 2);
    merge(budget, sort(budget, left, reverse)?, sort(budget, right, reverse)?, reverse)
}

/// Merges two sorted lists; among keys without an order, those of the first list stay in front.
fn merge(budget: &Budget, left: Vec<Keyed>, right: Vec<Keyed>, reverse: bool) -> Result<Vec<Keyed>> {
    budget.steps(left.len() + right.len())?;
    let goes_first = if reverse { Ordering::Greater } else { Ordering::Less };
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some((a, _)), Some((b, _))) = (left.peek(), right.peek()) {
        let takes_right = order(budget, b, a)? == Some(goes_first);
        merged.extend(if takes_right { right.next() } else { left.next() });
    }
    merged.extend(left.chain(right));
    Ok(merged)
}

fn unique(budget: &Budget, keyed: Vec<Keyed>) -> Result<Value> {
    let mut kept: Vec<Keyed> = Vec::new();
    for (key, value) in keyed {
        if !any_equal(budget, kept.iter().map(|(other, _)| other), &key)? {
            kept.push((key, value));
        }
    }
    Value::list(budget, kept.into_iter().map(|(_, value)| value).collect())
}

fn dictsort(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    let [sensitive, by, reverse] = args.bind(["case_sensitive", "by", "reverse"])?;
    let by_value = by.is_some_and(|by| by.str() == Some("value"));
    let mut keyed = Vec::new();
    for pair in elements(budget, &items(budget, value)?)? {
        let key = item(budget, &pair, &Value::Int(i64::from(by_value)))?;
        keyed.push((folded(budget, key, sensitive.as_ref())?, pair));
    }
    let sorted = sort(budget, keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
    Value::list(budget, sorted.into_iter().map(|(_, pair)| pair).collect())
}
