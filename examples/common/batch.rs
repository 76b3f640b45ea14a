//! Batch inference for the examples: many images or records, one result each.

use std::collections::BTreeMap;
use std::iter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use haplovl::config::GenerationConfig;
use haplovl::generation::GeneratedSequence;
use haplovl::pipeline::LoadedModel;
use haplovl::pipeline::batch::{BatchRunner, ImageList, Input, InputFile, ResultFile};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::{cli, images};

/// Time after which answers to inputs that failed before are written.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Number of left-out files that a note names.
const LEFT_OUT_SHOWN: usize = 3;

/// Options of batch inference.
#[derive(Debug, Args)]
pub struct BatchOptions {
    /// Images: files, folders, patterns such as 'images/*.jpg', or - for an image on stdin
    #[arg(value_name = "IMAGE", conflicts_with = "input")]
    pub names: Vec<PathBuf>,
    /// A video: an animated GIF, WebP or PNG, or a folder of frames; may be given several times
    #[arg(long = "video", value_name = "FILE", conflicts_with = "input")]
    videos: Vec<PathBuf>,
    /// File of inputs: records as JSON, CSV or TSV with `image` and perhaps `question` and `id`; or a list of image
    /// files (.txt, .lst), one a line. - reads lines from stdin
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Folder that image names of the records are relative to and must lie in [default: that of the file]
    #[arg(long = "images", value_name = "DIR", requires = "input")]
    folder: Option<PathBuf>,
    /// File to write, one line of JSON for each input, in order
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ask the inputs again that failed, and continue after the results that --output holds already
    #[arg(long, requires = "output")]
    resume: bool,
    /// Images per batch
    #[arg(long, default_value_t = BatchRunner::DEFAULT_BATCH_SIZE as u32, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
}

/// Inputs of a run and the place of its results, opened before the model is loaded.
pub struct Run<'a> {
    inputs: Box<dyn Iterator<Item = Input> + 'a>,
    /// The first input without a result.
    next: Option<Input>,
    failed: Vec<Failed>,
    sink: Sink,
    asked: Asked<'a>,
    /// What answers depend on beside their inputs, for a file of results.
    settings: Map<String, Value>,
    batch: usize,
}

/// An input that failed in an earlier run, with the number of its line.
type Failed = (usize, Input);

/// A question for all inputs that have none, under a name for results.
pub struct Asked<'a> {
    pub field: &'static str,
    pub text: &'a str,
}

impl BatchOptions {
    /// The file of the only image, if a single answer is asked for, to be shown while it is generated; `-` is stdin.
    pub fn only_image(&self) -> Result<Option<&Path>> {
        match self.names.as_slice() {
            [name]
                if self.output.is_none()
                    && self.videos.is_empty()
                    && ImageList::find([name])?.images == [name.as_path()] =>
            {
                Ok(Some(name))
            }
            _ => Ok(None),
        }
    }

    /// Whether any option of this group asks for several results.
    pub fn is_given(&self) -> bool {
        !self.names.is_empty() || !self.videos.is_empty() || self.input.is_some() || self.output.is_some()
    }

