//! LLaVA records in JSON, caption pairs, and folders of images with text files.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::dataset::out_of_range;
use super::{BadSample, Dataset, IMAGE_MARKER, ImageSource, Record, RecordIndex, Records, SampleResult, Turn};
use crate::processor::Role;
use crate::{Error, Result, files};

/// Largest caption file in bytes, more text than the context of any model.
const MAX_CAPTION_BYTES: u64 = 1 << 20;
/// Extensions of image files, in lower case.
const IMAGE_EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Opens a JSON or JSONL file as [`RecordFile`], a folder as [`ImageFolder`]. `images` is the folder that image names
/// in a file are relative to; by default the folder of the file.
///
/// # Errors
/// As [`RecordIndex::open`] and [`ImageFolder::open`].
pub fn open(path: impl AsRef<Path>, images: Option<&Path>) -> Result<Records> {
    let path = path.as_ref();
    if path.is_dir() {
        return Ok(Box::new(ImageFolder::open(path)?));
    }
    let beside = path.parent().unwrap_or(Path::new(""));
    Ok(Box::new(RecordFile::open(path, images.unwrap_or(beside))?))
}

/// A JSON array or JSONL file of records. Images must be inside the image folder: a path out of it is a bad sample
/// ([`BadSample::OutsideImage`]); symbolic links in the folder are followed. Records have one of these formats; further
/// fields are ignored:
/// - `{"id", "image": "a.jpg" | ["a.jpg", ..] | absent, "conversations": [{"from": "human" | "gpt" | "system", "value":
///   ".."}, ..]}`, the format of LLaVA, with one `<image>` for each image, or no `<image>` (then the images come
///   first); the names `images`, `messages`, `role`, `content`, `user` and `assistant` are accepted too;
/// - `{"image", "caption" | "text"}`: the text is the assistant's turn after a user turn with the image only;
/// - `{"text"}`: the text is the assistant's turn.
#[derive(Debug)]
pub struct RecordFile {
    index: RecordIndex,
    images: PathBuf,
}

impl RecordFile {
    /// Opens the file; image names are relative to the folder `images`.
    ///
    /// # Errors
    /// As [`RecordIndex::open`].
    pub fn open(path: impl AsRef<Path>, images: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { index: RecordIndex::open(path)?, images: images.as_ref().to_path_buf() })
    }

    /// Parses one record, as in a file; image names are relative to the folder `images`.
    pub(crate) fn parse(json: &[u8], images: &Path) -> SampleResult<Record> {
        let record: JsonRecord = serde_json::from_slice(json).map_err(|e| BadSample::BrokenRecord(e.to_string()))?;
        record.into_record(images)
    }
}

impl Dataset for RecordFile {
    type Item = Record;

    fn len(&self) -> usize {
        self.index.len()
    }

    fn get(&self, index: usize) -> SampleResult<Record> {
        Self::parse(&self.index.read(index)?, &self.images)
    }

    fn describe(&self, index: usize) -> String {
        format!("{} record {}", self.index.path().display(), index + 1)
    }
}

#[derive(Deserialize)]
struct JsonRecord {
    #[serde(default)]
    id: serde_json::Value,
    #[serde(default, alias = "images")]
    image: OneOrMany,
    #[serde(alias = "messages")]
    conversations: Option<Vec<JsonTurn>>,
    #[serde(alias = "text")]
    caption: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
    #[default]
    None,
}

#[derive(Deserialize)]
struct JsonTurn {
    #[serde(alias = "role")]
    from: Speaker,
    #[serde(alias = "content")]
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    System,
    #[serde(alias = "user")]
    Human,
    #[serde(alias = "assistant")]
    Gpt,
}

impl From<JsonTurn> for Turn {
    fn from(turn: JsonTurn) -> Self {
        let role = match turn.from {
            Speaker::System => Role::System,
            Speaker::Human => Role::User,
            Speaker::Gpt => Role::Assistant,
        };
        Self { role, text: turn.value }
    }
}

