//! Byte-pair encoding with merges rebuilt from the scores of pieces.
//!
//! SentencePiece merges the two neighbours whose joined text has the highest score. The merges of `tokenizer.json` are
//! ranked pairs, so every split of a piece into two pieces becomes a pair, ordered by the score of the piece.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::proto::{Algorithm, ModelProto, Piece, PieceKind};

/// Maximum bytes that are compared to find the splits of all pieces; published models need 50 million.
const MAX_WORK: usize = 1 << 30;

/// The model of `tokenizer.json`. Characters without a piece are bytes, or else unknown text in one token.
pub(super) fn model(model: &ModelProto) -> Result<Value, String> {
    let vocab: Map<String, Value> =
        model.pieces.iter().zip(0u32..).map(|(p, id)| (p.text.clone(), json!(id))).collect();
    let unknown = &model.pieces[model.unknown()?].text;
    let merges = if model.algorithm == Algorithm::Char { Vec::new() } else { merges(&model.pieces)? };
    // A user-defined piece is a whole word here, of which no merges exist.
    let whole = model.pieces.iter().any(|piece| piece.kind == PieceKind::UserDefined);
    Ok(json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": model.byte_fallback,
        "ignore_merges": whole, "vocab": vocab, "merges": merges,
    }))
}

/// Pairs of pieces in the order in which they are merged.
fn merges(pieces: &[Piece]) -> Result<Vec<[&str; 2]>, String> {
    let work = pieces.iter().fold(0usize, |sum, piece| sum.saturating_add(piece.text.len().saturating_pow(2)));
    if work > MAX_WORK {
        return Err("has pieces that are too long".into());
    }
    let normal = |&(_, piece): &(usize, &Piece)| piece.kind == PieceKind::Normal;
    let ids: HashMap<&str, usize> =
        pieces.iter().enumerate().filter(normal).map(|(id, piece)| (piece.text.as_str(), id)).collect();
    let mut ranked = Vec::new();
    for (id, piece) in pieces.iter().enumerate().filter(normal) {
        let splits = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
        for (left, right) in splits {
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                ranked.push(((Reverse(sortable(piece.score)), id, *l, *r), [left, right]));
            }
        }
    }
    ranked.sort_unstable_by_key(|(rank, _)| *rank);
    Ok(ranked.into_iter().map(|(_, pair)| pair).collect())
}

/// An integer with the order of finite floats.
fn sortable(score: f32) -> i32 {
    // Adding zero makes -0 and 0 equal.
    let bits = (score + 0.0).to_bits() as i32;
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32) -> Piece {
        Piece { text: text.into(), score, kind: PieceKind::Normal }
    }

    #[test]
    fn merges_follow_the_scores_and_need_both_parts() {
        let pieces = [piece("ab", -2.0), piece("abc", -1.0), piece("a", -9.0), piece("b", -9.0), piece("c", -9.0)];
        assert_eq!(merges(&pieces).unwrap(), [["ab", "c"], ["a", "b"]]);
    }

    #[test]
    fn floats_and_their_integers_have_the_same_order() {
        let scores = [f32::MIN, -2.5, -1.0, -f32::MIN_POSITIVE, 0.0, 1e-9, 3.0];
        assert!(scores.is_sorted_by_key(|&score| sortable(score)));
        assert_eq!(sortable(-0.0), sortable(0.0));
    }
}
