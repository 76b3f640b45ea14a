//! What a model answers while it is trained, for people to look at.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::ImageFormat;

use crate::data::{IMAGE_MARKER, Record, SampleResult};
use crate::processor::{Content, Conversation, Message, Processor, Role};
use crate::weights::write_bytes_atomically;
use crate::{Error, Result};

/// What begins the section of a step.
const HEADING: &str = "## Step ";
/// Folder of the pictures, beside the file.
const PICTURES: &str = "samples";

/// A validation question with its right answer.
pub(super) struct EvalSample {
    pub prompt: Conversation,
    question: String,
    expected: String,
}

impl EvalSample {
    /// The first question of a conversation and its answer, if it has one.
    pub fn of(processor: &Processor, sample: &Record) -> SampleResult<Option<Self>> {
        let Some(at) = sample.turns.iter().position(|turn| turn.role == Role::Assistant) else { return Ok(None) };
        let Some(asked) = at.checked_sub(1) else { return Ok(None) };
        let mut prompt = sample.clone();
        prompt.turns.truncate(at);
        Ok(Some(Self {
            question: sample.turns[asked].text.replace(IMAGE_MARKER, "").trim().to_string(),
            expected: sample.turns[at].text.clone(),
            prompt: prompt.conversation(processor.decoder())?,
        }))
    }

    /// Its pictures with the names that they are saved by; `at` is its number.
    fn pictures(&self, at: usize) -> impl Iterator<Item = (String, &image::RgbImage)> {
        let images = self.prompt.messages.iter().flat_map(|message: &Message| &message.content);
        let images = images.filter_map(|content| match content {
            Content::Image(image) => Some(image.as_ref()),
            Content::Video(_) | Content::Text(_) => None,
        });
        images.enumerate().map(move |(n, image)| (format!("{PICTURES}/{at}-{n}.png"), image))
    }
}

/// Questions, given and right answers as a list in Markdown, if wanted with the pictures.
pub(super) fn listing(shown: &[EvalSample], answers: &[String], pictures: bool) -> String {
    let mut text = String::new();
    for (at, (shown, given)) in shown.iter().zip(answers).enumerate() {
        let names = shown.pictures(at).filter(|_| pictures);
        let images: String = names.map(|(name, _)| format!("![{name}]({name}) ")).collect();
        text.push_str(&format!("- {images}{}\n  - answer: {given}\n  - right:  {}\n", shown.question, shown.expected));
    }
    text
}

/// `samples.md`, a section for each evaluation, and `samples/` with the pictures.
#[derive(Debug)]
pub(super) struct EvalSampleLog {
    path: PathBuf,
    text: String,
}

impl EvalSampleLog {
    /// Saves the pictures, and begins a file in the folder of a run, or goes on with one behind step `resumed`;
    /// sections of later steps are dropped.
    ///
    /// # Errors
    /// [`Error::Io`] if a picture cannot be saved, or there is a file that cannot be read.
    pub fn open(folder: &Path, resumed: Option<u64>, shown: &[EvalSample]) -> Result<Self> {
        let pictures = folder.join(PICTURES);
        std::fs::create_dir_all(&pictures).map_err(|e| Error::io(&pictures, e))?;
        for (name, picture) in shown.iter().enumerate().flat_map(|(at, shown)| shown.pictures(at)) {
            let (path, mut png) = (folder.join(name), Cursor::new(Vec::new()));
            picture.write_to(&mut png, ImageFormat::Png).map_err(|e| Error::format(&path, e.to_string()))?;
            write_bytes_atomically(&path, png.get_ref())?;
        }
        let path = folder.join("samples.md");
        let text = match (resumed, std::fs::read_to_string(&path)) {
            (Some(step), Ok(text)) => until(&text, step).to_string(),
            (Some(_), Err(e)) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path, e)),
            _ => String::new(),
        };
        Ok(Self { path, text })
    }

    /// Adds the answers of a step.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write(&mut self, step: u64, shown: &[EvalSample], answers: &[String]) -> Result<()> {
        self.text.push_str(&format!("{HEADING}{step}\n\n{}\n", listing(shown, answers, true)));
        write_bytes_atomically(&self.path, self.text.as_bytes())
    }
}

/// The sections up to `step`.
fn until(text: &str, step: u64) -> &str {
    let later = text.match_indices(HEADING).find(|(at, heading)| {
        let number = text[at + heading.len()..].lines().next().and_then(|line| line.trim().parse::<u64>().ok());
        (*at == 0 || text[..*at].ends_with('\n')) && number.is_some_and(|number| number > step)
    });
    later.map_or(text, |(at, _)| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Vec<EvalSample> {
        let picture = Content::from(image::RgbImage::from_pixel(3, 2, image::Rgb([9, 8, 7])));
        let prompt = Message::user([picture, "what ## Step 99".into()]).into();
        vec![EvalSample { prompt, question: "what ## Step 99".into(), expected: "a ring".into() }]
    }

    #[test]
    fn a_resumed_file_forgets_later_steps_and_pictures_are_beside_it() {
        let (folder, shown) = (tempfile::tempdir().unwrap(), shown());
        let path = folder.path().join("samples.md");
        let answers = ["a star".to_string()];
        let mut file = EvalSampleLog::open(folder.path(), None, &shown).unwrap();
        [10, 20, 30].into_iter().for_each(|step| file.write(step, &shown, &answers).unwrap());
        let whole = std::fs::read_to_string(&path).unwrap();
        assert!(whole.contains("- ![samples/0-0.png](samples/0-0.png) what"), "{whole}");
        assert_eq!(image::open(folder.path().join("samples/0-0.png")).unwrap().width(), 3);
        let mut resumed = EvalSampleLog::open(folder.path(), Some(20), &shown).unwrap();
        resumed.write(30, &shown, &answers).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        assert!(EvalSampleLog::open(folder.path(), None, &shown).unwrap().text.is_empty());
    }
}
