//! The questions of a benchmark, from its files.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::containers::{Annotation, Annotations, CaptionedImage, Container};
use super::matching::short;
use super::python_list::python_list;
use super::question::{ImagePlace, Question};
use super::row::{FieldsOf, plain, text_of};
use super::{Benchmark, Metric, circular, files};
use crate::data::shapes::{QuestionKind, ShapesConfig, Split};
use crate::data::{ImageSource, JsonObjects, Record, Turn};
use crate::processor::{Conversation, ImageDecoder, Processor, RgbImage};
use crate::{Error, Result};

/// What is asked where captions are wanted and the file has no question.
const DESCRIBE: &str = "Describe the image in one sentence.";
/// Most records that are named as left out.
const MAX_NAMED: usize = 5;

/// The questions of a benchmark. Images stay in their files until they are asked for.
#[derive(Debug)]
pub struct QuestionSet {
    benchmark: &'static Benchmark,
    questions: Vec<Question>,
    /// Questions that [`Self::limited`] left out.
    beyond: Vec<Question>,
    paths: Vec<PathBuf>,
    /// Files whose rows hold images.
    tables: Vec<JsonObjects>,
    images: PathBuf,
    left_out: LeftOutRecords,
    /// Side of scenes of shapes world.
    side: u32,
}

/// Records that are no questions.
#[derive(Debug, Default, Clone)]
struct LeftOutRecords {
    count: usize,
    named: Vec<String>,
}

impl LeftOutRecords {
    fn add(&mut self, name: &str, reason: &str) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(format!("{name}: {reason}"));
        }
    }
}

/// What is gathered while files are read.
#[derive(Default)]
struct Gathered {
    questions: Vec<Question>,
    annotations: Vec<Annotations>,
    /// Rows that hold an image, by the id of their question.
    held: HashMap<String, ImagePlace>,
    /// Ids and names of rows that hold an image and ask nothing.
    images: Vec<(String, String)>,
    left_out: LeftOutRecords,
}

/// A row under way.
struct Row<'r> {
    fields: Map<String, Value>,
    /// Whether all fields are texts, as in CSV and TSV.
    are_texts: bool,
    /// Id of a question that has none of its own.
    id: String,
    /// Whether that is its key in an object.
    is_key: bool,
    /// Place of the row in a table.
    table: Option<(usize, usize)>,
    path: &'r Path,
}

impl QuestionSet {
    /// Opens the files of a benchmark; `data` is one of them or their folder, and names of images are relative to
    /// `images`, by default that folder.
    ///
    /// # Errors
    /// [`Error::Data`] that says which file is missing and where it is published, [`Error::Format`] for a file of another
    /// form, and [`Error::Data`] without any question, if two have the same id, or if `images` is no folder.
    pub fn open(benchmark: &'static Benchmark, data: &Path, images: Option<&Path>) -> Result<Self> {
        if let Some(images) = images.filter(|images| !images.is_dir()) {
            let found = if images.exists() { "is a file" } else { "does not exist" };
            return Err(Error::data(format!("{}: {found}: name the folder of the images", images.display())));
        }
        let paths = files::find(benchmark, data)?;
        let folder = if data.is_file() { data.parent().unwrap_or(Path::new("")) } else { data };
        let (mut gathered, mut tables) = (Gathered::default(), Vec::new());
        for path in &paths {
            match Container::open(path)? {
                Container::Table(table) => {
                    gathered.read_table(benchmark, path, &table, tables.len());
                    tables.push(table);
                }
                Container::Records(records) => gathered.read_records(benchmark, path, records),
                Container::Annotations(annotations) => gathered.annotations.push(annotations),
                Container::Captioned(images) => gathered.read_captioned(benchmark, path, images),
            }
        }
        let (questions, left_out) = gathered.finish(benchmark, data)?;
        if questions.is_empty() {
            let reason = left_out.named.first().cloned().unwrap_or_else(|| "its files have no records".into());
            return Err(Error::data(format!("{}: no question of {} ({reason})", data.display(), benchmark.title)));
        }
        let images = images.unwrap_or(folder).to_path_buf();
        Ok(Self { benchmark, questions, beyond: Vec::new(), paths, tables, images, left_out, side: 0 })
    }

