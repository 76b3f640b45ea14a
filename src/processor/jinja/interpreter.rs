//! Rendering: statements and expressions of a syntax tree, evaluated within a budget.

use std::collections::HashMap;
use std::sync::Arc;

use super::arguments::{Arguments, int, text};
use super::ast::{Args, Expr, For, MacroDecl, Stmt, StmtKind, Target};
use super::budget::Budget;
use super::filters::{self, elements};
use super::format::strftime;
use super::text::Writer;
use super::value::{Loop, Macro, Value};
use super::{Failure, Result, methods, operators, predicates};

/// Longest list of `range`.
const MAX_RANGE: usize = 100_000;
/// Functions that every template may call.
const FUNCTIONS: [&str; 5] = ["dict", "namespace", "raise_exception", "range", "strftime_now"];

/// Renders a template.
pub(super) fn render<'k>(body: &[Stmt], variables: impl IntoIterator<Item = (&'k str, Value)>) -> Result<String> {
    let budget = Budget::default();
    let globals = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
    let mut interpreter = Interpreter {
        budget: &budget,
        scopes: vec![globals, Scope::new()],
        namespaces: Vec::new(),
        output: Writer::new(&budget),
    };
    interpreter.body(body)?.check_end()?;
    Ok(interpreter.output.text)
}

type Scope = HashMap<Arc<str>, Value>;

/// How a statement ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

impl Flow {
    /// Refuses to leave a loop where there is none.
    fn check_end(self) -> Result<()> {
        match self {
            Self::Next => Ok(()),
            Self::Break | Self::Continue => Err(Failure::new("has `break` or `continue` outside of a loop")),
        }
    }
}

struct Interpreter<'b> {
    budget: &'b Budget,
    /// Variables, the innermost scope last.
    scopes: Vec<Scope>,
    namespaces: Vec<Scope>,
    output: Writer<'b>,
}

// --- statements -------------------------------------------------------------------------------------------------

