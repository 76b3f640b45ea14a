//! SentencePiece's `ModelProto`: pieces with scores, and the settings of trainer and normaliser that matter for
//! encoding.

use std::collections::HashSet;

use super::wire::{Fields, Parsed};

/// Maximum number of pieces; published models reach 256,000.
const MAX_PIECES: usize = 1 << 20;

/// Kind of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal,
    Unknown,
    /// Never found in a text, such as `<s>`.
    Control,
    /// Found in a text before any other piece, whole.
    UserDefined,
    /// Left out of the vocabulary.
    Unused,
    /// One byte of a character that the vocabulary lacks.
    Byte,
}

/// Entry of the vocabulary; its id is its position.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// Algorithm that splits a text into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
    Word,
    Char,
}

/// Content of a `tokenizer.model`; defaults are those of the format.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelProto {
    pub(super) pieces: Vec<Piece>,
    pub(super) algorithm: Algorithm,
    pub(super) byte_fallback: bool,
    /// Whether a space belongs to the word before it instead of the word after it.
    pub(super) treat_whitespace_as_suffix: bool,
    /// Replacements of characters, compiled to a trie; empty for none.
    pub(super) precompiled_charsmap: Vec<u8>,
    /// Whether a space is put before a text.
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    /// Whether a space is written `▁` in pieces.
    pub(super) escape_whitespaces: bool,
}

impl ModelProto {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// The reason why these are not the bytes of a usable model.
    pub(super) fn parse(bytes: &[u8]) -> Parsed<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            treat_whitespace_as_suffix: false,
            precompiled_charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Fields::new(bytes) {
            match field? {
                (1, piece) => model.add_piece(Piece::parse(piece.bytes()?)?)?,
                (2, trainer) => model.read_trainer(trainer.bytes()?)?,
                (3, normalizer) => model.read_normalizer(normalizer.bytes()?)?,
                _ => {}
            }
        }
        model.check()?;
        Ok(model)
    }

    /// Id of the piece of unknown text.
    pub(super) fn unknown(&self) -> Parsed<usize> {
        let mut unknown = self.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == PieceKind::Unknown);
        match (unknown.next(), unknown.next()) {
            (Some((id, _)), None) => Ok(id),
            (None, _) => Err("has no piece for unknown text".into()),
            (Some((first, _)), Some((second, _))) => {
                Err(format!("has two pieces for unknown text, {first} and {second}"))
            }
        }
    }

    fn add_piece(&mut self, piece: Piece) -> Parsed<()> {
        if self.pieces.len() == MAX_PIECES {
            return Err(format!("has more than {MAX_PIECES} pieces"));
        }
        self.pieces.push(piece);
        Ok(())
    }

    fn read_trainer(&mut self, message: &[u8]) -> Parsed<()> {
        for field in Fields::new(message) {
            match field? {
                (3, kind) => self.algorithm = algorithm(kind.integer()?)?,
                (24, suffix) => self.treat_whitespace_as_suffix = suffix.integer()? != 0,
                (35, fallback) => self.byte_fallback = fallback.integer()? != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, message: &[u8]) -> Parsed<()> {
        for field in Fields::new(message) {
            match field? {
                (2, map) => self.precompiled_charsmap = map.bytes()?.to_vec(),
                (3, prefix) => self.add_dummy_prefix = prefix.integer()? != 0,
                (4, remove) => self.remove_extra_whitespaces = remove.integer()? != 0,
                (5, escape) => self.escape_whitespaces = escape.integer()? != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Parsed<()> {
        if self.pieces.is_empty() {
            return Err("holds no pieces: it is empty or no SentencePiece model".into());
        }
        let mut seen = HashSet::new();
        for (id, piece) in self.pieces.iter().enumerate() {
            if piece.text.is_empty() || !piece.score.is_finite() {
                return Err(format!("piece {id} is empty or has no finite score"));
            }
            if !seen.insert(&piece.text) {
                return Err(format!("piece {id} `{}` is there twice", piece.text));
            }
        }
        self.unknown().map(drop)
    }
}

impl Piece {
    fn parse(message: &[u8]) -> Parsed<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: PieceKind::Normal };
        for field in Fields::new(message) {
            match field? {
                (1, text) => {
                    let text = str::from_utf8(text.bytes()?).map_err(|_| "has a piece that is not UTF-8")?;
                    piece.text = text.into();
                }
                (2, score) => piece.score = score.float()?,
                (3, kind) => piece.kind = piece_kind(kind.integer()?)?,
                _ => {}
            }
        }
        Ok(piece)
    }
}

fn algorithm(code: u64) -> Parsed<Algorithm> {
    let all = [Algorithm::Unigram, Algorithm::Bpe, Algorithm::Word, Algorithm::Char];
    let found = usize::try_from(code).ok().and_then(|code| all.get(code.checked_sub(1)?));
    found.copied().ok_or_else(|| format!("`model_type` is {code}, expected 1 to 4"))
}

fn piece_kind(code: u64) -> Parsed<PieceKind> {
    Ok(match code {
        1 => PieceKind::Normal,
        2 => PieceKind::Unknown,
        3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        5 => PieceKind::Unused,
        6 => PieceKind::Byte,
        other => return Err(format!("has a piece of type {other}, expected 1 to 6")),
    })
}