    /// One question of every kind about each of some held-out scenes of shapes world, drawn at this side in pixels.
    ///
    /// # Errors
    /// [`Error::Config`] for the name of another benchmark.
    pub fn shapes(scenes: u64, side: u32) -> Result<Self> {
        let questions = (0..scenes).flat_map(|index| {
            let scene = Split::Test.scene(index, &ShapesConfig::default());
            let questions = scene.test_questions(&QuestionKind::ALL);
            questions.into_iter().enumerate().map(move |(n, question)| Question {
                id: format!("{index}-{n}"),
                group: format!("{index}-{n}"),
                image: index.to_string(),
                text: question.question,
                answers: vec![question.answer],
                categories: vec![question.kind.to_string()],
                place: ImagePlace::Scene(index),
                ..Question::default()
            })
        });
        let (benchmark, questions) = (Benchmark::named("shapes")?, questions.collect());
        let (tables, images, left_out) = (Vec::new(), PathBuf::new(), LeftOutRecords::default());
        let (beyond, paths) = (Vec::new(), Vec::new());
        Ok(Self { benchmark, questions, beyond, paths, tables, images, left_out, side })
    }

    /// The benchmark.
    pub fn benchmark(&self) -> &'static Benchmark {
        self.benchmark
    }

    /// The questions, in the order of their files.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// The questions that a limit left out.
    pub(super) fn beyond(&self) -> &[Question] {
        &self.beyond
    }

    /// The files that were read.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Number of questions without an image.
    pub fn without_image(&self) -> usize {
        self.questions.iter().filter(|question| question.place == ImagePlace::Nowhere).count()
    }

    /// Number of questions whose file has one id for several, see [`Question::shared_id`].
    pub fn with_shared_ids(&self) -> usize {
        self.questions.iter().filter(|question| question.shared_id.is_some()).count()
    }

    /// Number of records that are no questions, and why the first of them are not.
    pub fn left_out(&self) -> (usize, &[String]) {
        (self.left_out.count, &self.left_out.named)
    }

    /// The same set with its first `count` groups of questions only: a group is what is scored together.
    #[must_use]
    pub fn limited(mut self, count: usize) -> Self {
        let mut groups = HashSet::new();
        let (within, beyond) = self.questions.into_iter().partition(|question| {
            groups.contains(&question.group) || (groups.len() < count && groups.insert(question.group.clone()))
        });
        (self.questions, self.beyond) = (within, beyond);
        self
    }

    /// The same set with questions about one image behind each other, so that the image is computed once.
    #[must_use]
    pub fn by_image(mut self) -> Self {
        let mut first = HashMap::new();
        for (at, question) in self.questions.iter().enumerate() {
            first.entry(question.image.clone()).or_insert(at);
        }
        self.questions.sort_by_key(|question| first.get(&question.image).copied());
        self
    }

    /// The conversation that asks a question with this prompt; its images are decoded.
    ///
    /// # Errors
    /// [`Error::Data`] for an image that does not exist or cannot be read.
    pub fn conversation(&self, question: &Question, prompt: &str, processor: &Processor) -> Result<Conversation> {
        let images = self.images(question)?;
        // Tags such as `<image 1>` of MMMU's texts are words; markers are one for each image, in front.
        let text = format!("{}{}", "<image>\n".repeat(images.len()), prompt.replace("<image>", "the image"));
        let turns = vec![Turn::user(text)];
        let record = Record { id: question.id.clone(), images, videos: Vec::new(), turns };
        Ok(record.conversation(processor)?)
    }

    /// The images of a question, decoded.
    ///
    /// # Errors
    /// The errors of [`Self::conversation`].
    pub fn decoded(&self, question: &Question) -> Result<Vec<Arc<RgbImage>>> {
        let decoder = ImageDecoder::default();
        self.images(question)?.iter().map(|image| Ok(image.read(&decoder)?)).collect()
    }

    fn images(&self, question: &Question) -> Result<Vec<ImageSource>> {
        match &question.place {
            ImagePlace::Nowhere => Ok(Vec::new()),
            ImagePlace::Files(names) => {
                let file = |name: &PathBuf| files::image_file(&self.images, &name.to_string_lossy());
                names.iter().map(|name| Ok(ImageSource::File(file(name)?))).collect()
            }
            ImagePlace::Row { file, row, fields } => {
                let Some(table) = self.tables.get(*file) else { return Ok(Vec::new()) };
                let images =
                    |field: &String| table.images(*row, |name| plain(name) == *field, python_list, &self.images);
                Ok(fields.iter().map(images).collect::<Result<Vec<_>>>()?.concat())
            }
            ImagePlace::Scene(index) => {
                let scene = Split::Test.scene(*index, &ShapesConfig::default());
                Ok(vec![ImageSource::Pixels(Arc::new(scene.render(self.side)))])
            }
        }
    }
}