impl<'b> Interpreter<'b> {
    fn body(&mut self, body: &[Stmt]) -> Result<Flow> {
        let budget = self.budget;
        let _level = budget.enter()?;
        for stmt in body {
            let flow = self.statement(&stmt.kind).map_err(|failure| failure.at(stmt.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, kind: &StmtKind) -> Result<Flow> {
        self.budget.steps(1)?;
        match kind {
            StmtKind::Text(text) => self.output.push(text)?,
            StmtKind::Print(expr) => {
                let value = self.evaluate(expr)?;
                self.output.value(&value, false)?;
            }
            StmtKind::If { branches, otherwise } => return self.branch(branches, otherwise),
            StmtKind::For(stmt) => return self.repeat(stmt),
            StmtKind::Set { targets, value } => self.set(targets, value)?,
            StmtKind::SetBlock { target, filters, body } => {
                let value = self.filtered(filters, body)?;
                self.assign(target, value)?;
            }
            StmtKind::Filter { filters, body } => {
                let value = self.filtered(filters, body)?;
                self.output.value(&value, false)?;
            }
            StmtKind::Macro(decl) => self.define(decl)?,
            StmtKind::Call { body, callee, args } => self.call_with_body(body, callee, args)?,
            StmtKind::With { values, body } => return self.with(values, body),
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn branch(&mut self, branches: &[(Expr, Vec<Stmt>)], otherwise: &[Stmt]) -> Result<Flow> {
        for (condition, body) in branches {
            if self.evaluate(condition)?.is_true() {
                return self.body(body);
            }
        }
        self.body(otherwise)
    }

    fn repeat(&mut self, stmt: &For) -> Result<Flow> {
        let iterated = self.evaluate(&stmt.iter)?;
        let depth = iterated.depth();
        let items = self.chosen(stmt, elements(self.budget, &iterated)?)?;
        if items.is_empty() {
            return self.body(&stmt.otherwise);
        }
        let items: Arc<[Value]> = items.into();
        for index in 0..items.len() {
            let state = Loop { index, items: items.clone(), depth };
            self.push_scope()?;
            self.unpack(&stmt.targets, items[index].clone())?;
            self.declare("loop".into(), Value::Loop(state.into()))?;
            let flow = self.body(&stmt.body)?;
            self.scopes.pop();
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::Next)
    }

    /// The items that pass the loop's condition.
    fn chosen(&mut self, stmt: &For, items: Vec<Value>) -> Result<Vec<Value>> {
        let Some(condition) = &stmt.condition else { return Ok(items) };
        let mut chosen = Vec::new();
        for item in items {
            self.push_scope()?;
            self.unpack(&stmt.targets, item.clone())?;
            if self.evaluate(condition)?.is_true() {
                chosen.push(item);
            }
            self.scopes.pop();
        }
        Ok(chosen)
    }

    fn push_scope(&mut self) -> Result<()> {
        self.budget.values(2)?;
        self.scopes.push(Scope::new());
        Ok(())
    }

    /// Assigns a value to one variable, or its items to as many.
    fn unpack(&mut self, names: &[Arc<str>], value: Value) -> Result<()> {
        if let [name] = names {
            return self.declare(name.clone(), value);
        }
        let items = elements(self.budget, &value)?;
        if items.len() != names.len() {
            return Err(Failure::new(format!("cannot assign {} values to {} variables", items.len(), names.len())));
        }
        names.iter().zip(items).try_for_each(|(name, item)| self.declare(name.clone(), item))
    }

    fn declare(&mut self, name: Arc<str>, value: Value) -> Result<()> {
        // An entry of a table takes a few values' bytes.
        self.budget.values(4)?;
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, value);
        }
        Ok(())
    }

    fn set(&mut self, targets: &[Target], value: &Expr) -> Result<()> {
        let value = self.evaluate(value)?;
        if let [target] = targets {
            return self.assign(target, value);
        }
        let items = elements(self.budget, &value)?;
        if items.len() != targets.len() {
            return Err(Failure::new(format!("cannot assign {} values to {} variables", items.len(), targets.len())));
        }
        targets.iter().zip(items).try_for_each(|(target, item)| self.assign(target, item))
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        let Some(attribute) = &target.attribute else { return self.declare(target.name.clone(), value) };
        let Value::Namespace(number) = self.variable(&target.name) else {
            return Err(Failure::new(format!("`{}` is no namespace, whose attributes alone can be set", target.name)));
        };
        value.check_storable()?;
        self.budget.values(4)?;
        if let Some(namespace) = self.namespaces.get_mut(number) {
            namespace.insert(attribute.clone(), value);
        }
        Ok(())
    }

    /// The text that a body prints.
    fn captured(&mut self, body: &[Stmt]) -> Result<Value> {
        let outer = std::mem::replace(&mut self.output, Writer::new(self.budget));
        let flow = self.body(body);
        let inner = std::mem::replace(&mut self.output, outer);
        flow?.check_end()?;
        self.budget.text(inner.text.len())?;
        Ok(inner.text.into())
    }

    fn filtered(&mut self, filters: &[(Arc<str>, Args)], body: &[Stmt]) -> Result<Value> {
        self.push_scope()?;
        let mut value = self.captured(body)?;
        self.scopes.pop();
        for (name, args) in filters {
            let args = self.arguments(name, args)?;
            value = filters::apply(self.budget, &value, args)?;
        }
        Ok(value)
    }

    fn define(&mut self, decl: &Arc<MacroDecl>) -> Result<()> {
        let value = Macro { decl: decl.clone(), scopes: self.scopes.len() };
        self.declare(decl.name.clone(), Value::Macro(value.into()))
    }

    fn call_with_body(&mut self, body: &Arc<MacroDecl>, callee: &Expr, args: &Args) -> Result<()> {
        let caller = Macro { decl: body.clone(), scopes: self.scopes.len() };
        let callee = self.evaluate(callee)?;
        let mut args = self.arguments("caller", args)?;
        args.named.push(("caller".into(), Value::Macro(caller.into())));
        let value = self.call(&callee, args)?;
        self.output.value(&value, false)
    }

    fn with(&mut self, values: &[(Arc<str>, Expr)], body: &[Stmt]) -> Result<Flow> {
        let mut scope = Vec::new();
        for (name, value) in values {
            scope.push((name.clone(), self.evaluate(value)?));
        }
        self.push_scope()?;
        scope.into_iter().try_for_each(|(name, value)| self.declare(name, value))?;
        let flow = self.body(body)?;
        self.scopes.pop();
        Ok(flow)
    }
}

// --- expressions ------------------------------------------------------------------------------------------------

impl Interpreter<'_> {
    fn evaluate(&mut self, expr: &Expr) -> Result<Value> {
        let budget = self.budget;
        let _level = budget.enter()?;
        match expr {
            Expr::Const(value) => Ok(value.clone()),
            Expr::Name(name) => Ok(self.variable(name)),
            Expr::List(items) => {
                let items = self.evaluate_all(items)?;
                Value::list(budget, items)
            }
            Expr::Dict(pairs) => self.dict(pairs),
            Expr::Not(inner) => Ok((!self.evaluate(inner)?.is_true()).into()),
            Expr::Negative(inner) => operators::negative(&self.evaluate(inner)?),
            Expr::Positive(inner) => self.evaluate(inner),
            Expr::Binary(op, parts) => {
                let (left, right) = (self.evaluate(&parts.0)?, self.evaluate(&parts.1)?);
                operators::binary(budget, *op, &left, &right)
            }
            Expr::And(parts) => self.shortcut(parts, false),
            Expr::Or(parts) => self.shortcut(parts, true),
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::If { condition, then, otherwise } => match (self.evaluate(condition)?.is_true(), otherwise) {
                (true, _) => self.evaluate(then),
                (false, Some(otherwise)) => self.evaluate(otherwise),
                (false, None) => Ok(Value::Undefined),
            },
            Expr::Attribute(of, name) => self.attribute(of, name),
            Expr::Item(parts) => {
                let (whole, index) = (self.evaluate(&parts.0)?, self.evaluate(&parts.1)?);
                match (&whole, index.str()) {
                    (Value::Undefined, _) => Err(undefined(&parts.0)),
                    (Value::Namespace(_) | Value::Loop(_), Some(name)) => self.attribute_of(&whole, name),
                    _ => operators::item(budget, &whole, &index),
                }
            }
            Expr::Slice(of, bounds) => self.slice(of, bounds),
            Expr::Call(callee, args) => self.call_expression(callee, args),
            Expr::Filter(of, name, args) => {
                let value = self.evaluate(of)?;
                let args = self.arguments(name, args)?;
                filters::apply(budget, &value, args)
            }
            Expr::Test(of, name, args) => {
                let value = self.evaluate(of)?;
                let args = self.arguments(name, args)?;
                predicates::apply(budget, &value, args).map(Value::Bool)
            }
        }
    }

    fn variable(&self, name: &str) -> Value {
        let found = self.scopes.iter().rev().find_map(|scope| scope.get(name)).cloned();
        let function = || FUNCTIONS.iter().find(|known| **known == name).map(|known| Value::Function(known));
        found.or_else(function).unwrap_or(Value::Undefined)
    }

    fn evaluate_all(&mut self, exprs: &[Expr]) -> Result<Vec<Value>> {
        self.budget.values(exprs.len())?;
        exprs.iter().map(|expr| self.evaluate(expr)).collect()
    }

    fn dict(&mut self, pairs: &[(Expr, Expr)]) -> Result<Value> {
        self.budget.values(2 * pairs.len())?;
        let pairs = pairs.iter().map(|(key, value)| Ok((self.evaluate(key)?, self.evaluate(value)?)));
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        Value::dict(self.budget, pairs)
    }

    /// `and` and `or`, which give one of their operands.
    fn shortcut(&mut self, parts: &(Expr, Expr), ends_with: bool) -> Result<Value> {
        let left = self.evaluate(&parts.0)?;
        if left.is_true() == ends_with { Ok(left) } else { self.evaluate(&parts.1) }
    }

    fn compare(&mut self, first: &Expr, rest: &[(super::ast::CompareOp, Expr)]) -> Result<Value> {
        let mut left = self.evaluate(first)?;
        for (op, right) in rest {
            let right = self.evaluate(right)?;
            if !operators::compare(self.budget, *op, &left, &right)? {
                return Ok(false.into());
            }
            left = right;
        }
        Ok(true.into())
    }

    fn slice(&mut self, of: &Expr, bounds: &[Option<Box<Expr>>; 3]) -> Result<Value> {
        let whole = self.evaluate(of)?;
        let mut given = [None; 3];
        for (given, bound) in given.iter_mut().zip(bounds) {
            if let Some(bound) = bound {
                let bound = self.evaluate(bound)?;
                *given = if matches!(bound, Value::None) { None } else { Some(int(&bound)?) };
            }
        }
        operators::slice(self.budget, &whole, given)
    }

    fn attribute(&mut self, of: &Expr, name: &Arc<str>) -> Result<Value> {
        match self.evaluate(of)? {
            Value::Undefined => Err(undefined(of)),
            value => self.attribute_of(&value, name),
        }
    }

    fn attribute_of(&self, value: &Value, name: &str) -> Result<Value> {
        match value {
            Value::Dict(_) => value.get(self.budget, &name.into()),
            Value::Namespace(number) => {
                self.budget.read(name.len())?;
                let namespace = self.namespaces.get(*number);
                Ok(namespace.and_then(|namespace| namespace.get(name)).cloned().unwrap_or(Value::Undefined))
            }
            Value::Loop(state) => Ok(loop_attribute(state, name)),
            _ => Ok(Value::Undefined),
        }
    }

    fn arguments(&mut self, name: &str, args: &Args) -> Result<Arguments> {
        let positional = self.evaluate_all(&args.positional)?;
        let mut named = Vec::new();
        for (name, value) in &args.named {
            self.budget.values(2)?;
            named.push((name.clone(), self.evaluate(value)?));
        }
        Ok(Arguments { name: name.into(), positional, named })
    }

    fn call_expression(&mut self, callee: &Expr, args: &Args) -> Result<Value> {
        let Expr::Attribute(of, name) = callee else {
            let function = self.evaluate(callee)?;
            let name = if let Expr::Name(name) = callee { name } else { "the value" };
            let args = self.arguments(name, args)?;
            return self.call(&function, args);
        };
        let receiver = self.evaluate(of)?;
        let args = self.arguments(name, args)?;
        match &receiver {
            Value::Loop(state) if &**name == "cycle" => {
                let count = args.positional.len().max(1);
                Ok(args.positional.get(state.index % count).cloned().unwrap_or(Value::Undefined))
            }
            _ => methods::call(self.budget, &receiver, args),
        }
    }

    fn call(&mut self, callee: &Value, args: Arguments) -> Result<Value> {
        match callee {
            Value::Macro(callee) => self.call_macro(&callee.clone(), args),
            Value::Function("range") => range(self.budget, args),
            Value::Function("dict") => {
                let given = args.named.into_iter().map(|(name, value)| (Value::Str(name), value));
                Value::dict(self.budget, given)
            }
            Value::Function("namespace") => self.namespace(args),
            Value::Function("strftime_now") => {
                let [format] = args.bind(["format"])?;
                strftime(self.budget, text(&format.unwrap_or("%c".into()))?)
            }
            Value::Function(_) => {
                let [message] = args.bind(["message"])?;
                Err(Failure::new(text(&message.unwrap_or("the template refuses these messages".into()))?))
            }
            other => {
                Err(Failure::new(format!("`{}` is {}, not a function of chat templates", args.name, other.kind())))
            }
        }
    }

    fn namespace(&mut self, args: Arguments) -> Result<Value> {
        let mut namespace = Scope::new();
        for given in &args.positional {
            for (key, value) in given.pairs().ok_or_else(|| Failure::new("`namespace` needs names or a mapping"))? {
                self.budget.values(4)?;
                self.budget.text(text(key)?.len())?;
                namespace.insert(text(key)?.into(), value.clone());
            }
        }
        for (name, value) in args.named {
            value.check_storable()?;
            self.budget.values(4)?;
            namespace.insert(name, value);
        }
        self.budget.values(4)?;
        self.namespaces.push(namespace);
        Ok(Value::Namespace(self.namespaces.len() - 1))
    }

    /// Runs a macro in the scopes that it was defined in.
    fn call_macro(&mut self, callee: &Macro, args: Arguments) -> Result<Value> {
        let hidden = self.scopes.split_off(callee.scopes.min(self.scopes.len()));
        self.budget.values(hidden.len())?;
        let value = self.in_scope_of_macro(&callee.decl, args);
        self.scopes.truncate(callee.scopes);
        self.scopes.extend(hidden);
        value
    }

    fn in_scope_of_macro(&mut self, decl: &MacroDecl, args: Arguments) -> Result<Value> {
        let budget = self.budget;
        let _level = budget.enter()?;
        self.push_scope()?;
        let mut given = args.positional.into_iter();
        let mut named = args.named;
        for (name, default) in &decl.parameters {
            budget.steps(named.len())?;
            let by_name = named.iter().position(|(known, _)| known == name).map(|at| named.remove(at).1);
            let value = match (given.next().or(by_name), default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.evaluate(default)?,
                (None, None) => Value::Undefined,
            };
            self.declare(name.clone(), value)?;
        }
        if let Some(at) = named.iter().position(|(name, _)| **name == *"caller") {
            let (name, caller) = named.remove(at);
            self.declare(name, caller)?;
        }
        if given.next().is_some() || !named.is_empty() {
            return Err(Failure::new(format!("the macro `{}` is given arguments that it does not take", decl.name)));
        }
        self.captured(&decl.body)
    }
}

fn undefined(expr: &Expr) -> Failure {
    match expr {
        Expr::Name(name) => Failure::new(format!("`{name}` is undefined")),
        Expr::Attribute(_, name) => Failure::new(format!("the attribute `{name}` is undefined")),
        _ => Failure::new("takes a part of an undefined value"),
    }
}

fn loop_attribute(state: &Loop, name: &str) -> Value {
    let (index, length) = (state.index, state.items.len());
    let number = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    match name {
        "index" => number(index + 1),
        "index0" => number(index),
        "revindex" => number(length - index),
        "revindex0" => number(length - index - 1),
        "first" => (index == 0).into(),
        "last" => (index + 1 == length).into(),
        "length" => number(length),
        "depth" => number(1),
        "depth0" => number(0),
        "previtem" => index.checked_sub(1).and_then(|at| state.items.get(at)).cloned().unwrap_or(Value::Undefined),
        "nextitem" => state.items.get(index + 1).cloned().unwrap_or(Value::Undefined),
        _ => Value::Undefined,
    }
}

fn range(budget: &Budget, args: Arguments) -> Result<Value> {
    let [first, second, step] = args.bind(["start", "stop", "step"])?;
    let (start, stop) = match (first, second) {
        (Some(start), Some(stop)) => (int(&start)?, int(&stop)?),
        (Some(stop), None) => (0, int(&stop)?),
        _ => return Err(Failure::new("`range` needs a number")),
    };
    let step = step.as_ref().map(int).transpose()?.unwrap_or(1);
    let distance = if step > 0 { stop.checked_sub(start) } else { start.checked_sub(stop) };
    let count = match (step, distance) {
        (0, _) => return Err(Failure::new("`range` has a step of 0")),
        (_, Some(distance)) => u64::try_from(distance).map_or(0, |distance| distance.div_ceil(step.unsigned_abs())),
        (_, None) => u64::MAX,
    };
    let count = usize::try_from(count).ok().filter(|&count| count <= MAX_RANGE);
    let count = count.ok_or_else(|| Failure::new(format!("`range` would have more than {MAX_RANGE} numbers")))?;
    budget.values(count)?;
    let numbers = std::iter::successors(Some(start), |n| n.checked_add(step)).take(count);
    Value::list(budget, numbers.map(Value::Int).collect())
}
