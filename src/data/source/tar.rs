//! WebDataset shards: tar archives whose files of the same name, up to the first dot, are one record.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::super::dataset::out_of_range;
use super::super::fields::{
    Row, Value, extension, has_image_name, is_image_field, is_unreadable_image, parse_object, video_problem,
};
use super::super::{BadSample, LeftOut, SampleResult};
use super::rows::Rows;
use super::shared_file::SharedFile;
use crate::{Error, Result};

/// Files fill whole blocks.
const BLOCK_BYTES: u64 = 512;
/// Longest image in an archive, in bytes.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
/// Longest name of a file in an archive, in bytes.
const MAX_NAME_BYTES: u64 = 1 << 12;
/// Most bytes of extended attributes of a file.
const MAX_ATTRIBUTE_BYTES: u64 = 1 << 16;
/// Most files of a record; more mean that names are not unique.
const MAX_MEMBERS: usize = 1 << 10;
/// Extensions of text that is a caption.
const TEXTS: [&str; 3] = ["txt", "caption", "text"];

/// Records of an archive; only the names and offsets of their files are in memory.
#[derive(Debug)]
pub(super) struct TarRows {
    file: SharedFile,
    samples: Vec<Sample>,
    left_out: LeftOut,
}

#[derive(Debug)]
struct Sample {
    key: Box<str>,
    members: Vec<Member>,
}

/// A file of a record.
#[derive(Debug)]
struct Member {
    /// Name behind the key's dot.
    suffix: Box<str>,
    start: u64,
    bytes: u64,
    /// Whether the file is a link, whose content is elsewhere.
    is_link: bool,
}

impl TarRows {
    /// Indexes an open archive that is called `path` in messages.
    pub fn new(path: &Path, file: File) -> Result<Self> {
        let mut index = Index { end: file.metadata().map_err(|e| Error::io(path, e))?.len(), ..Index::default() };
        let mut archive = Archive::new(&file);
        let entries = archive.entries_with_seek().map_err(|e| damaged(path, &e.to_string()))?;
        for entry in entries.raw(true) {
            let entry = entry.map_err(|e| damaged(path, &e.to_string()))?;
            index.add(entry).map_err(|problem| damaged(path, &problem))?;
        }
        let Index { mut samples, mut left_out, .. } = index;
        samples.iter_mut().for_each(|sample| sample.leave_out_masks(&mut left_out));
        if samples.is_empty() {
            return Err(Error::format(path, "contains no record: expected files such as 0001.jpg beside 0001.txt"));
        }
        samples.iter_mut().for_each(|sample| sample.members.shrink_to_fit());
        samples.shrink_to_fit();
        Ok(Self { file: SharedFile::new(path, file), samples, left_out })
    }
}

impl Rows for TarRows {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn row(&self, index: usize) -> SampleResult<Row> {
        let sample = self.samples.get(index).ok_or_else(|| out_of_range(index, self.len()))?;
        sample.check()?;
        let mut row = vec![("__key__".to_string(), Value::Text(sample.key.to_string()))];
        let mut images = Vec::new();
        for member in &sample.members {
            self.read(member, &mut row, &mut images)?;
        }
        if !images.is_empty() {
            // The record's own names of the images beside it.
            row.retain(|(name, _)| !is_image_field(name));
            row.push(("images".to_string(), Value::List(images)));
        }
        Ok(row)
    }

    fn describe(&self, index: usize) -> String {
        let key = self.samples.get(index).map(|sample| format!(" ({})", sample.key)).unwrap_or_default();
        format!("{} record {}{key}", self.file.path().display(), index + 1)
    }

    fn left_out(&self) -> LeftOut {
        self.left_out.clone()
    }
}

impl TarRows {
    /// Reads a file of a record: its image, its text, or fields in JSON.
    fn read(&self, member: &Member, row: &mut Row, images: &mut Vec<Value>) -> SampleResult<()> {
        let name = format!("x.{}", member.suffix);
        let range = member.start..member.start + member.bytes;
        if has_image_name(&name) {
            images.push(Value::Bytes(self.file.read(range, MAX_IMAGE_BYTES)?));
            return Ok(());
        }
        if video_problem(&name).is_some() || is_unreadable_image(&name) {
            row.push(("image".into(), Value::Text(name)));
            return Ok(());
        }
        match extension(&name).as_str() {
            "json" => row.extend(parse_object(&self.file.record(range)?)?),
            text if TEXTS.contains(&text) => row.push(("text".into(), Value::Text(self.text(range, member)?))),
            _ => {}
        }
        Ok(())
    }

    fn text(&self, range: Range<u64>, member: &Member) -> SampleResult<String> {
        let text = String::from_utf8(self.file.record(range)?);
        let text = text.map_err(|_| BadSample::BrokenRecord(format!("its .{} is not UTF-8", member.suffix)))?;
        Ok(text.trim_start_matches('\u{feff}').trim().to_string())
    }
}

impl Sample {
    /// Leaves out images such as `seg.png` of a record that has an image of its own.
    fn leave_out_masks(&mut self, left_out: &mut LeftOut) {
        if !self.members.iter().any(Member::is_plain_image) {
            return;
        }
        let key = &self.key;
        self.members.retain(|member| {
            let stays = member.is_plain_image() || !member.is_image();
            if !stays {
                let reason = "is another image of a record, such as a mask: call it `KEY.1.png` if it is to be read";
                left_out.add(&format!("{key}.{}", member.suffix), reason);
            }
            stays
        });
    }

