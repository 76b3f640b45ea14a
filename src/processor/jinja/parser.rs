//! Parser of templates: tokens to a syntax tree of limited depth.

use std::sync::Arc;

use super::ast::{Args, BinaryOp, CompareOp, Expr, For, MacroDecl, Stmt, StmtKind, Target};
use super::lexer::{Token, TokenKind};
use super::value::Value;
use super::{Failure, Result};

/// Blocks and brackets within each other; the parser takes some 8 KiB of stack for each (40 KiB without optimisation).
const MAX_NESTING: usize = 40;
/// Depth of the syntax tree. Chains such as `a + b + c` nest too, since operators of equal rank group to the left.
const MAX_DEPTH: usize = 200;

/// Parses all tokens of a template.
pub(super) fn parse(tokens: Vec<Token>) -> Result<Vec<Stmt>> {
    let mut parser = Parser { tokens, at: 0, nesting: 0 };
    parser.body(&[]).map(|(body, _)| body)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
}

/// An expression and the depth of its tree.
struct Node {
    expr: Expr,
    depth: usize,
}

impl Node {
    fn leaf(expr: Expr) -> Self {
        Self { expr, depth: 1 }
    }
}

/// Binary operators by rank, the loosest first.
const BINARY: [&[(&str, BinaryOp)]; 4] = [
    &[("+", BinaryOp::Add), ("-", BinaryOp::Subtract)],
    &[("~", BinaryOp::Concat)],
    &[("*", BinaryOp::Multiply), ("/", BinaryOp::Divide), ("//", BinaryOp::FloorDivide), ("%", BinaryOp::Modulo)],
    &[("**", BinaryOp::Power)],
];

const COMPARISONS: [(&str, CompareOp); 6] = [
    ("==", CompareOp::Equal),
    ("!=", CompareOp::NotEqual),
    ("<", CompareOp::Less),
    ("<=", CompareOp::LessEqual),
    (">", CompareOp::Greater),
    (">=", CompareOp::GreaterEqual),
];

// --- tokens -----------------------------------------------------------------------------------------------------

impl Parser {
    fn peek(&self) -> &TokenKind {
        self.tokens.get(self.at).map_or(&TokenKind::End, |token| &token.kind)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn next(&mut self) -> TokenKind {
        let kind = self.peek().clone();
        self.at += 1;
        kind
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Failure::syntax(message, self.line()))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), TokenKind::Op(found) if *found == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), TokenKind::Name(found) if **found == *name)
    }

    fn skip(&mut self, found: bool) -> bool {
        self.at += usize::from(found);
        found
    }

    fn skip_op(&mut self, op: &str) -> bool {
        self.skip(self.is_op(op))
    }

    fn skip_name(&mut self, name: &str) -> bool {
        self.skip(self.is_name(name))
    }

    fn expect_op(&mut self, op: &str) -> Result<()> {
        if self.skip_op(op) { Ok(()) } else { self.fail(format!("expected `{op}`, found {}", shown(self.peek()))) }
    }

    fn expect_name(&mut self, name: &str) -> Result<()> {
        if self.skip_name(name) {
            Ok(())
        } else {
            self.fail(format!("expected `{name}`, found {}", shown(self.peek())))
        }
    }

    fn name(&mut self) -> Result<Arc<str>> {
        match self.next() {
            TokenKind::Name(name) => Ok(name),
            other => self.fail(format!("expected a name, found {}", shown(&other))),
        }
    }

    fn end_block(&mut self) -> Result<()> {
        match self.next() {
            TokenKind::BlockEnd => Ok(()),
            other => self.fail(format!("expected the end of the tag, found {}", shown(&other))),
        }
    }

    /// Parses one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting == MAX_NESTING {
            return self.fail(format!("blocks or brackets are nested more than {MAX_NESTING} deep"));
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    fn check_depth(&self, depth: usize) -> Result<()> {
        if depth < MAX_DEPTH {
            Ok(())
        } else {
            self.fail(format!("operators or filters are nested more than {MAX_DEPTH} deep"))
        }
    }

    fn node(&self, expr: Expr, depth_of_parts: usize) -> Result<Node> {
        self.check_depth(depth_of_parts)?;
        Ok(Node { expr, depth: depth_of_parts + 1 })
    }
}

fn shown(token: &TokenKind) -> String {
    match token {
        TokenKind::Name(name) => format!("`{name}`"),
        TokenKind::Op(op) => format!("`{op}`"),
        TokenKind::Str(_) => "a string".into(),
        TokenKind::Int(_) | TokenKind::Float(_) => "a number".into(),
        TokenKind::BlockEnd => "`%}`".into(),
        TokenKind::PrintEnd => "`}}`".into(),
        TokenKind::Text(_) | TokenKind::BlockStart | TokenKind::PrintStart => "the end of a tag".into(),
        TokenKind::End => "the end of the template".into(),
    }
}