    /// Opens inputs and output, and passes over inputs that have a result. `settings` are what answers depend on beside the
    /// input, for a file of results.
    pub fn open<'a>(
        &self,
        asked: Asked<'a>,
        json: bool,
        settings: impl FnOnce() -> Result<Map<String, Value>>,
    ) -> Result<Run<'a>> {
        let mut inputs = self.inputs()?.peekable();
        ensure!(inputs.peek().is_some(), "there is no input: the list is empty");
        let mut sink = self.sink(json)?;
        let settings = if sink.file.is_some() { settings()? } else { Map::new() };
        let (next, failed) = sink.skip_done(&mut inputs, |input| asked.about(input, &settings))?;
        Ok(Run { inputs: Box::new(inputs), next, failed, sink, asked, settings, batch: self.batch as usize })
    }

    fn inputs<'a>(&self) -> Result<Box<dyn Iterator<Item = Input> + 'a>> {
        Ok(match self.input.as_deref() {
            Some(file) if file == Path::new("-") => {
                let folder = self.folder.clone().unwrap_or_default();
                Box::new(InputFile::from_lines(std::io::stdin().lock(), folder))
            }
            Some(file) => Box::new(InputFile::open(file, self.folder.as_deref())?),
            None => {
                let videos = Vec::from_iter(self.videos.iter().map(Input::video));
                Box::new(named(&self.names)?.into_iter().chain(videos))
            }
        })
    }

    fn sink(&self, json: bool) -> Result<Sink> {
        let file = match &self.output {
            Some(path) if path == Path::new("-") => {
                bail!("--output - names no file: leave it out for results on stdout, with --json as JSON")
            }
            Some(path) if !self.resume && ResultFile::is_begun(path) => {
                bail!("{}: exists already: add --resume to continue it, or name another file", path.display())
            }
            Some(path) if self.resume => Some(ResultFile::resume(path)?),
            Some(path) => Some(ResultFile::create(path)?),
            None => None,
        };
        Ok(Sink { file, again: BTreeMap::new(), saved: Instant::now(), json, written: 0, failed: 0 })
    }
}

impl Run<'_> {
    /// Answers all inputs. Failed ones are reported and passed over, and are an error at the end.
    pub fn answer(self, model: &LoadedModel, generation: GenerationConfig) -> Result<()> {
        let Self { inputs, next, failed, mut sink, asked, settings, batch } = self;
        let done = sink.count();
        let left = inputs.size_hint().1.map(|left| left + usize::from(next.is_some()) + failed.len());
        let bar = progress_bar(left, done - failed.len())?;
        let runner = BatchRunner::new(model).with_generation(generation).with_batch_size(batch);
        let request = |input: Input| ((input.name(), asked.about(&input, &settings)), input.request(asked.text));
        let requests = next.into_iter().chain(inputs).map(request);
        for ((name, about), answer) in runner.clone().with_first_stream(done as u64).run(requests)? {
            bar.suspend(|| sink.write(&name, about, answer))?;
            bar.inc(1);
        }
        // Each draws from the random stream of its line.
        let requests = failed.into_iter().map(|(line, input)| {
            let (about, request) = request(input);
            ((line, about), request.with_random_stream(line as u64 - 1))
        });
        for ((line, (name, about)), answer) in runner.run(requests)? {
            bar.suspend(|| sink.write_again(line, &name, about, &answer))?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        sink.finish()
    }
}

impl Asked<'_> {
    /// The fields of an input, the question that is asked about it, and what its answer depends on beside both.
    fn about(&self, input: &Input, settings: &Map<String, Value>) -> Map<String, Value> {
        let mut about = input.about().clone();
        if !about.contains_key("question") && !self.text.is_empty() {
            about.insert(self.field.into(), self.text.into());
        }
        if !settings.is_empty() {
            about.insert("settings".into(), settings.clone().into());
        }
        about
    }
}

/// The place of results: a file, or stdout.
struct Sink {
    file: Option<ResultFile>,
    /// Answers to inputs that failed before, by line, that are not in the file yet.
    again: BTreeMap<usize, Map<String, Value>>,
    saved: Instant,
    json: bool,
    written: usize,
    failed: usize,
}

impl Sink {
    /// Passes over the inputs whose results are in the file, with what each is about; returns the first one that has none,
    /// and those that failed with the numbers of their lines.
    fn skip_done(
        &mut self,
        inputs: &mut impl Iterator<Item = Input>,
        about: impl Fn(&Input) -> Map<String, Value>,
    ) -> Result<(Option<Input>, Vec<Failed>)> {
        let Some(file) = &mut self.file else { return Ok((inputs.next(), Vec::new())) };
        let mut failed = Vec::new();
        for input in inputs.by_ref() {
            match file.earlier(&about(&input))? {
                None => return Ok((Some(input), failed)),
                Some(result) if result.contains_key("error") => failed.push((file.lines(), input)),
                Some(_) => {}
            }
        }
        file.check_end()?;
        Ok((None, failed))
    }