impl JsonRecord {
    fn into_record(self, folder: &Path) -> SampleResult<Record> {
        let names = match self.image {
            OneOrMany::None => vec![],
            OneOrMany::One(name) => vec![name],
            OneOrMany::Many(names) => names,
        };
        let images = names.iter().map(|name| within(folder, Path::new(name))).collect::<SampleResult<Vec<_>>>()?;
        if let Some(missing) = images.iter().find(|path| !path.is_file()) {
            return Err(BadSample::MissingImage(missing.clone()));
        }
        let turns = match (self.conversations, self.caption) {
            (Some(turns), _) => turns.into_iter().map(Turn::from).collect(),
            (None, Some(caption)) => caption_turns(images.len(), caption),
            (None, None) => return Err(BadSample::NoTurns),
        };
        let id = match self.id {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(id) => id,
            other => other.to_string(),
        };
        Record::new(id, images.into_iter().map(ImageSource::File).collect(), turns)
    }
}

/// Path of an image, which must be inside `folder`: a downloaded record must not read other files. `..` is resolved in
/// the name itself; symbolic links in the folder were made by the user and are followed.
fn within(folder: &Path, name: &Path) -> SampleResult<PathBuf> {
    let outside = || BadSample::OutsideImage(name.to_path_buf());
    let relative = match name.is_absolute() || name.has_root() {
        true => relative_to(folder, name).ok_or_else(outside)?,
        false => name.to_path_buf(),
    };
    let mut inside = PathBuf::new();
    for component in relative.components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            Component::ParentDir if inside.pop() => {}
            _ => return Err(outside()),
        }
    }
    Ok(folder.join(inside))
}

/// An absolute name relative to `folder`, after canonicalisation of the folder.
fn relative_to(folder: &Path, name: &Path) -> Option<PathBuf> {
    let spellings = [Some(folder.to_path_buf()), std::path::absolute(folder).ok(), fs::canonicalize(folder).ok()];
    spellings.iter().flatten().find_map(|folder| name.strip_prefix(folder).ok()).map(Path::to_path_buf)
}

/// Turns of a caption: a user turn with the images, if there are any, and the caption.
fn caption_turns(images: usize, caption: String) -> Vec<Turn> {
    let asked = (images > 0).then(|| Turn::user(vec![IMAGE_MARKER; images].join("\n")));
    asked.into_iter().chain([Turn::assistant(caption)]).collect()
}

/// A folder of images, each with a caption in a text file of the same name (`cat.jpg`, `cat.txt`).
#[derive(Debug)]
pub struct ImageFolder {
    images: Vec<PathBuf>,
}

impl ImageFolder {
    /// Lists the images, sorted by name. Subfolders are not read.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Data`] if the folder contains no image.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let io = |e| Error::io(folder, e);
        let mut images = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            // macOS creates hidden files like `._cat.jpg`.
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            if !hidden && extension.is_some_and(|e| IMAGE_EXTENSIONS.contains(&e.as_str())) {
                images.push(path);
            }
        }
        if images.is_empty() {
            let known = IMAGE_EXTENSIONS.join(", ");
            let message = format!("the folder {} contains no image: expected files of {known}", folder.display());
            return Err(Error::data(message));
        }
        images.sort();
        Ok(Self { images })
    }
}

impl Dataset for ImageFolder {
    type Item = Record;

    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize) -> SampleResult<Record> {
        let image = self.images.get(index).ok_or_else(|| out_of_range(index, self.len()))?;
        let text = image.with_extension("txt");
        if !text.is_file() {
            return Err(BadSample::MissingText(text));
        }
        let caption = files::read_text(&text, MAX_CAPTION_BYTES)?;
        let caption = caption.trim_start_matches('\u{feff}');
        let id = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let turns = caption_turns(1, caption.trim().to_owned());
        Record::new(id, vec![ImageSource::File(image.clone())], turns)
    }

    fn describe(&self, index: usize) -> String {
        self.images.get(index).map_or_else(|| format!("sample {index}"), |path| path.display().to_string())
    }
}
