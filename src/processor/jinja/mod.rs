//! A bounded interpreter of the part of Jinja that chat templates are written in.
//!
//! A chat template is a program of strangers. This interpreter charges every operation to a budget before it allocates or loops
//! (`budget.rs`), limits the nesting of syntax and of values, and keeps values immutable but for namespaces, which cannot
//! be part of a value; so no template takes memory or time without end. What it does not know is an error that names it.

mod arguments;
mod ast;
mod budget;
mod filters;
mod format;
mod interpreter;
mod lexer;
mod methods;
mod operators;
mod parser;
mod predicates;
mod text;
mod value;

pub(super) use value::Value;

/// Largest template source.
pub(super) const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Why a template cannot be compiled or rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    message: String,
    line: Option<usize>,
}

type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), line: None }
    }

    fn syntax(message: impl Into<String>, line: usize) -> Self {
        Self {
            message: format!("syntax error: {}; mend the checkpoint's chat template", message.into()),
            line: Some(line),
        }
    }

    fn at(self, line: usize) -> Self {
        Self { line: self.line.or(Some(line)), ..self }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{} (line {line})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    body: Vec<ast::Stmt>,
    tags: Vec<String>,
}

impl Template {
    /// Compiles a source of at most [`MAX_SOURCE_BYTES`].
    pub(super) fn new(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            let message = format!("is {} bytes long, expected at most {MAX_SOURCE_BYTES}", source.len());
            return Err(Failure::new(message));
        }
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let tokens = lexer::tokens(source.strip_suffix('\n').unwrap_or(&source))?;
        let tags = tags(&tokens);
        Ok(Self { body: parser::parse(tokens)?, tags })
    }

    /// Tags such as `<think>` that the template looks for in texts, where it may cut them.
    pub(super) fn tags(&self) -> &[String] {
        &self.tags
    }

    /// Renders with these variables.
    pub(super) fn render<'k>(&self, variables: impl IntoIterator<Item = (&'k str, Value)>) -> Result<String> {
        interpreter::render(&self.body, variables)
    }
}

/// Tags in a template's `'<tag>' in text` and `text.split('<tag>')`, without white space around them.
fn tags(tokens: &[lexer::Token]) -> Vec<String> {
    use lexer::TokenKind::{Name, Op, Str};
    const SEARCHES: [&str; 6] = ["split", "rsplit", "partition", "rpartition", "find", "rfind"];
    let mut tags = Vec::new();
    for window in tokens.windows(3) {
        let constant = match [&window[0].kind, &window[1].kind, &window[2].kind] {
            [Name(method), Op("("), Str(constant)] if SEARCHES.contains(&&**method) => constant,
            [Str(constant), Name(word), _] if matches!(&**word, "in" | "not") => constant,
            _ => continue,
        };
        let tag = constant.trim();
        if is_tag(tag) && !tags.iter().any(|known| known == tag) {
            tags.push(tag.to_string());
        }
    }
    tags
}

fn is_tag(text: &str) -> bool {
    const MAX_TAG_BYTES: usize = 64;
    let is_bracketed =
        [('<', '>'), ('[', ']')].iter().any(|&(first, last)| text.starts_with(first) && text.ends_with(last));
    let is_control = text.starts_with("<|") || text.starts_with("<｜");
    is_bracketed && !is_control && (3..=MAX_TAG_BYTES).contains(&text.len())
}
