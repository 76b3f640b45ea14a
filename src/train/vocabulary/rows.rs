//! Rows of a pretrained model's vocabulary for the tokens of a run.

use crate::Result;
use crate::processor::TextTokenizer;
use crate::weights::{RowMap, RowSource};

/// The source of each row of the run's vocabulary of `new_rows` rows: the row of the same token of `source`, whose table
/// has `old_rows` rows, or the mean of the rows of its pieces.
///
/// Rows beyond both vocabularies, with which published tables are padded, stay where they are.
pub(in crate::train) fn row_map(
    source: &TextTokenizer,
    old_rows: usize,
    run: &TextTokenizer,
    new_rows: usize,
) -> Result<RowMap> {
    let has_row = |id: &u32| (*id as usize) < old_rows;
    let row = |id: u32| -> RowSource {
        let Some(token) = run.inner().id_to_token(id) else {
            let padding = has_row(&id) && source.inner().id_to_token(id).is_none();
            return if padding { RowSource::Row(id) } else { RowSource::Mean };
        };
        match source.id(&token).filter(has_row) {
            Some(old) => RowSource::Row(old),
            None => pieces(source, run, id, &token, has_row),
        }
    };
    RowMap::new((0..u32::try_from(new_rows).unwrap_or(u32::MAX)).map(row).collect(), old_rows)
}

/// Rows of the pieces of a token that the source lacks.
fn pieces(
    source: &TextTokenizer,
    run: &TextTokenizer,
    id: u32,
    token: &str,
    has_row: impl Fn(&u32) -> bool,
) -> RowSource {
    if run.is_special(id) {
        return RowSource::Mean;
    }
    // A part of a character has no text.
    let text = run.decode(&[id], false).ok().filter(|text| !text.is_empty() && !text.contains('\u{FFFD}'));
    let pieces = source.encode(text.as_deref().unwrap_or(token)).unwrap_or_default();
    let known: Vec<u32> = pieces.into_iter().filter(|id| has_row(id) && !source.is_unknown(*id)).collect();
    if known.is_empty() { RowSource::Mean } else { RowSource::Pieces(known) }
}
