//! `str.format` and `%` of Python, in the forms that templates use.

use super::arguments::Arguments;
use super::budget::Budget;
use super::text::{Writer, float, to_text};
use super::value::Value;
use super::{Failure, Result};

/// Fields of `strftime` and their values on 26 July 2024 at noon.
const DATE_FIELDS: [(&str, &str); 24] = [
    ("%%", "%"),
    ("%A", "Friday"),
    ("%a", "Fri"),
    ("%B", "July"),
    ("%b", "Jul"),
    ("%h", "Jul"),
    ("%d", "26"),
    ("%e", "26"),
    ("%-d", "26"),
    ("%m", "07"),
    ("%-m", "7"),
    ("%Y", "2024"),
    ("%y", "24"),
    ("%F", "2024-07-26"),
    ("%j", "208"),
    ("%H", "12"),
    ("%-H", "12"),
    ("%I", "12"),
    ("%-I", "12"),
    ("%p", "PM"),
    ("%M", "00"),
    ("%-M", "0"),
    ("%S", "00"),
    ("%T", "12:00:00"),
];

/// `strftime_now(format)` on a day that stays the same, so that prompts do too: the one that Llama 3.1's template takes
/// where there is no clock.
pub(super) fn strftime(budget: &Budget, format: &str) -> Result<Value> {
    let (mut writer, mut rest) = (Writer::new(budget), format);
    while let Some(at) = rest.find('%') {
        writer.push(&rest[..at])?;
        let known = DATE_FIELDS.iter().find(|(field, _)| rest[at..].starts_with(field));
        let (field, value) = known.ok_or_else(|| Failure::new("`strftime_now` supports dates and times only"))?;
        writer.push(value)?;
        rest = &rest[at + field.len()..];
    }
    writer.push(rest)?;
    Ok(writer.text.into())
}

/// `text % values`: `%s`, `%d`, `%f` and `%%`.
pub(super) fn percent(budget: &Budget, text: &str, values: &Value) -> Result<Value> {
    let single = std::slice::from_ref(values);
    let mut values = values.items().unwrap_or(single).iter();
    let mut writer = Writer::new(budget);
    let mut pieces = text.split('%');
    writer.push(pieces.next().unwrap_or_default())?;
    while let Some(piece) = pieces.next() {
        if piece.is_empty() {
            writer.push("%")?;
            writer.push(pieces.next().unwrap_or_default())?;
            continue;
        }
        let value = values.next().ok_or_else(|| Failure::new("`%` has fewer values than places"))?;
        match (piece.chars().next(), value.int(), value.float()) {
            (Some('s'), ..) => writer.value(value, false)?,
            (Some('d' | 'i'), Some(n), _) => writer.push(&n.to_string())?,
            (Some('d' | 'i'), None, Some(x)) => writer.push(&format!("{x:.0}"))?,
            (Some('f'), _, Some(x)) => writer.push(&format!("{x:.6}"))?,
            _ => return Err(Failure::new("`%` supports `%s`, `%d`, `%f` and `%%` only")),
        }
        writer.push(&piece[1..])?;
    }
    if values.next().is_some() { Err(Failure::new("`%` has more values than places")) } else { Ok(writer.text.into()) }
}

/// `text.format(values)`.
pub(super) fn format(budget: &Budget, text: &str, args: &Arguments) -> Result<Value> {
    let mut writer = Writer::new(budget);
    let (mut rest, mut automatic) = (text, 0);
    while let Some(at) = rest.find(['{', '}']) {
        writer.push(&rest[..at])?;
        let (bracket, after) = rest[at..].split_at(1);
        if let Some(after) = after.strip_prefix(bracket) {
            writer.push(bracket)?;
            rest = after;
            continue;
        }
        let end = after.find('}').filter(|_| bracket == "{");
        let end = end.ok_or_else(|| Failure::new("`format` has a single bracket: write `{{` or `}}`"))?;
        let (name, spec) = after[..end].split_once(':').unwrap_or((&after[..end], ""));
        budget.steps(args.named.len())?;
        write(&mut writer, budget, argument(args, name, &mut automatic)?, spec)?;
        rest = &after[end + 1..];
    }
    writer.push(rest)?;
    Ok(writer.text.into())
}