// --- statements -------------------------------------------------------------------------------------------------

impl Parser {
    /// Statements up to a block that is named in `ends`, of which the name is read.
    fn body(&mut self, ends: &[&'static str]) -> Result<(Vec<Stmt>, Option<&'static str>)> {
        self.nested(|parser| {
            let mut body = Vec::new();
            loop {
                let line = parser.line();
                let kind = match parser.next() {
                    TokenKind::Text(text) => StmtKind::Text(text),
                    TokenKind::PrintStart => StmtKind::Print(parser.print()?),
                    TokenKind::BlockStart => {
                        if let Some(end) = ends.iter().find(|end| parser.is_name(end)) {
                            parser.at += 1;
                            return Ok((body, Some(*end)));
                        }
                        match parser.block()? {
                            Block::Stmt(kind) => *kind,
                            Block::Inline(inner) => {
                                body.extend(inner);
                                continue;
                            }
                        }
                    }
                    TokenKind::End if ends.is_empty() => return Ok((body, None)),
                    TokenKind::End => return parser.fail(format!("`{}` is missing", ends.join("` or `"))),
                    other => return parser.fail(format!("unexpected {}", shown(&other))),
                };
                body.push(Stmt { line, kind });
            }
        })
    }

    /// The body of a block that ends with `end` and nothing else.
    fn whole_body(&mut self, end: &'static str) -> Result<Vec<Stmt>> {
        self.end_block()?;
        let (body, _) = self.body(&[end])?;
        self.end_block()?;
        Ok(body)
    }

    fn print(&mut self) -> Result<Expr> {
        let expr = self.tuple()?;
        match self.next() {
            TokenKind::PrintEnd => Ok(expr.expr),
            other => self.fail(format!("expected `}}}}`, found {}", shown(&other))),
        }
    }

    fn block(&mut self) -> Result<Block> {
        let name = self.name()?;
        Ok(Block::Stmt(Box::new(match &*name {
            "if" => self.if_block()?,
            "for" => self.for_block()?,
            "set" => self.set_block()?,
            "macro" => self.macro_block()?,
            "call" => self.call_block()?,
            "filter" => self.filter_block()?,
            "with" => self.with_block()?,
            "break" => self.word(StmtKind::Break)?,
            "continue" => self.word(StmtKind::Continue)?,
            // HF marks what the assistant says: a block that prints its body.
            "generation" => return self.whole_body("endgeneration").map(Block::Inline),
            other => return self.fail(format!("`{{% {other} %}}` is not supported in chat templates")),
        })))
    }

    fn word(&mut self, kind: StmtKind) -> Result<StmtKind> {
        self.end_block()?;
        Ok(kind)
    }

    fn if_block(&mut self) -> Result<StmtKind> {
        let (mut branches, mut otherwise) = (Vec::new(), Vec::new());
        loop {
            let condition = self.expression()?.expr;
            self.end_block()?;
            let (body, end) = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            match end {
                Some("elif") => continue,
                Some("else") => otherwise = self.whole_body("endif")?,
                _ => self.end_block()?,
            }
            return Ok(StmtKind::If { branches, otherwise });
        }
    }

    fn for_block(&mut self) -> Result<StmtKind> {
        let targets = self.names()?;
        self.expect_name("in")?;
        let iter = self.tuple_of(Self::or)?.expr;
        let condition = if self.skip_name("if") { Some(self.expression()?.expr) } else { None };
        if self.is_name("recursive") {
            return self.fail("`recursive` loops are not supported in chat templates");
        }
        self.end_block()?;
        let (body, end) = self.body(&["else", "endfor"])?;
        let otherwise =
            if end == Some("else") { self.whole_body("endfor")? } else { self.end_block().map(|()| vec![])? };
        Ok(StmtKind::For(For { targets, iter, condition, body, otherwise }))
    }

    /// `a`, `a, b` or `(a, b)`.
    fn names(&mut self) -> Result<Vec<Arc<str>>> {
        let bracket = self.skip_op("(");
        let mut names = vec![self.name()?];
        while self.skip_op(",") {
            names.push(self.name()?);
        }
        if bracket {
            self.expect_op(")")?;
        }
        Ok(names)
    }

    fn set_block(&mut self) -> Result<StmtKind> {
        let mut targets = vec![self.target()?];
        while self.skip_op(",") {
            targets.push(self.target()?);
        }
        if self.skip_op("=") {
            let value = self.tuple()?.expr;
            return self.word(StmtKind::Set { targets, value });
        }
        let Some(target) = targets.pop().filter(|_| targets.is_empty()) else {
            return self.expect_op("=").map(|()| StmtKind::Break);
        };
        let filters = self.filters()?;
        Ok(StmtKind::SetBlock { target, filters, body: self.whole_body("endset")? })
    }

    fn target(&mut self) -> Result<Target> {
        let name = self.name()?;
        let attribute = if self.skip_op(".") { Some(self.name()?) } else { None };
        Ok(Target { name, attribute })
    }

    /// `| filter(args) | ..` of a block.
    fn filters(&mut self) -> Result<Vec<(Arc<str>, Args)>> {
        let mut filters = Vec::new();
        while self.skip_op("|") {
            filters.push((self.name()?, self.optional_args()?.0));
        }
        Ok(filters)
    }

    fn filter_block(&mut self) -> Result<StmtKind> {
        let first = (self.name()?, self.optional_args()?.0);
        let filters = std::iter::once(first).chain(self.filters()?).collect();
        Ok(StmtKind::Filter { filters, body: self.whole_body("endfilter")? })
    }

    fn macro_block(&mut self) -> Result<StmtKind> {
        let name = self.name()?;
        let parameters = self.parameters()?;
        let body = self.whole_body("endmacro")?;
        Ok(StmtKind::Macro(MacroDecl { name, parameters, body }.into()))
    }

    fn parameters(&mut self) -> Result<Vec<(Arc<str>, Option<Expr>)>> {
        self.expect_op("(")?;
        let mut parameters = Vec::new();
        while !self.skip_op(")") {
            let name = self.name()?;
            let default = if self.skip_op("=") { Some(self.expression()?.expr) } else { None };
            parameters.push((name, default));
            if !self.is_op(")") {
                self.expect_op(",")?;
            }
        }
        Ok(parameters)
    }

    fn call_block(&mut self) -> Result<StmtKind> {
        let parameters = if self.is_op("(") { self.parameters()? } else { vec![] };
        let Expr::Call(callee, args) = self.expression()?.expr else { return self.fail("`{% call %}` needs a call") };
        let body = self.whole_body("endcall")?;
        let body = MacroDecl { name: "caller".into(), parameters, body }.into();
        Ok(StmtKind::Call { body, callee: *callee, args })
    }

    fn with_block(&mut self) -> Result<StmtKind> {
        let mut values = Vec::new();
        while !matches!(self.peek(), TokenKind::BlockEnd) {
            let name = self.name()?;
            self.expect_op("=")?;
            values.push((name, self.expression()?.expr));
            self.skip_op(",");
        }
        Ok(StmtKind::With { values, body: self.whole_body("endwith")? })
    }
}

enum Block {
    Stmt(Box<StmtKind>),
    /// Statements that belong to the block around.
    Inline(Vec<Stmt>),
}

// --- expressions ------------------------------------------------------------------------------------------------

impl Parser {
    /// An expression, or several with commas between, which are a tuple.
    fn tuple(&mut self) -> Result<Node> {
        self.tuple_of(Self::expression)
    }