    /// Rejects a record with a link, or with a file twice.
    fn check(&self) -> SampleResult<()> {
        if let Some(link) = self.members.iter().find(|member| member.is_link) {
            let message = format!("its .{} is a link, expected a file: pack the archive with -h", link.suffix);
            return Err(BadSample::BrokenRecord(message));
        }
        let twice = self
            .members
            .iter()
            .enumerate()
            .find(|(n, member)| self.members.iter().take(*n).any(|other| other.suffix == member.suffix));
        match twice {
            None => Ok(()),
            Some((_, member)) => {
                Err(BadSample::BrokenRecord(format!("the archive has two files .{} of this name", member.suffix)))
            }
        }
    }
}

/// Index of an archive while it is read.
#[derive(Default)]
struct Index {
    /// Length of the archive.
    end: u64,
    samples: Vec<Sample>,
    left_out: LeftOut,
    /// Record of each key, the last one of a key that comes again.
    keys: HashMap<Box<str>, usize>,
    /// Name of the next file, if it is too long for its header.
    long_name: Option<Vec<u8>>,
}

impl Index {
    /// Adds an entry; extended headers are entries of their own. The error says what is damaged.
    fn add<R: Read>(&mut self, mut entry: Entry<'_, R>) -> std::result::Result<(), String> {
        let (start, bytes) = (entry.raw_file_position(), entry.size());
        let end = bytes.checked_next_multiple_of(BLOCK_BYTES).and_then(|whole| start.checked_add(whole));
        if end.is_none_or(|end| end > self.end) {
            return Err(format!("it ends within the file at byte {start}"));
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => self.long_name = Some(read_bounded(&mut entry, MAX_NAME_BYTES)?),
            EntryType::XHeader => self.add_attributes(&mut entry)?,
            EntryType::XGlobalHeader | EntryType::GNULongLink | EntryType::Directory => {}
            EntryType::Regular | EntryType::Continuous => {
                let name = self.name(&entry);
                self.add_file(&name, Member::new(start, bytes))?;
            }
            EntryType::Link | EntryType::Symlink => {
                let name = self.name(&entry);
                self.add_file(&name, Member { is_link: true, ..Member::new(start, 0) })?;
            }
            other => {
                let name = self.name(&entry);
                self.left_out.add(&name, kind(other));
            }
        }
        Ok(())
    }

    fn name<R: Read>(&mut self, entry: &Entry<'_, R>) -> String {
        let name = self.long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        String::from_utf8_lossy(&name).trim_end_matches('\0').to_string()
    }

    fn add_attributes<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> std::result::Result<(), String> {
        let attributes = read_bounded(entry, MAX_ATTRIBUTE_BYTES)?;
        for attribute in PaxExtensions::new(&attributes) {
            let attribute = attribute.map_err(|e| e.to_string())?;
            match attribute.key_bytes() {
                b"path" if attribute.value_bytes().len() as u64 <= MAX_NAME_BYTES => {
                    self.long_name = Some(attribute.value_bytes().to_vec());
                }
                b"path" => return Err("the name of a file is too long".into()),
                b"size" => return Err("it has a file above 8 GiB or a size in extended attributes".into()),
                key if key.starts_with(b"GNU.sparse") => return Err("it has sparse files: pack it without -S".into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds a file to the record of its key, or begins a record.
    fn add_file(&mut self, name: &str, member: Member) -> std::result::Result<(), String> {
        let base = name.rfind('/').map_or(0, |slash| slash + 1);
        let Some(dot) = name[base..].find('.') else {
            self.left_out.add(name, "has no extension");
            return Ok(());
        };
        if dot == 0 {
            // Hidden files, which macOS creates for every file.
            return Ok(());
        }
        let (key, suffix) = (&name[..base + dot], name[base + dot + 1..].to_lowercase());
        let member = Member { suffix: suffix.into(), ..member };
        match self.sample_of(key, &member.suffix) {
            Some(sample) if sample.members.len() >= MAX_MEMBERS => {
                Err(format!("more than {MAX_MEMBERS} files belong to one record"))
            }
            Some(sample) => {
                sample.members.push(member);
                Ok(())
            }
            None => {
                self.keys.insert(key.into(), self.samples.len());
                self.samples.push(Sample { key: key.into(), members: vec![member] });
                Ok(())
            }
        }
    }

    /// The record that a file belongs to: that of the file before it, or an earlier one that lacks such a file, as in an
    /// archive with all images before all texts.
    fn sample_of(&mut self, key: &str, suffix: &str) -> Option<&mut Sample> {
        let (at, last) = (*self.keys.get(key)?, self.samples.len() - 1);
        let sample = self.samples.get_mut(at)?;
        let has_it = sample.members.iter().any(|member| &*member.suffix == suffix);
        (at == last || !has_it).then_some(sample)
    }
}

impl Member {
    /// A file at this place, without its name.
    fn new(start: u64, bytes: u64) -> Self {
        Self { suffix: "".into(), start, bytes, is_link: false }
    }

    /// Whether the file is an image of the record itself: `jpg`, or `0.jpg` of several, but no `seg.png`.
    fn is_plain_image(&self) -> bool {
        let name = self.suffix.rsplit_once('.').map_or("", |(name, _)| name);
        self.is_image() && name.bytes().all(|byte| byte.is_ascii_digit())
    }

    fn is_image(&self) -> bool {
        has_image_name(&format!("x.{}", self.suffix))
    }
}

fn read_bounded<R: Read>(entry: &mut Entry<'_, R>, limit: u64) -> std::result::Result<Vec<u8>, String> {
    if entry.size() > limit {
        return Err(format!("it has an extended header of {} bytes, expected at most {limit}", entry.size()));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn kind(kind: EntryType) -> &'static str {
    match kind {
        EntryType::GNUSparse => "is a sparse file: pack the archive without -S",
        _ => "is no file",
    }
}

fn damaged(path: &Path, problem: &str) -> Error {
    Error::format(path, format!("is a damaged or truncated tar archive ({problem}): copy or download it again"))
}
