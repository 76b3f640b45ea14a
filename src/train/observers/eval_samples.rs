//! Observer that writes the answers of the model to validation questions.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;

use crate::processor::{Content, Message};
use crate::train::{EvalSample, Evaluation, Measures, RunStart, TrainObserver};
use crate::weights::write_bytes_atomically;
use crate::{Error, Result, files};

/// Start of the heading of a step.
const HEADING: &str = "## Step ";
/// Folder of the images, beside the file.
const IMAGES: &str = "samples";

/// Most tokens of an answer.
const MAX_NEW_TOKENS: usize = 48;
/// Most bytes of a `samples.md` that a resumed run continues.
const MAX_BYTES: u64 = 64 << 20;

/// Observer that lets the model answer the validation questions of [`RunStart::eval_samples`] at every evaluation,
/// writes the answers to `samples.md` in the run's folder, with the images in `samples/`, and reports them as a notice.
/// An error of this observer becomes a notice.
#[derive(Debug, Default)]
pub struct EvalSamples {
    log: Option<EvalSampleLog>,
}

impl TrainObserver for EvalSamples {
    fn is_required(&self) -> bool {
        false
    }

    fn on_start(&mut self, start: &RunStart<'_>) -> Result<()> {
        self.log = Some(EvalSampleLog::open(start.output, start.resumed, start.eval_samples)?);
        Ok(())
    }

    fn on_evaluation(&mut self, evaluation: &Evaluation<'_>) -> Result<Measures> {
        let Some(log) = &mut self.log else { return Ok(Measures::default()) };
        let answers = evaluation.answer(MAX_NEW_TOKENS)?;
        if answers.is_empty() {
            return Ok(Measures::default());
        }
        log.write(evaluation.step, evaluation.eval_samples, &answers)?;
        Ok(Measures::default().with_notice(listing(evaluation.eval_samples, &answers, false)))
    }
}

/// Images of a question with the names of their files; `at` is the number of the question.
fn images(sample: &EvalSample, at: usize) -> impl Iterator<Item = (String, &image::RgbImage)> {
    let content = sample.prompt.messages.iter().flat_map(|message: &Message| &message.content);
    let images = content.filter_map(|content| match content {
        Content::Image(image) => Some(image.as_ref()),
        Content::Video(_) | Content::Text(_) => None,
    });
    images.enumerate().map(move |(n, image)| (format!("{IMAGES}/{at}-{n}.png"), image))
}

/// Questions, answers and reference answers as a list in Markdown, on request with the images.
fn listing(samples: &[EvalSample], answers: &[String], with_images: bool) -> String {
    let mut text = String::new();
    for (at, (sample, given)) in samples.iter().zip(answers).enumerate() {
        let names = images(sample, at).filter(|_| with_images);
        let links: String = names.map(|(name, _)| format!("![{name}]({name}) ")).collect();
        text.push_str(&format!("- {links}{}\n  - answer: {given}\n  - right:  {}\n", sample.question, sample.expected));
    }
    text
}

/// `samples.md`, with one section for each evaluation, and `samples/` with the images.
#[derive(Debug)]
struct EvalSampleLog {
    path: PathBuf,
    text: String,
}

impl EvalSampleLog {
    /// Saves the images, and begins a file in the folder of a run, or continues one after step `resumed`; sections of
    /// later steps are dropped.
    fn open(folder: &Path, resumed: Option<u64>, samples: &[EvalSample]) -> Result<Self> {
        let image_folder = folder.join(IMAGES);
        if !samples.is_empty() {
            std::fs::create_dir_all(&image_folder).map_err(|e| Error::io(&image_folder, e))?;
        }
        for (name, image) in samples.iter().enumerate().flat_map(|(at, sample)| images(sample, at)) {
            let (path, mut png) = (folder.join(name), Cursor::new(Vec::new()));
            image
                .write_with_encoder(PngEncoder::new(&mut png))
                .map_err(|e| Error::format(&path, format!("cannot be encoded: {e}")).caused_by(e))?;
            write_bytes_atomically(&path, png.get_ref())?;
        }
        let path = folder.join("samples.md");
        let text = match resumed {
            Some(step) if files::exists(&path)? => until(&files::read_text(&path, MAX_BYTES)?, step).to_string(),
            _ => String::new(),
        };
        Ok(Self { path, text })
    }

    /// Adds the answers of a step.
    fn write(&mut self, step: u64, samples: &[EvalSample], answers: &[String]) -> Result<()> {
        self.text.push_str(&format!("{HEADING}{step}\n\n{}\n", listing(samples, answers, true)));
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
    fn a_resumed_file_drops_later_steps_and_images_are_saved() {
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