impl Gathered {
    fn read_table(&mut self, benchmark: &Benchmark, path: &Path, table: &JsonObjects, file: usize) {
        let are_texts = table.has_texts_only();
        for row in 0..table.len() {
            match table.read(row) {
                Ok(fields) => {
                    let (id, table) = ((row + 1).to_string(), Some((file, row)));
                    self.read(benchmark, Row { fields, are_texts, id, is_key: false, table, path });
                }
                Err(error) => self.left_out.add(&table.describe(row), &error.to_string()),
            }
        }
    }

    fn read_records(&mut self, benchmark: &Benchmark, path: &Path, records: Vec<(Option<String>, Map<String, Value>)>) {
        for (number, (key, fields)) in (1..).zip(records) {
            let is_key = key.is_some();
            let id = key.unwrap_or_else(|| number.to_string());
            self.read(benchmark, Row { fields, are_texts: false, id, is_key, table: None, path });
        }
    }

    /// Reads the images of Karpathy's test split.
    fn read_captioned(&mut self, benchmark: &Benchmark, path: &Path, images: Vec<CaptionedImage>) {
        for image in images {
            let name = format!("{} image {}", path.display(), image.filename);
            if image.split != "test" {
                self.left_out.add(&name, "is of another split than test");
            } else if benchmark.metric != Metric::Captions {
                self.left_out.add(&name, "has captions, and no question");
            } else {
                self.questions.push(captioned(image));
            }
        }
    }

    fn read(&mut self, benchmark: &Benchmark, row: Row<'_>) {
        let fields = FieldsOf::new(&row.fields, row.are_texts);
        let name = format!("{} record {}", row.path.display(), row.id);
        if let Some(reason) = of_another_kind(benchmark, &fields) {
            return self.left_out.add(&name, reason);
        }
        let mut question = match fields.question(benchmark, &row.id) {
            Ok(question) => question,
            Err(reason) => return self.left_out.add(&name, &reason),
        };
        question.has_text_id = fields.has_text_id().unwrap_or(row.is_key);
        // An image alone, which questions refer to, as in the Hub's GQA.
        let images = fields.image_fields();
        if let (Some((file, row)), true, [field, ..]) = (row.table, question.text.is_empty(), images.as_slice())
            && fields.image_name(field).is_none()
            && benchmark.metric != Metric::Captions
        {
            self.held.insert(question.id.clone(), ImagePlace::Row { file, row, fields: images });
            self.images.push((question.id, name));
            return;
        }
        if question.text.is_empty() && benchmark.metric == Metric::Captions {
            question.text = DESCRIBE.into();
        }
        if question.text.is_empty() {
            return self.left_out.add(&name, "has no question");
        }
        if benchmark.metric == Metric::Captions {
            let image = fields.image_fields().iter().find_map(|field| fields.image_name(field));
            name_by_number(&mut question, image.as_deref());
        }
        if question.categories.is_empty() && matches!(benchmark.name, "pope" | "chartqa") {
            question.categories.extend(split_of(row.path));
        }
        self.locate(benchmark, &fields, &row, &mut question);
        self.questions.push(question);
    }

