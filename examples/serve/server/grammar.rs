//! Grammars of answers in JSON, compiled by llguidance for the model's vocabulary.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::thread;

use haplovl::Error;
use haplovl::generation::{AnswerEnd, Constraint, ConstraintState, TokenMask};
use haplovl::pipeline::LoadedModel;
use haplovl::processor::TokenBytes;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Map, Value};

use super::error::ApiError;

/// Field of requests that errors name.
const FIELD: &str = "response_format";
/// Between the parts of JSON: nothing, a space, or a line break and its indentation, so that no answer is blanks alone.
const BLANKS: &str = r" |\n {0,40}";
/// Stack of the thread that compiles a schema. It is memory only where it is used; references can follow each other as
/// often as a schema has values.
const STACK_BYTES: usize = 512 << 20;

/// Longest token that a grammar uses.
const MAX_TOKEN_BYTES: usize = 1 << 9;

/// The grammars of a vocabulary, which is read once.
#[derive(Default)]
pub struct Grammars(OnceLock<Result<Vocabulary, String>>);

/// A vocabulary as llguidance needs it.
struct Vocabulary {
    factory: ParserFactory,
    first: FirstTokens,
}

/// For each token that has other bytes at the beginning of a text, a token with these bytes elsewhere, if there is one.
type FirstTokens = Arc<HashMap<u32, Option<u32>>>;

impl Grammars {
    /// Reads the vocabulary, so that no request waits for it: 150,000 tokens take a second.
    pub fn prepare(&self, model: &LoadedModel) {
        self.vocabulary(model);
    }

    fn vocabulary(&self, model: &LoadedModel) -> &Result<Vocabulary, String> {
        self.0.get_or_init(|| Vocabulary::new(model))
    }

    /// The constraint to the JSON texts that are valid by a checked schema.
    pub fn compile(&self, model: &LoadedModel, schema: Map<String, Value>) -> Result<Arc<dyn Constraint>, ApiError> {
        let vocabulary = self.vocabulary(model);
        let vocabulary = vocabulary.as_ref().map_err(|problem| ApiError::invalid(FIELD, problem))?;
        let compiled = thread::scope(|scope| {
            let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
            let compiling = thread.spawn_scoped(scope, || vocabulary.grammar(schema));
            let compiling = compiling.map_err(|e| ApiError::internal(format!("no thread can be started: {e}")))?;
            let panicked = |_| ApiError::internal("a schema made the server's code panic; this is a bug");
            compiling.join().map_err(panicked)
        });
        let refused = |problem: String| {
            ApiError::invalid(FIELD, format!("`{FIELD}` has a schema that cannot be used: {problem}"))
        };
        Ok(Arc::new(compiled?.map_err(refused)?))
    }
}

impl Vocabulary {
    fn new(model: &LoadedModel) -> Result<Self, String> {
        let size = model.model().config().vocab_size;
        let tokens = model.processor().tokenizer().token_bytes(size).map_err(|e| e.to_string())?;
        if let Some(missing) = tokens.missing_ascii() {
            return Err(format!(
                "`{FIELD}` needs a vocabulary that can write all JSON, but the model's has no token {missing:?}: ask for \
                 the form in the prompt, and check the answer"
            ));
        }
        let first = first_tokens(&tokens);
        let mut bytes = tokens.bytes().to_vec();
        // The trie has no room for them; what they write, others write too.
        bytes.iter_mut().filter(|bytes| bytes.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
        // llguidance ends texts by a token; the engine knows the model's, so that one beyond the vocabulary serves.
        bytes.push(b"\xFFend".to_vec());
        let trie = TokTrie::from(&TokRxInfo::new(bytes.len() as u32, size as u32), &bytes);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(problem_of)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, first: Arc::new(first) })
    }

    fn grammar(&self, mut schema: Map<String, Value>) -> Result<Grammar, String> {
        let options = JsonCompileOptions { whitespace_pattern: Some(BLANKS.into()), ..JsonCompileOptions::default() };
        let options = serde_json::to_value(options).map_err(|e| e.to_string())?;
        schema.insert("x-guidance".into(), options);
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema.into()));
        let mut matcher = Matcher::new(parser);
        // The first tokens are computed here, and an error of the grammar is found.
        matcher.compute_mask().map_err(problem_of)?;
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(warning.clone());
        }
        let mut grammar = GrammarState { matcher, first: Arc::clone(&self.first), is_first: true };
        match grammar.allowed().map_err(|e| e.to_string())?.is_empty() {
            true => Err("no token of the model's vocabulary begins such a text".into()),
            false => Ok(Grammar { matcher: grammar.matcher, first: grammar.first }),
        }
    }
}