    /// Number of results so far.
    fn count(&self) -> usize {
        self.file.as_ref().map_or(self.written, ResultFile::lines)
    }

    fn write(
        &mut self,
        name: &str,
        about: Map<String, Value>,
        answer: haplovl::Result<GeneratedSequence>,
    ) -> Result<()> {
        let line = result(name, about, &answer);
        self.written += 1;
        self.failed += usize::from(answer.is_err());
        match (&mut self.file, &answer) {
            (Some(file), _) => Ok(file.write(&line)?),
            (None, _) if self.json => cli::print(json!(line)),
            (None, Ok(answer)) => cli::print(format_args!("{}\t{}", cli::escaped(name), one_line(&answer.text))),
            (None, Err(_)) => Ok(()),
        }
    }

    /// Writes the answer to an input that failed before in the place of its error. All lines are copied for it, so that
    /// answers are gathered for a while.
    fn write_again(
        &mut self,
        line: usize,
        name: &str,
        about: Map<String, Value>,
        answer: &haplovl::Result<GeneratedSequence>,
    ) -> Result<()> {
        let result = result(name, about, answer);
        // What fails again keeps its error.
        if answer.is_ok() {
            self.again.insert(line, result);
        }
        if self.saved.elapsed() > SAVE_EVERY { self.save() } else { Ok(()) }
    }

    fn save(&mut self) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.replace(&std::mem::take(&mut self.again))?;
        }
        self.saved = Instant::now();
        Ok(())
    }

    /// Reports the number of results.
    fn finish(mut self) -> Result<()> {
        self.save()?;
        let (total, failed) = match &self.file {
            Some(file) => (file.lines(), file.failed()),
            None => (self.written, self.failed),
        };
        if failed > 0 {
            bail!("{failed} of {total} inputs failed, each with an error of its own");
        }
        Ok(())
    }
}

/// The result of an input; an error is reported.
fn result(name: &str, mut line: Map<String, Value>, answer: &haplovl::Result<GeneratedSequence>) -> Map<String, Value> {
    match answer {
        Ok(answer) => {
            line.insert("text".into(), answer.text.trim().into());
            line.insert("finish_reason".into(), answer.finish_reason.to_string().into());
            line.insert("new_tokens".into(), answer.tokens.len().into());
        }
        Err(error) => {
            line.insert("error".into(), error.to_string().into());
            cli::note_error(&named_error(name, error));
        }
    }
    line
}

/// The inputs of names on a command line.
fn named(names: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for name in names {
        if name == Path::new("-") {
            inputs.push(Input::pixels("-", images::open(name)?));
            continue;
        }
        let list = ImageList::find(iter::once(name))?;
        if list.left_out.files > 0 {
            let (count, named) = (list.left_out.files, list.left_out.named.iter().take(LEFT_OUT_SHOWN));
            let named = Vec::from_iter(named.map(String::as_str)).join("; ");
            cli::note(format_args!("note: {}: left out {count} of its entries ({named})", name.display()));
        }
        inputs.extend(list.images.into_iter().map(Input::image));
    }
    Ok(inputs)
}

/// An error that names its input.
fn named_error(name: &str, error: &haplovl::Error) -> anyhow::Error {
    let message = error.to_string();
    // Messages hold names without control characters and without white space around them.
    let is_named = message.contains(name) || message.contains(cli::escaped(name).trim());
    if is_named { anyhow::anyhow!(message) } else { anyhow::anyhow!("{name}: {message}") }
}

/// A text without line breaks, since each result is one line.
fn one_line(text: &str) -> String {
    text.trim().replace(['\n', '\r', '\t'], " ")
}

/// A progress bar, which is not shown unless stderr is a terminal.
fn progress_bar(left: Option<usize>, done: usize) -> Result<ProgressBar> {
    let bar = match left {
        Some(left) => ProgressBar::new((done + left) as u64)
            .with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec}, {eta} left")?),
        None => ProgressBar::no_length().with_style(ProgressStyle::with_template("{spinner} {pos} {per_sec}")?),
    };
    Ok(bar.with_position(done as u64))
}