    /// Finds out where the images of a question are.
    fn locate(&mut self, benchmark: &Benchmark, fields: &FieldsOf<'_>, row: &Row<'_>, question: &mut Question) {
        let image_fields = fields.image_fields();
        let names = Vec::from_iter(image_fields.iter().filter_map(|field| fields.image_name(field)));
        let id = question.id.clone();
        if names.len() == image_fields.len() && !names.is_empty() {
            let names = names.iter().flat_map(|name| python_list(name).unwrap_or_else(|| vec![name.clone()]));
            let is_inside = |name: &String| benchmark.name == "scienceqa" && !name.contains('/');
            let within = |name: String| if is_inside(&name) { format!("{id}/{name}") } else { name };
            let names = Vec::from_iter(names.map(|name| PathBuf::from(within(name))));
            question.image = Vec::from_iter(names.iter().map(|name| name.to_string_lossy())).join(",");
            question.place = ImagePlace::Files(names);
        } else if let (Some((file, row)), false) = (row.table, image_fields.is_empty()) {
            question.image = fields.text(&["image_id", "image_source"]).unwrap_or_else(|| id.clone());
            question.place = ImagePlace::Row { file, row, fields: image_fields };
            self.held.insert(id, question.place.clone());
        } else if benchmark.name == "mmvp" {
            question.image = id.clone();
            question.place = ImagePlace::Files(vec![id.into()]);
        }
    }

    fn finish(mut self, benchmark: &Benchmark, data: &Path) -> Result<(Vec<Question>, LeftOutRecords)> {
        let annotations = std::mem::take(&mut self.annotations);
        if !annotations.is_empty() {
            match benchmark.metric {
                Metric::Captions => self.questions.extend(annotations.into_iter().flat_map(captions)),
                _ => self.add_answers(annotations.into_iter().flat_map(|file| file.annotations)),
            }
        }
        self.refer();
        if benchmark.metric == Metric::Captions {
            self.questions = gathered_by_id(self.questions);
        }
        make_unique(&mut self.questions, data)?;
        let questions = match benchmark.metric {
            Metric::CircularChoice => circular::rotations(self.questions),
            Metric::ChoicePairs => circular::pairs(self.questions),
            _ => self.questions,
        };
        Ok((questions, self.left_out))
    }

    /// Adds the right answers of VQA's second file.
    fn add_answers(&mut self, annotations: impl Iterator<Item = Annotation>) {
        let by_id = annotations.filter_map(|annotation| Some((text_of(&annotation.question_id)?, annotation)));
        let mut by_id: HashMap<String, Annotation> = by_id.collect();
        for question in &mut self.questions {
            let Some(annotation) = by_id.remove(&question.id) else { continue };
            question.answers = annotation.answers.into_iter().map(|answer| answer.answer).collect();
            question.categories = annotation.answer_type.into_iter().collect();
        }
    }

    /// Gives questions whose image is the id of another row the image of that row.
    fn refer(&mut self) {
        for question in &mut self.questions {
            if let (ImagePlace::Files(_), Some(place)) = (&question.place, self.held.get(&question.image)) {
                question.place = place.clone();
            }
        }
        let named = HashSet::<&str>::from_iter(self.questions.iter().map(|question| question.image.as_str()));
        for (_, name) in self.images.iter().filter(|(id, _)| !named.contains(id.as_str())) {
            self.left_out.add(name, "has no question, and no question names its image");
        }
    }
}

/// One question for the rows of each image, with the captions of all.
fn gathered_by_id(rows: Vec<Question>) -> Vec<Question> {
    let (mut questions, mut places): (Vec<Question>, HashMap<String, usize>) = Default::default();
    for row in rows {
        let at = *places.entry(row.id.clone()).or_insert(questions.len());
        match questions.get_mut(at) {
            Some(question) => question.answers.extend(row.answers),
            None => questions.push(row),
        }
    }
    questions
}

/// Number of an image of COCO by its name: `42` of `COCO_val2014_000000000042.jpg`.
pub(super) fn coco_number(name: &str) -> Option<&str> {
    let stem = name.rsplit('/').next()?.strip_suffix(".jpg")?;
    let digits =
        stem.strip_prefix("COCO_").map_or(Some(stem), |rest| rest.split_once('_').map(|(_, digits)| digits))?;
    let is_number = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.trim_start_matches('0');
    is_number.then_some(if number.is_empty() { "0" } else { number })
}

/// Gives a caption's question the number of its image as id, by which predictions have it.
fn name_by_number(question: &mut Question, image: Option<&str>) {
    let named = coco_number(&question.id).or_else(|| image.and_then(coco_number)).map(str::to_owned);
    if let Some(number) = named {
        question.has_text_id = false;
        rename(question, number);
    }
}

