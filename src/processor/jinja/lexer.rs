//! Tokens of a template, with Jinja's control of white space (`trim_blocks` and `lstrip_blocks`, as HF sets them).

use std::sync::Arc;

use super::{Failure, Result};

/// A token and its line.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) line: usize,
    pub(super) kind: TokenKind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    Text(Arc<str>),
    BlockStart,
    BlockEnd,
    PrintStart,
    PrintEnd,
    Name(Arc<str>),
    Str(Arc<str>),
    Int(i64),
    Float(f64),
    Op(&'static str),
    End,
}

const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", "<=", ">=", "+", "-", "/", "*", "%", "~", "<", ">", "=", ".", ",", ":", "|", "(", ")", "[",
    "]", "{", "}", ";", "!",
];

/// Longest name: looking it up counts as one step.
const MAX_NAME_BYTES: usize = 256;

/// Splits a whole template.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>> {
    let mut lexer = Lexer { source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.text_and_tag()?;
    }
    lexer.push(TokenKind::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    /// Whether the last tag swallowed a line break.
    line_starting: bool,
    tokens: Vec<Token>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: TokenKind) {
        self.tokens.push(Token { line: self.line, kind });
    }

    fn advance(&mut self, bytes: usize) -> &'s str {
        let passed = &self.rest()[..bytes];
        self.line += passed.matches('\n').count();
        self.at += bytes;
        passed
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Failure::syntax(message, self.line))
    }

    /// The text before the next tag, and the tag.
    fn text_and_tag(&mut self) -> Result<()> {
        let rest = self.rest();
        let Some(open) = next_tag(rest) else {
            let text = self.advance(rest.len());
            self.push_text(text);
            return Ok(());
        };
        self.text(open);
        let tag = &rest[open..open + 2];
        self.advance(2);
        if self.rest().starts_with(['-', '+']) {
            self.advance(1);
        }
        match tag {
            "{#" => self.comment(),
            "{%" => match self.raw_start() {
                Some(length) => self.raw(length),
                None => self.tag(TokenKind::BlockStart, TokenKind::BlockEnd, "%}"),
            },
            _ => self.tag(TokenKind::PrintStart, TokenKind::PrintEnd, "}}"),
        }
    }

    /// The text up to the tag at `open`, without the white space that the tag takes away.
    fn text(&mut self, open: usize) {
        let (text, tag) = self.rest().split_at(open);
        let kept = match tag.as_bytes().get(2) {
            Some(b'-') => text.trim_end(),
            Some(b'+') => text,
            _ if tag.starts_with("{{") => text,
            _ => self.without_indent(text),
        };
        self.push_text(kept);
        self.advance(open);
    }

    fn push_text(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(TokenKind::Text(text.into()));
        }
    }

    /// `lstrip_blocks`: the white space between the start of a line and a block is no text.
    fn without_indent<'t>(&self, text: &'t str) -> &'t str {
        let start = text.rfind('\n').map_or(0, |at| at + 1);
        let begins_line = start > 0 || self.line_starting;
        if begins_line && text[start..].chars().all(char::is_whitespace) { &text[..start] } else { text }
    }

    /// Ends a tag whose end mark is next, the sign before it included, and takes white space after it away.
    fn close(&mut self, mark: &str) {
        let from = self.at;
        let trims = self.rest().starts_with('-');
        let keeps = self.rest().starts_with('+');
        self.advance(mark.len() + usize::from(trims || keeps));
        let rest = self.rest();
        if trims {
            self.advance(rest.len() - rest.trim_start().len());
        } else if !keeps && mark != "}}" && rest.starts_with('\n') {
            self.advance(1);
        }
        self.line_starting = self.source[from..self.at].ends_with('\n');
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest().find("#}") else { return self.fail("a comment does not end") };
        let signed = self.rest()[..end].ends_with(['-', '+']);
        self.advance(end - usize::from(signed));
        self.close("#}");
        Ok(())
    }

    /// The length of what is left of a `{% raw %}` whose start was read.
    fn raw_start(&self) -> Option<usize> {
        let rest = self.rest().trim_start().strip_prefix("raw")?.trim_start();
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        rest.starts_with("%}").then(|| self.rest().len() - rest.len() + 2)
    }

    fn raw(&mut self, length: usize) -> Result<()> {
        let trims = self.advance(length).ends_with("-%}");
        if trims {
            let rest = self.rest();
            self.advance(rest.len() - rest.trim_start().len());
        }
        self.line_starting = false;
        let mut from = 0;
        while let Some(open) = self.rest()[from..].find("{%").map(|at| from + at) {
            let inside = self.rest()[open + 2..].trim_start_matches(['-', '+']).trim_start();
            let after = inside.strip_prefix("endraw").map(str::trim_start);
            if let Some(after) = after.filter(|after| after.trim_start_matches(['-', '+']).starts_with("%}")) {
                let close = self.rest().len() - after.len();
                self.text(open);
                self.advance(close - open);
                self.close("%}");
                return Ok(());
            }
            from = open + 2;
        }
        self.fail("`{% raw %}` has no `{% endraw %}`")
    }

    /// The tokens of a tag. Its end mark counts only outside of brackets.
    fn tag(&mut self, start: TokenKind, end: TokenKind, mark: &str) -> Result<()> {
        self.push(start);
        let mut brackets = 0usize;
        loop {
            let rest = self.rest();
            self.advance(rest.len() - rest.trim_start().len());
            let rest = self.rest();
            if brackets == 0 && rest.strip_prefix(['-', '+']).unwrap_or(rest).starts_with(mark) {
                self.push(end);
                self.close(mark);
                return Ok(());
            }
            match self.token()? {
                Some(TokenKind::Op("(" | "[" | "{")) => brackets += 1,
                Some(TokenKind::Op(")" | "]" | "}")) => brackets = brackets.saturating_sub(1),
                Some(_) => {}
                None => return self.fail(format!("a tag does not end with `{mark}`")),
            }
        }
    }

    fn token(&mut self) -> Result<Option<TokenKind>> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(None) };
        let kind = match first {
            '"' | '\'' => self.string(first)?,
            '0'..='9' => self.number()?,
            c if c == '_' || c.is_alphabetic() => {
                let is_part = |c: char| c == '_' || c.is_alphanumeric();
                let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                if length > MAX_NAME_BYTES {
                    return self.fail(format!("a name is longer than {MAX_NAME_BYTES} bytes"));
                }
                TokenKind::Name(self.advance(length).into())
            }
            _ => match OPERATORS.iter().find(|op| rest.starts_with(**op)) {
                Some(op) => {
                    self.advance(op.len());
                    TokenKind::Op(op)
                }
                None => return self.fail(format!("unexpected {first:?}")),
            },
        };
        self.push(kind.clone());
        Ok(Some(kind))
    }

    fn string(&mut self, quote: char) -> Result<TokenKind> {
        let rest = &self.rest()[1..];
        let mut escaped = false;
        let end = rest.find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { return self.fail("a string does not end") };
        self.advance(end + 2);
        unescape(&rest[..end])
            .map_or_else(|| self.fail("a string holds a broken escape"), |text| Ok(TokenKind::Str(text.into())))
    }

    fn number(&mut self) -> Result<TokenKind> {
        let rest = self.rest();
        let digits = |from: usize| {
            let is_digit = |c: char| c.is_ascii_digit() || c == '_';
            rest[from..].find(|c| !is_digit(c)).map_or(rest.len(), |at| from + at)
        };
        let mut end = digits(0);
        let mut is_float = false;
        if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            (end, is_float) = (digits(end + 1), true);
        }
        if let Some(exponent) = rest[end..].strip_prefix(['e', 'E']) {
            let unsigned = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
                (end, is_float) = (digits(rest.len() - unsigned.len()), true);
            }
        }
        let text = self.advance(end).replace('_', "");
        let kind =
            if is_float { text.parse().ok().map(TokenKind::Float) } else { text.parse().ok().map(TokenKind::Int) };
        kind.map_or_else(|| self.fail("a number is too large"), Ok)
    }
}