fn argument<'a>(args: &'a Arguments, name: &str, automatic: &mut usize) -> Result<&'a Value> {
    let index = if name.is_empty() { Some(*automatic) } else { name.parse().ok() };
    *automatic += usize::from(name.is_empty());
    let named = || args.named.iter().find(|(known, _)| **known == *name).map(|(_, value)| value);
    let found = index.map_or_else(named, |index| args.positional.get(index));
    found.ok_or_else(|| Failure::new(format!("`format` has no value `{name}`")))
}

/// A value in the form `[[fill]align][0][width][,][.precision][type]`.
fn write(writer: &mut Writer, budget: &Budget, value: &Value, spec: &str) -> Result<()> {
    let spec = Spec::parse(spec)?;
    let text = match (spec.kind, spec.precision, value) {
        ('d', None, value) if value.int().is_some() => value.int().unwrap_or_default().to_string().into(),
        ('f', precision, value) if value.float().is_some() => {
            budget.text(precision.unwrap_or(6))?;
            format!("{:.*}", precision.unwrap_or(6).min(1000), value.float().unwrap_or_default()).into()
        }
        ('s', None, Value::Float(x)) => float(*x).into(),
        ('s', Some(most), Value::Str(text)) => text.chars().take(most).collect::<String>().into(),
        ('s', None, value) => to_text(budget, value)?,
        _ => return Err(Failure::new(format!("`format` cannot write {} so", value.kind()))),
    };
    let text = match (spec.commas, value.float()) {
        (false, _) => text,
        (true, Some(_)) => with_commas(&text).into(),
        (true, None) => return Err(Failure::new(format!("`format` cannot write {} with commas", value.kind()))),
    };
    budget.read(text.len())?;
    let padding = spec.width.saturating_sub(text.chars().count());
    let before = match spec.align.unwrap_or(if value.float().is_some() { '>' } else { '<' }) {
        '>' => padding,
        '^' => padding / 2,
        _ => 0,
    };
    writer.repeat(spec.fill, before)?;
    writer.push(&text)?;
    writer.repeat(spec.fill, padding - before)
}

/// A number with a comma before each three digits that stand ahead of its point.
fn with_commas(number: &str) -> String {
    let end = number.find('.').unwrap_or(number.len());
    let mut text = String::with_capacity(number.len() + end / 3);
    let mut before = ' ';
    for (at, c) in number.char_indices() {
        if at < end && (end - at).is_multiple_of(3) && before.is_ascii_digit() {
            text.push(',');
        }
        text.push(c);
        before = c;
    }
    text
}

struct Spec {
    fill: char,
    align: Option<char>,
    width: usize,
    /// Whether thousands are separated.
    commas: bool,
    precision: Option<usize>,
    kind: char,
}

impl Spec {
    fn parse(spec: &str) -> Result<Self> {
        let is_align = |c: char| matches!(c, '<' | '>' | '^');
        let mut chars = spec.chars();
        let (first, second) = (chars.next(), chars.next());
        let (fill, align, rest) = match (first, second) {
            (Some(fill), Some(align)) if is_align(align) => (fill, Some(align), chars.as_str()),
            (Some(align), _) if is_align(align) => (' ', Some(align), &spec[1..]),
            (Some('0'), Some(_)) => ('0', None, &spec[1..]),
            _ => (' ', None, spec),
        };
        let (width, rest) = number(rest);
        let (commas, rest) = rest.strip_prefix(',').map_or((false, rest), |rest| (true, rest));
        if commas && fill == '0' && align.is_none() {
            return Err(Failure::new("`format` cannot fill up a number with zeros and commas"));
        }
        let (precision, rest) = match rest.strip_prefix('.') {
            Some(rest) => number(rest),
            None => (None, rest),
        };
        let kind = rest.chars().next().unwrap_or('s');
        if rest.chars().count() > 1 || !matches!(kind, 's' | 'd' | 'f') {
            return Err(Failure::new(
                "`format` supports fill, alignment, width, comma, precision and the types s, d and f only",
            ));
        }
        Ok(Self { fill, align, width: width.unwrap_or(0), commas, precision, kind })
    }
}

/// The number that a text begins with; one too large for a machine word is the largest.
fn number(text: &str) -> (Option<usize>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    ((!digits.is_empty()).then(|| digits.parse().unwrap_or(usize::MAX)), rest)
}