    fn tuple_of(&mut self, item: fn(&mut Self) -> Result<Node>) -> Result<Node> {
        let first = item(self)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let (mut depth, mut items) = (first.depth, vec![first.expr]);
        while self.skip_op(",") {
            if self.ends_tuple() {
                break;
            }
            let next = item(self)?;
            depth = depth.max(next.depth);
            items.push(next.expr);
        }
        self.node(Expr::List(items), depth)
    }

    fn ends_tuple(&self) -> bool {
        matches!(self.peek(), TokenKind::BlockEnd | TokenKind::PrintEnd | TokenKind::Op(")" | "]" | "}" | "="))
    }

    fn expression(&mut self) -> Result<Node> {
        self.nested(|parser| {
            let mut node = parser.or()?;
            while parser.skip_name("if") {
                let condition = parser.or()?;
                let otherwise = if parser.skip_name("else") { Some(parser.expression()?) } else { None };
                let depth = node.depth.max(condition.depth).max(otherwise.as_ref().map_or(0, |node| node.depth));
                let expr = Expr::If {
                    condition: condition.expr.into(),
                    then: node.expr.into(),
                    otherwise: otherwise.map(|node| node.expr.into()),
                };
                node = parser.node(expr, depth)?;
            }
            Ok(node)
        })
    }

    fn or(&mut self) -> Result<Node> {
        let mut node = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            node = self.node(Expr::Or((node.expr, right.expr).into()), node.depth.max(right.depth))?;
        }
        Ok(node)
    }

