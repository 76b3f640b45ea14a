//! Values of a template. Lists and dictionaries never change and know their depth, so that none is cyclic or deep.

use std::sync::Arc;

use super::ast::MacroDecl;
use super::budget::Budget;
use super::{Failure, Result};

/// Nesting of lists and dictionaries.
const MAX_VALUE_DEPTH: usize = 64;

/// A value, cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::processor) enum Value {
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Arc<List>),
    Dict(Arc<Dict>),
    /// A mutable object of the rendering, by its number.
    Namespace(usize),
    /// `loop` of a `for`.
    Loop(Arc<Loop>),
    Macro(Arc<Macro>),
    Function(&'static str),
}

/// A list or tuple.
#[derive(Debug)]
pub(in crate::processor) struct List {
    items: Vec<Value>,
    depth: usize,
}

/// Keys and values in the order of insertion.
#[derive(Debug)]
pub(in crate::processor) struct Dict {
    pairs: Vec<(Value, Value)>,
    depth: usize,
}

/// State of a `for` loop.
#[derive(Debug)]
pub(in crate::processor) struct Loop {
    pub(super) index: usize,
    pub(super) items: Arc<[Value]>,
    pub(super) depth: usize,
}

/// A macro and how many scopes it sees.
#[derive(Debug)]
pub(in crate::processor) struct Macro {
    pub(super) decl: Arc<MacroDecl>,
    pub(super) scopes: usize,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl FromIterator<Value> for Value {
    /// A list from values that no template made.
    fn from_iter<I: IntoIterator<Item = Value>>(items: I) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        Self::List(Arc::new(List { items, depth }))
    }
}

impl<'k> FromIterator<(&'k str, Value)> for Value {
    /// A dictionary from values that no template made.
    fn from_iter<I: IntoIterator<Item = (&'k str, Value)>>(pairs: I) -> Self {
        let pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key.into(), value)).collect();
        let depth = 1 + pairs.iter().map(|(_, value)| value.depth()).max().unwrap_or(0);
        Self::Dict(Arc::new(Dict { pairs, depth }))
    }
}

impl Value {
    /// A list that a template made.
    pub(super) fn list(budget: &Budget, items: Vec<Self>) -> Result<Self> {
        budget.values(items.len())?;
        let depth = depth_around(&items)?;
        Ok(Self::List(Arc::new(List { items, depth })))
    }

    /// A dictionary that a template made; later values of a key win.
    pub(super) fn dict(budget: &Budget, given: impl IntoIterator<Item = (Self, Self)>) -> Result<Self> {
        let mut pairs: Vec<(Self, Self)> = Vec::new();
        for (key, value) in given {
            budget.values(2)?;
            match place_of_key(budget, &pairs, &key)? {
                Some(at) => pairs[at].1 = value,
                None => pairs.push((key, value)),
            }
        }
        let depth = depth_around(pairs.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self::Dict(Arc::new(Dict { pairs, depth })))
    }

    pub(super) fn str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    pub(super) fn int(&self) -> Option<i64> {
        match *self {
            Self::Int(n) => Some(n),
            Self::Bool(b) => Some(b.into()),
            _ => None,
        }
    }

    pub(super) fn float(&self) -> Option<f64> {
        if let Self::Float(x) = *self { Some(x) } else { self.int().map(|n| n as f64) }
    }

    /// Items of a list.
    pub(super) fn items(&self) -> Option<&[Self]> {
        if let Self::List(list) = self { Some(&list.items) } else { None }
    }

    /// Keys and values of a dictionary.
    pub(super) fn pairs(&self) -> Option<&[(Self, Self)]> {
        if let Self::Dict(dict) = self { Some(&dict.pairs) } else { None }
    }

    /// What Python counts as true.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(x) => *x != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(list) => !list.items.is_empty(),
            Self::Dict(dict) => !dict.pairs.is_empty(),
            Self::Namespace(_) | Self::Loop(_) | Self::Macro(_) | Self::Function(_) => true,
        }
    }

    /// What the value is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::None => "none",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Str(_) => "a string",
            Self::List(_) => "a list",
            Self::Dict(_) => "a mapping",
            Self::Namespace(_) => "a namespace",
            Self::Loop(_) => "`loop`",
            Self::Macro(_) => "a macro",
            Self::Function(_) => "a function",
        }
    }

    /// The value of a dictionary's key.
    pub(super) fn get(&self, budget: &Budget, key: &Self) -> Result<Self> {
        let pairs = self.pairs().unwrap_or_default();
        let found = place_of_key(budget, pairs, key)?;
        Ok(found.and_then(|at| pairs.get(at)).map_or(Self::Undefined, |(_, value)| value.clone()))
    }

    /// Whether two simple values are the same key of a dictionary.
    fn is_key(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::None, Self::None) => true,
            (a, b) => a.float().is_some() && a.float() == b.float(),
        }
    }

    /// Refuses to be part of a list, dictionary or namespace, where objects of the rendering would make cycles.
    pub(super) fn check_storable(&self) -> Result<()> {
        match self {
            Self::Namespace(_) | Self::Loop(_) | Self::Macro(_) | Self::Function(_) => {
                Err(Failure::new(format!("{} cannot be part of a list, mapping or namespace", self.kind())))
            }
            _ => Ok(()),
        }
    }

    /// Levels of lists and dictionaries.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(list) => list.depth,
            Self::Dict(dict) => dict.depth,
            Self::Loop(state) => state.depth,
            _ => 0,
        }
    }
}

fn place_of_key(budget: &Budget, pairs: &[(Value, Value)], key: &Value) -> Result<Option<usize>> {
    budget.steps(pairs.len())?;
    for (at, (found, _)) in pairs.iter().enumerate() {
        if let (Value::Str(found), Value::Str(key)) = (found, key)
            && found.len() == key.len()
        {
            budget.read(key.len())?;
        }
        if found.is_key(key) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn depth_around<'v>(parts: impl IntoIterator<Item = &'v Value>) -> Result<usize> {
    let mut depth = 0;
    for part in parts {
        part.check_storable()?;
        depth = depth.max(part.depth());
    }
    if depth >= MAX_VALUE_DEPTH {
        return Err(Failure::new(format!("nests lists or mappings more than {MAX_VALUE_DEPTH} deep")));
    }
    Ok(depth + 1)
}
