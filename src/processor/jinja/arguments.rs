//! Arguments of filters, tests, methods and functions.

use std::sync::Arc;

use super::budget::Budget;
use super::value::Value;
use super::{Failure, Result};

/// Evaluated arguments of the call of `name`.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) name: Arc<str>,
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    /// The same arguments for the call of another name, once for each item of a list.
    pub(super) fn again(&self, budget: &Budget, name: &Arc<str>) -> Result<Self> {
        budget.steps(1 + self.positional.len() + self.named.len())?;
        Ok(Self { name: name.clone(), positional: self.positional.clone(), named: self.named.clone() })
    }

    /// The values of the parameters `names`, by position or by name; `None` where nothing was given.
    pub(super) fn bind<const N: usize>(self, names: [&str; N]) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            let message = format!("`{}` takes at most {N} arguments, {} were given", self.name, self.positional.len());
            return Err(Failure::new(message));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|known| **known == *name).filter(|&at| bound[at].is_none());
            let Some(at) = place else {
                return Err(Failure::new(format!("`{}` has no argument `{name}` to be given here", self.name)));
            };
            bound[at] = Some(value);
        }
        Ok(bound)
    }
}

/// A text argument.
pub(super) fn text(value: &Value) -> Result<&str> {
    value.str().ok_or_else(|| Failure::new(format!("expected a string, found {}", value.kind())))
}

/// A whole number.
pub(super) fn int(value: &Value) -> Result<i64> {
    value.int().ok_or_else(|| Failure::new(format!("expected a whole number, found {}", value.kind())))
}