/// The position of the next `{{`, `{%` or `{#`.
fn next_tag(source: &str) -> Option<usize> {
    let opens = |at: &usize| matches!(source.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
    source.match_indices('{').map(|(at, _)| at).find(opens)
}

/// A string literal's text, with Python's escapes.
fn unescape(literal: &str) -> Option<String> {
    let mut text = String::with_capacity(literal.len());
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        let escape = if c == '\\' { chars.next()? } else { '\0' };
        match (c, escape) {
            ('\\', 'n') => text.push('\n'),
            ('\\', 't') => text.push('\t'),
            ('\\', 'r') => text.push('\r'),
            ('\\', 'a') => text.push('\u{7}'),
            ('\\', 'b') => text.push('\u{8}'),
            ('\\', 'f') => text.push('\u{c}'),
            ('\\', 'v') => text.push('\u{b}'),
            ('\\', '\n') => {}
            ('\\', '\\' | '\'' | '"') => text.push(escape),
            ('\\', 'x') => text.push(code_point(&mut chars, 2)?),
            ('\\', 'u') => text.push(code_point(&mut chars, 4)?),
            ('\\', 'U') => text.push(code_point(&mut chars, 8)?),
            ('\\', '0') => text.push('\0'),
            // Python leaves unknown escapes as they are.
            ('\\', other) => text.extend(['\\', other]),
            (plain, _) => text.push(plain),
        }
    }
    Some(text)
}

fn code_point(chars: &mut std::str::Chars, digits: usize) -> Option<char> {
    let code = chars.as_str().get(..digits)?;
    *chars = chars.as_str()[digits..].chars();
    char::from_u32(u32::from_str_radix(code, 16).ok()?)
}
