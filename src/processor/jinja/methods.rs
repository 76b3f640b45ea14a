//! Methods of Python's strings, lists and dictionaries.

use super::arguments::{Arguments, int, text};
use super::budget::Budget;
use super::filters::{self, join};
use super::operators::equal;
use super::predicates::cased;
use super::text::Writer;
use super::value::Value;
use super::{Failure, Result};

/// `value.name(args)`.
pub(super) fn call(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    match value {
        Value::Str(receiver) => of_string(budget, value, receiver, args),
        Value::Dict(_) => of_dict(budget, value, args),
        Value::List(_) => of_list(budget, value.items().unwrap_or_default(), args),
        Value::Undefined => Err(Failure::new(format!("calls `{}` of an undefined value", args.name))),
        other => unknown(other.kind(), &args),
    }
}

fn unknown(kind: &str, args: &Arguments) -> Result<Value> {
    Err(Failure::new(format!("{kind} has no method `{}` in chat templates", args.name)))
}

fn of_string(budget: &Budget, value: &Value, receiver: &str, args: Arguments) -> Result<Value> {
    let name = args.name.clone();
    budget.read(receiver.len())?;
    match &*name {
        "upper" | "lower" | "title" | "capitalize" => {
            let [] = args.bind([])?;
            filters::change_case(budget, &name, receiver)
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(["chars"])?;
            strip(budget, &name, receiver, chars.as_ref())
        }
        "replace" => filters::replace(budget, receiver, args),
        "split" | "rsplit" => split(budget, receiver, args),
        "splitlines" => split_lines(budget, receiver, args),
        "startswith" | "endswith" => has_affix(budget, receiver, args).map(Value::Bool),
        "removeprefix" | "removesuffix" => remove_affix(budget, receiver, args),
        "find" | "rfind" | "index" | "rindex" | "count" => find(budget, receiver, args).map(Value::Int),
        "format" => super::format::format(budget, receiver, &args),
        "join" => {
            let [items] = args.bind(["iterable"])?;
            join(budget, &items.unwrap_or(Value::Undefined), receiver)
        }
        "islower" => cased(budget, value, char::is_uppercase, char::is_lowercase).map(Value::Bool),
        "isupper" => cased(budget, value, char::is_lowercase, char::is_uppercase).map(Value::Bool),
        "isdigit" | "isnumeric" | "isdecimal" => all(budget, receiver, char::is_numeric),
        "isalpha" => all(budget, receiver, char::is_alphabetic),
        "isalnum" => all(budget, receiver, char::is_alphanumeric),
        "isspace" => all(budget, receiver, char::is_whitespace),
        "isascii" => Ok(receiver.is_ascii().into()),
        _ => unknown("a string", &args),
    }
}

fn all(budget: &Budget, receiver: &str, is: fn(char) -> bool) -> Result<Value> {
    budget.steps(receiver.len() / 8)?;
    Ok((!receiver.is_empty() && receiver.chars().all(is)).into())
}

/// `strip`, `lstrip` and `rstrip`: white space, or the characters of a text.
pub(super) fn strip(budget: &Budget, name: &str, receiver: &str, chars: Option<&Value>) -> Result<Value> {
    let chars = chars.filter(|chars| !matches!(chars, Value::None)).map(text).transpose()?;
    budget.read(receiver.len().saturating_mul(chars.map_or(1, str::len)))?;
    let strips = |c: char| chars.map_or(c.is_whitespace(), |chars| chars.contains(c));
    let left = if name == "rstrip" { receiver } else { receiver.trim_start_matches(strips) };
    let kept = if name == "lstrip" { left } else { left.trim_end_matches(strips) };
    budget.text(kept.len())?;
    Ok(kept.into())
}

fn split(budget: &Budget, receiver: &str, args: Arguments) -> Result<Value> {
    let from_end = &*args.name == "rsplit";
    let [separator, most] = args.bind(["sep", "maxsplit"])?;
    let most = most.as_ref().map(int).transpose()?.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let separator = separator.filter(|separator| !matches!(separator, Value::None));
    let mut pieces = Pieces { budget, pieces: Vec::new() };
    match separator.as_ref().map(text).transpose()? {
        Some("") => return Err(Failure::new("`split` with an empty separator")),
        Some(separator) if from_end => {
            receiver.rsplitn(most.saturating_add(1), separator).try_for_each(|piece| pieces.push(piece))?;
            pieces.pieces.reverse();
        }
        Some(separator) => {
            receiver.splitn(most.saturating_add(1), separator).try_for_each(|piece| pieces.push(piece))?
        }
        None if from_end && most != usize::MAX => return Err(Failure::new("`rsplit` needs a separator here")),
        None => {
            let mut rest = receiver.trim_start();
            while !rest.is_empty() {
                let end = if pieces.pieces.len() < most { rest.find(char::is_whitespace) } else { None };
                pieces.push(&rest[..end.unwrap_or(rest.len())])?;
                rest = end.map_or("", |end| rest[end..].trim_start());
            }
        }
    }
    Value::list(budget, pieces.pieces)
}

