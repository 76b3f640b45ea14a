//! Files compressed with gzip, which are decompressed once into a temporary file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// Decompressed bytes that any file may have, and how many more for each of its own bytes. Text shrinks to a twentieth
/// at best; hostile files to a thousandth.
const FREE_BYTES: u64 = 1 << 30;
const MAX_RATIO: u64 = 100;

/// First bytes of a gzip file.
pub(super) const MAGIC: &[u8] = b"\x1f\x8b";

/// The decompressed content of an open file that is called `path` in messages, in a file that is deleted when it is
/// closed.
///
/// # Errors
/// [`Error::Format`] if the file is damaged or expands beyond all measure; [`Error::Data`] if the temporary file cannot
/// be written.
pub(super) fn decompress(path: &Path, file: &File) -> Result<File> {
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let limit = FREE_BYTES.saturating_add(length.saturating_mul(MAX_RATIO));
    let mut source = MultiGzDecoder::new(BufReader::new(file)).take(limit + 1);
    let mut out = tempfile::tempfile().map_err(unwritable)?;
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let count = source.read(&mut buffer).map_err(|e| damaged(path, e))?;
        if count == 0 {
            break;
        }
        total += count as u64;
        std::io::Write::write_all(&mut out, buffer.get(..count).unwrap_or_default()).map_err(unwritable)?;
    }
    if total > limit {
        let message =
            format!("expands to more than {limit} bytes, {MAX_RATIO} times its own: decompress it with gunzip");
        return Err(Error::format(path, message));
    }
    out.seek(SeekFrom::Start(0)).map_err(unwritable)?;
    Ok(out)
}

fn damaged(path: &Path, error: std::io::Error) -> Error {
    let message = format!("is damaged or truncated ({error}): copy or download it again");
    Error::format(path, message).caused_by(error)
}

/// The error for a temporary file that cannot be written.
pub(super) fn unwritable(error: std::io::Error) -> Error {
    let message = format!(
        "the temporary file for decoded data cannot be written ({error}): free space in {}, or choose another \
         folder with TMPDIR",
        std::env::temp_dir().display()
    );
    Error::data(message).caused_by(error)
}