/// Limits of time and memory. A token of a usual schema takes milliseconds, and with these limits one of a hostile pattern no
/// more than ten; with the lexer's default of 200,000 steps of work for a token, it came near a second.
fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 10_000,
        max_grammar_size: 100_000,
        step_lexer_fuel: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn first_tokens(tokens: &TokenBytes) -> HashMap<u32, Option<u32>> {
    let mut ids = HashMap::new();
    for (id, bytes) in (0u32..).zip(tokens.bytes()).filter(|(_, bytes)| !bytes.is_empty()) {
        ids.entry(bytes).or_insert(id);
    }
    tokens.first_bytes().iter().map(|(id, bytes)| (*id, ids.get(bytes).copied())).collect()
}

/// An error of llguidance in one line. Those of patterns say in their last line what is wrong.
fn problem_of(error: impl fmt::Display) -> String {
    let text = error.to_string();
    let (first, last) = (text.lines().next().unwrap_or_default(), text.lines().last().unwrap_or_default());
    match first {
        "NoExtensionBias" => "no text that the model's tokens can write is valid by it".into(),
        "regex parse error:" => format!("a pattern cannot be read, {last}"),
        _ if first.starts_with("oneOf ") => "a value may fit two schemas of a `oneOf`: use `anyOf`".into(),
        _ => first.into(),
    }
}

/// A compiled grammar, in its state before the first token.
struct Grammar {
    matcher: Matcher,
    first: FirstTokens,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

impl Constraint for Grammar {
    fn start(&self) -> haplovl::Result<Box<dyn ConstraintState>> {
        // With caches of its own: its limits must not depend on other answers.
        let matcher = self.matcher.deep_clone();
        Ok(Box::new(GrammarState { matcher, first: Arc::clone(&self.first), is_first: true }))
    }
}

/// The state of a grammar after the tokens of an answer so far.
struct GrammarState {
    matcher: Matcher,
    first: FirstTokens,
    is_first: bool,
}

impl ConstraintState for GrammarState {
    fn allowed(&mut self) -> haplovl::Result<TokenMask> {
        if self.matcher.is_stopped() {
            return Ok(TokenMask::default());
        }
        let mut mask = self.matcher.compute_mask().map_err(too_complex)?;
        if self.is_first {
            let allowed = |same: &Option<u32>| same.is_some_and(|id| mask.is_allowed(id));
            let first = Vec::from_iter(self.first.iter().map(|(id, same)| (*id as usize, allowed(same))));
            first.into_iter().for_each(|(id, allowed)| mask.set(id, allowed));
        }
        Ok(TokenMask::from_words(mask.as_slice().to_vec()))
    }

    fn accept(&mut self, id: u32) -> haplovl::Result<()> {
        let is_first = std::mem::take(&mut self.is_first);
        let same = self.first.get(&id).filter(|_| is_first).copied().flatten();
        self.matcher.consume_token(same.unwrap_or(id)).map_err(too_complex)
    }

    fn end(&mut self) -> haplovl::Result<AnswerEnd> {
        if self.matcher.is_stopped() {
            return Ok(AnswerEnd::Required);
        }
        let may_end = self.matcher.is_accepting().map_err(too_complex)?;
        Ok(if may_end { AnswerEnd::Allowed } else { AnswerEnd::Forbidden })
    }
}

fn too_complex(error: impl fmt::Display) -> Error {
    let problem = problem_of(error);
    Error::config(FIELD, format!("has a schema that this answer cannot go on with: {problem:.150}; simplify it"))
}