/// Texts of a list under construction.
struct Pieces<'b> {
    budget: &'b Budget,
    pieces: Vec<Value>,
}

impl Pieces<'_> {
    fn push(&mut self, piece: &str) -> Result<()> {
        self.budget.values(1)?;
        // An allocation takes more than its bytes.
        self.budget.text(piece.len() + 32)?;
        self.pieces.push(piece.into());
        Ok(())
    }
}

fn split_lines(budget: &Budget, receiver: &str, args: Arguments) -> Result<Value> {
    let [keep_ends] = args.bind(["keepends"])?;
    let keep = keep_ends.is_some_and(|keep| keep.is_true());
    let mut pieces = Pieces { budget, pieces: Vec::new() };
    for line in receiver.split_inclusive('\n') {
        pieces.push(if keep { line } else { line.trim_end_matches('\n').trim_end_matches('\r') })?;
    }
    Value::list(budget, pieces.pieces)
}

fn has_affix(budget: &Budget, receiver: &str, args: Arguments) -> Result<bool> {
    let at_end = &*args.name == "endswith";
    let [affix] = args.bind(["affix"])?;
    let affix = affix.unwrap_or(Value::Undefined);
    let has = |affix: &Value| -> Result<bool> {
        let affix = text(affix)?;
        budget.read(affix.len())?;
        Ok(if at_end { receiver.ends_with(affix) } else { receiver.starts_with(affix) })
    };
    for affix in affix.items().unwrap_or(std::slice::from_ref(&affix)) {
        if has(affix)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove_affix(budget: &Budget, receiver: &str, args: Arguments) -> Result<Value> {
    let at_end = &*args.name == "removesuffix";
    let [affix] = args.bind(["affix"])?;
    let affix = affix.unwrap_or(Value::Undefined);
    let affix = text(&affix)?;
    let kept = if at_end { receiver.strip_suffix(affix) } else { receiver.strip_prefix(affix) };
    budget.text(receiver.len())?;
    Ok(kept.unwrap_or(receiver).into())
}

/// Where a text stands, in characters, or how often.
fn find(budget: &Budget, receiver: &str, args: Arguments) -> Result<i64> {
    let name = args.name.clone();
    let [part] = args.bind(["sub"])?;
    let part = part.unwrap_or(Value::Undefined);
    let part = text(&part)?;
    budget.steps(receiver.len() / 8)?;
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let found = match &*name {
        "count" => return Ok(count(receiver.matches(part).count())),
        "rfind" | "rindex" => receiver.rfind(part),
        _ => receiver.find(part),
    };
    match found {
        Some(at) => Ok(count(receiver[..at].chars().count())),
        None if name.ends_with("find") => Ok(-1),
        None => Err(Failure::new(format!("`{name}` does not find its text"))),
    }
}

fn of_dict(budget: &Budget, value: &Value, args: Arguments) -> Result<Value> {
    let name = args.name.clone();
    let pairs = value.pairs().unwrap_or_default();
    if &*name == "get" {
        let [key, default] = args.bind(["key", "default"])?;
        let found = value.get(budget, &key.unwrap_or(Value::Undefined))?;
        return Ok(if matches!(found, Value::Undefined) { default.unwrap_or(Value::None) } else { found });
    }
    budget.values(pairs.len())?;
    match &*name {
        "keys" => Value::list(budget, pairs.iter().map(|(key, _)| key.clone()).collect()),
        "values" => Value::list(budget, pairs.iter().map(|(_, value)| value.clone()).collect()),
        "items" => filters::items(budget, value),
        _ => unknown("a mapping", &args),
    }
}

fn of_list(budget: &Budget, items: &[Value], args: Arguments) -> Result<Value> {
    let name = args.name.clone();
    if !matches!(&*name, "count" | "index") {
        return unknown("a list", &args);
    }
    let [wanted] = args.bind(["value"])?;
    let wanted = wanted.unwrap_or(Value::Undefined);
    let mut count = 0;
    for (n, item) in items.iter().enumerate() {
        if equal(budget, item, &wanted)? {
            count += 1;
            if &*name == "index" {
                return Ok(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)));
            }
        }
    }
    if &*name == "index" { Err(Failure::new("`index` does not find its value")) } else { Ok(Value::Int(count)) }
}

/// Text made by appending to a writer.
pub(super) fn written(budget: &Budget, write: impl FnOnce(&mut Writer) -> Result<()>) -> Result<Value> {
    let mut writer = Writer::new(budget);
    write(&mut writer)?;
    Ok(writer.text.into())
}