    fn and(&mut self) -> Result<Node> {
        let mut node = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            node = self.node(Expr::And((node.expr, right.expr).into()), node.depth.max(right.depth))?;
        }
        Ok(node)
    }

    fn not(&mut self) -> Result<Node> {
        if !self.skip_name("not") {
            return self.comparison();
        }
        let inner = self.nested(Self::not)?;
        self.node(Expr::Not(inner.expr.into()), inner.depth)
    }

    fn comparison(&mut self) -> Result<Node> {
        let first = self.binary(0)?;
        let (mut depth, mut rest) = (first.depth, Vec::new());
        while let Some(op) = self.comparison_operator() {
            let right = self.binary(0)?;
            depth = depth.max(right.depth);
            rest.push((op, right.expr));
        }
        if rest.is_empty() { Ok(first) } else { self.node(Expr::Compare(first.expr.into(), rest), depth) }
    }

    fn comparison_operator(&mut self) -> Option<CompareOp> {
        if let Some((_, op)) = COMPARISONS.iter().find(|(text, _)| self.is_op(text)) {
            self.at += 1;
            return Some(*op);
        }
        if self.skip_name("in") {
            return Some(CompareOp::In);
        }
        let not_in = self.is_name("not")
            && matches!(self.tokens.get(self.at + 1), Some(Token { kind: TokenKind::Name(name), .. }) if **name == *"in");
        if not_in {
            self.at += 2;
        }
        not_in.then_some(CompareOp::NotIn)
    }

    fn binary(&mut self, rank: usize) -> Result<Node> {
        let Some(operators) = BINARY.get(rank) else { return self.unary(true) };
        let mut node = self.binary(rank + 1)?;
        while let Some(&(_, op)) = operators.iter().find(|(text, _)| self.is_op(text)) {
            self.at += 1;
            let right = self.binary(rank + 1)?;
            node = self.node(Expr::Binary(op, (node.expr, right.expr).into()), node.depth.max(right.depth))?;
        }
        Ok(node)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Node> {
        let sign = if self.skip_op("-") { Some(Expr::Negative as fn(_) -> _) } else { None };
        let sign = if sign.is_none() && self.skip_op("+") { Some(Expr::Positive as fn(_) -> _) } else { sign };
        let mut node = match sign {
            Some(sign) => {
                let inner = self.nested(|parser| parser.unary(false))?;
                self.node(sign(Box::new(inner.expr)), inner.depth)?
            }
            None => self.primary()?,
        };
        node = self.postfix(node)?;
        if with_filters { self.filters_and_tests(node) } else { Ok(node) }
    }

    fn primary(&mut self) -> Result<Node> {
        let token = self.next();
        Ok(Node::leaf(match token {
            TokenKind::Name(name) => match &*name {
                "true" | "True" => Expr::Const(Value::Bool(true)),
                "false" | "False" => Expr::Const(Value::Bool(false)),
                "none" | "None" => Expr::Const(Value::None),
                _ => Expr::Name(name),
            },
            TokenKind::Int(n) => Expr::Const(Value::Int(n)),
            TokenKind::Float(x) => Expr::Const(Value::Float(x)),
            TokenKind::Str(first) => Expr::Const(Value::Str(self.adjacent_strings(first))),
            TokenKind::Op("(") => return self.parenthesis(),
            TokenKind::Op("[") => return self.list(),
            TokenKind::Op("{") => return self.dict(),
            other => return self.fail(format!("unexpected {}", shown(&other))),
        }))
    }

    /// String literals side by side are one, as in Python.
    fn adjacent_strings(&mut self, first: Arc<str>) -> Arc<str> {
        let mut joined = String::new();
        while let TokenKind::Str(next) = self.peek() {
            if joined.is_empty() {
                joined.push_str(&first);
            }
            joined.push_str(next);
            self.at += 1;
        }
        if joined.is_empty() { first } else { joined.into() }
    }

    fn parenthesis(&mut self) -> Result<Node> {
        if self.skip_op(")") {
            return Ok(Node::leaf(Expr::List(vec![])));
        }
        let node = self.tuple()?;
        self.expect_op(")")?;
        Ok(node)
    }

    fn list(&mut self) -> Result<Node> {
        let (mut items, mut depth) = (Vec::new(), 0);
        while !self.skip_op("]") {
            let item = self.expression()?;
            depth = depth.max(item.depth);
            items.push(item.expr);
            if !self.is_op("]") {
                self.expect_op(",")?;
            }
        }
        self.node(Expr::List(items), depth)
    }

    fn dict(&mut self) -> Result<Node> {
        let (mut pairs, mut depth) = (Vec::new(), 0);
        while !self.skip_op("}") {
            let key = self.expression()?;
            self.expect_op(":")?;
            let value = self.expression()?;
            depth = depth.max(key.depth).max(value.depth);
            pairs.push((key.expr, value.expr));
            if !self.is_op("}") {
                self.expect_op(",")?;
            }
        }
        self.node(Expr::Dict(pairs), depth)
    }

    fn postfix(&mut self, mut node: Node) -> Result<Node> {
        loop {
            if self.skip_op(".") {
                let expr = match self.next() {
                    TokenKind::Name(name) => Expr::Attribute(node.expr.into(), name),
                    TokenKind::Int(n) => Expr::Item((node.expr, Expr::Const(Value::Int(n))).into()),
                    other => return self.fail(format!("expected a name after `.`, found {}", shown(&other))),
                };
                node = self.node(expr, node.depth)?;
            } else if self.skip_op("[") {
                node = self.subscript(node)?;
            } else if self.is_op("(") {
                let (args, depth) = self.optional_args()?;
                node = self.node(Expr::Call(node.expr.into(), args), node.depth.max(depth))?;
            } else {
                return Ok(node);
            }
        }
    }

    fn subscript(&mut self, node: Node) -> Result<Node> {
        let (mut bounds, mut depth) = ([None, None, None], node.depth);
        let mut colons = 0;
        loop {
            if self.is_op(":") && colons < 2 {
                colons += 1;
                self.at += 1;
            } else if self.skip_op("]") {
                break;
            } else if bounds[colons].is_none() {
                let bound = self.expression()?;
                depth = depth.max(bound.depth);
                bounds[colons] = Some(bound.expr);
            } else {
                return self.fail(format!("expected `]`, found {}", shown(self.peek())));
            }
        }
        match (colons, bounds) {
            (0, [Some(index), ..]) => self.node(Expr::Item((node.expr, index).into()), depth),
            (0, _) => self.fail("expected an index between `[` and `]`"),
            (_, bounds) => self.node(Expr::Slice(node.expr.into(), bounds.map(|bound| bound.map(Box::new))), depth),
        }
    }

    /// Arguments in parentheses, none without, and the depth of the deepest.
    fn optional_args(&mut self) -> Result<(Args, usize)> {
        let (mut args, mut depth) = (Args::default(), 0);
        if !self.skip_op("(") {
            return Ok((args, depth));
        }
        while !self.skip_op(")") {
            let named = matches!(self.tokens.get(self.at + 1), Some(Token { kind: TokenKind::Op("="), .. }));
            let name = if named { Some(self.name()?) } else { None };
            self.at += usize::from(named);
            let value = self.expression()?;
            depth = depth.max(value.depth);
            match name {
                Some(name) => args.named.push((name, value.expr)),
                None => args.positional.push(value.expr),
            }
            if !self.is_op(")") {
                self.expect_op(",")?;
            }
        }
        Ok((args, depth))
    }

    fn filters_and_tests(&mut self, mut node: Node) -> Result<Node> {
        loop {
            if self.skip_op("|") {
                let name = self.name()?;
                let (args, depth) = self.optional_args()?;
                node = self.node(Expr::Filter(node.expr.into(), name, args), node.depth.max(depth))?;
            } else if self.skip_name("is") {
                node = self.test(node)?;
            } else if self.is_op("(") {
                let (args, depth) = self.optional_args()?;
                node = self.node(Expr::Call(node.expr.into(), args), node.depth.max(depth))?;
            } else {
                return Ok(node);
            }
        }
    }

    fn test(&mut self, node: Node) -> Result<Node> {
        let negated = self.skip_name("not");
        let name = self.name()?;
        let (args, depth) = if self.begins_argument() {
            let argument = self.primary()?;
            let argument = self.postfix(argument)?;
            (Args { positional: vec![argument.expr], named: vec![] }, argument.depth)
        } else {
            self.optional_args()?
        };
        let node = self.node(Expr::Test(node.expr.into(), name, args), node.depth.max(depth))?;
        if negated { self.node(Expr::Not(node.expr.into()), node.depth) } else { Ok(node) }
    }

    /// Whether an argument without parentheses follows the name of a test.
    fn begins_argument(&self) -> bool {
        match self.peek() {
            TokenKind::Name(name) => !matches!(&**name, "else" | "or" | "and" | "is" | "if" | "not" | "in"),
            TokenKind::Str(_) | TokenKind::Int(_) | TokenKind::Float(_) | TokenKind::Op("[" | "{") => true,
            _ => false,
        }
    }
}