/// Why a record is none of the questions that are evaluated.
fn of_another_kind(benchmark: &Benchmark, fields: &FieldsOf<'_>) -> Option<&'static str> {
    let is = |name: &str, value: &str| fields.text(&[name]).is_some_and(|found| found == value);
    match benchmark.name {
        "scienceqa" if is("split", "train") || is("split", "val") => Some("is of another split than test"),
        "seedbench" if is("data_type", "video") => Some("is about a video"),
        _ => None,
    }
}

/// `random` of `coco_pope_random.json`.
fn split_of(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_string_lossy().into_owned();
    Some(stem.rsplit('_').next().unwrap_or(&stem).to_owned())
}

/// A question for each image of a file of captions, in the order of its list of images.
fn captions(file: Annotations) -> Vec<Question> {
    let (mut questions, mut places): (Vec<Question>, HashMap<String, usize>) = Default::default();
    let mut place_of = |questions: &mut Vec<Question>, id: String, image: String| {
        *places.entry(id.clone()).or_insert_with(|| {
            let (text, place) = (DESCRIBE.to_owned(), ImagePlace::Files(vec![image.clone().into()]));
            questions.push(Question { group: id.clone(), id, image, text, place, ..Question::default() });
            questions.len() - 1
        })
    };
    for image in file.images {
        let id = text_of(&image.id).unwrap_or_default();
        let name = image.file_name.unwrap_or_else(|| id.clone());
        place_of(&mut questions, id, name);
    }
    for annotation in file.annotations {
        let (Some(id), Some(caption)) = (text_of(&annotation.image_id), annotation.caption) else { continue };
        let at = place_of(&mut questions, id.clone(), id);
        if let Some(question) = questions.get_mut(at) {
            question.answers.push(caption);
        }
    }
    questions.retain(|question| !question.answers.is_empty());
    questions
}

/// The question for an image of Karpathy's file.
fn captioned(image: CaptionedImage) -> Question {
    let stem = image.filename.rsplit_once('.').map_or(image.filename.as_str(), |(stem, _)| stem);
    let id = text_of(&image.cocoid).unwrap_or_else(|| stem.to_owned());
    let (text, place) = (DESCRIBE.to_owned(), ImagePlace::Files(vec![image.filename.clone().into()]));
    let answers = image.sentences.into_iter().map(|sentence| sentence.raw).collect();
    Question { group: id.clone(), id, image: image.filename, text, answers, place, ..Question::default() }
}

/// Makes ids unique: behind the category, as those of POPE, which are unique within one, or before the number among the
/// questions about an image, as those of LLaVA's TextVQA, which are names of images.
fn make_unique(questions: &mut [Question], data: &Path) -> Result<()> {
    let Some(id) = first_twice(questions, |question| question.id.clone()) else { return Ok(()) };
    let of_category =
        |question: &Question| format!("{}/{}", question.categories.first().map_or("", String::as_str), question.id);
    if first_twice(questions, of_category).is_none() {
        questions.iter_mut().for_each(|question| rename(question, of_category(question)));
        return Ok(());
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for question in questions.iter() {
        *counts.entry(question.id.clone()).or_default() += 1;
    }
    counts.retain(|_, count| *count > 1);
    let other = questions.iter().find(|asked| counts.contains_key(&asked.id) && asked.id != asked.image_stem());
    let same = first_twice(questions, |question| format!("{}` and the text `{}", question.id, question.text));
    if other.is_some() || same.is_some() {
        let twice = short(&same.unwrap_or_else(|| other.map_or(id, |other| other.id.clone())));
        return Err(Error::data(format!(
            "{}: two questions have the id `{twice}`, and the same category or none: remove one, or give each its own id",
            data.display()
        )));
    }
    // Backwards, so that what is left of a count is the number of the question.
    for question in questions.iter_mut().rev() {
        if let Some(number) = counts.get_mut(&question.id) {
            let shared = question.id.clone();
            rename(question, format!("{shared}/{number}"));
            question.shared_id = Some(shared);
            *number -= 1;
        }
    }
    Ok(())
}

fn rename(question: &mut Question, id: String) {
    question.group.clone_from(&id);
    question.id = id;
}

/// The first of these names that two questions have.
fn first_twice(questions: &[Question], name: impl Fn(&Question) -> String) -> Option<String> {
    let mut seen = HashSet::new();
    questions.iter().map(name).find(|name| !seen.insert(name.clone()))
}
