//! The questions of a benchmark, from its files.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::containers::{Annotation, Annotations, Container};
use super::predictions::Prediction;
use super::python_list::python_list;
use super::question::{ImagePlace, Question};
use super::row::{FieldsOf, plain, text_of};
use super::{Benchmark, Metric, circular, files};
use crate::data::shapes::{QuestionKind, ShapesConfig, Split};
use crate::data::{ImageSource, JsonObjects, Record, Turn};
use crate::error::one_line;
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
            }
        }
        let (questions, left_out) = gathered.finish(benchmark)?;
        if questions.is_empty() {
            let reason = left_out.named.first().cloned().unwrap_or_else(|| "its files have no records".into());
            return Err(Error::data(format!("{}: no question of {} ({reason})", data.display(), benchmark.title)));
        }
        let images = images.unwrap_or(folder).to_path_buf();
        Ok(Self { benchmark, questions, paths, tables, images, left_out, side: 0 })
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
        Ok(Self { benchmark, questions, paths: Vec::new(), tables, images, left_out, side })
    }

    /// The benchmark.
    pub fn benchmark(&self) -> &'static Benchmark {
        self.benchmark
    }

    /// The questions, in the order of their files.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// The files that were read.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Number of questions without an image.
    pub fn without_image(&self) -> usize {
        self.questions.iter().filter(|question| question.place == ImagePlace::Nowhere).count()
    }

    /// Number of records that are no questions, and why the first of them are not.
    pub fn left_out(&self) -> (usize, &[String]) {
        (self.left_out.count, &self.left_out.named)
    }

    /// The same set with its first `count` groups of questions only: a group is what is scored together.
    #[must_use]
    pub fn limited(mut self, count: usize) -> Self {
        let mut groups = HashSet::new();
        self.questions.retain(|question| {
            groups.contains(&question.group) || (groups.len() < count && groups.insert(question.group.clone()))
        });
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

    /// The prediction of each question, by id; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Data`] for two predictions of one id that differ, and if there is none of any question.
    pub fn matched<'p>(&self, predictions: &'p [Prediction]) -> Result<Vec<Option<&'p Prediction>>> {
        let mut by_id: HashMap<&str, &Prediction> = HashMap::new();
        for prediction in predictions {
            let found = by_id.entry(self.question_id(prediction)).or_insert(prediction);
            // A resumed run asks questions again that failed.
            if found.answer.is_none() {
                *found = prediction;
            }
            if prediction.answer.is_some() && !found.says_the_same(prediction) {
                let message = format!("the predictions have question {} twice, with other answers", prediction.id);
                return Err(Error::data(message + ": remove one"));
            }
        }
        let found = self.questions.iter().map(|question| by_id.get(question.id.as_str()).copied());
        let found = Vec::from_iter(found);
        if found.iter().all(Option::is_none) {
            let id = |ids: Option<&str>| ids.unwrap_or_default().to_owned();
            let (theirs, ours) =
                (predictions.first().map(|p| p.id.as_str()), self.questions.first().map(|q| q.id.as_str()));
            return Err(Error::data(format!(
                "no prediction is of a question of {}: ids are like {}, expected like {}",
                self.benchmark.title,
                id(theirs),
                id(ours)
            )));
        }
        self.check_prompts(&found)?;
        Ok(found)
    }

    /// Number of predictions that are of none of the questions.
    pub fn count_others(&self, predictions: &[Prediction]) -> usize {
        let ids = HashSet::<&str>::from_iter(self.questions.iter().map(|question| question.id.as_str()));
        predictions.iter().filter(|prediction| !ids.contains(self.question_id(prediction))).count()
    }

    /// Id of the question of a prediction, which may have the name of an image for its number.
    fn question_id<'p>(&self, prediction: &'p Prediction) -> &'p str {
        let number = if self.benchmark.metric == Metric::Captions { coco_number(&prediction.id) } else { None };
        number.unwrap_or(&prediction.id)
    }

    /// Refuses predictions whose prompts are of other questions for the most part: numbers from 1 are ids in many files.
    fn check_prompts(&self, predictions: &[Option<&Prediction>]) -> Result<()> {
        // What is asked for captions is no part of their files.
        if self.benchmark.metric == Metric::Captions {
            return Ok(());
        }
        // Hints, options and instructions may be others in the prompt of another tool, also behind the question.
        let has_line = |question: &Question, prompt: &str| {
            let prompt = plain_words(prompt);
            let lines = question.text.lines().take(if question.is_prompt { 1 } else { usize::MAX });
            let asked = lines.filter_map(|line| line.split_inclusive('?').next()).map(plain_words);
            Vec::from_iter(asked.filter(|line| !line.is_empty())).iter().any(|line| prompt.contains(line))
        };
        let pairs = self.questions.iter().zip(predictions).filter_map(|(question, found)| Some((question, (*found)?)));
        let with_prompt = pairs.filter_map(|(question, found)| Some((question, found.prompt.as_deref()?)));
        let (same, others): (Vec<_>, Vec<_>) = with_prompt.partition(|(question, prompt)| has_line(question, prompt));
        match others.first() {
            Some((question, prompt)) if others.len() > same.len() => Err(Error::data(format!(
                "the predictions are of other questions: `prompt` of {} is `{}`, expected `{}` in it ({} such): choose those of \
                 this file, or remove `prompt`",
                question.id,
                short(prompt),
                short(&question.text),
                others.len()
            ))),
            _ => Ok(()),
        }
    }
}

/// The words of a text in lower case, without tags such as `<image 1>`.
fn plain_words(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for (at, part) in text.split("<image").enumerate() {
        let part = part.split_once('>').filter(|_| at > 0).map_or(part, |(_, rest)| rest);
        plain.extend([" ", part]);
    }
    Vec::from_iter(plain.split_whitespace()).join(" ").to_lowercase()
}

/// The beginning of a text, in one line.
fn short(text: &str) -> String {
    one_line(text).chars().take(60).collect()
}

impl Gathered {
    fn read_table(&mut self, benchmark: &Benchmark, path: &Path, table: &JsonObjects, file: usize) {
        let are_texts = table.has_texts_only();
        for row in 0..table.len() {
            match table.read(row) {
                Ok(fields) => {
                    let (id, table) = ((row + 1).to_string(), Some((file, row)));
                    self.read(benchmark, Row { fields, are_texts, id, table, path });
                }
                Err(error) => self.left_out.add(&table.describe(row), &error.to_string()),
            }
        }
    }

    fn read_records(&mut self, benchmark: &Benchmark, path: &Path, records: Vec<(Option<String>, Map<String, Value>)>) {
        for (number, (key, fields)) in (1..).zip(records) {
            let id = key.unwrap_or_else(|| number.to_string());
            self.read(benchmark, Row { fields, are_texts: false, id, table: None, path });
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
            let within = |name: String| if benchmark.name == "scienceqa" { format!("{id}/{name}") } else { name };
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

    fn finish(mut self, benchmark: &Benchmark) -> Result<(Vec<Question>, LeftOutRecords)> {
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
        make_unique(&mut self.questions)?;
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
fn coco_number(name: &str) -> Option<&str> {
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
        question.group.clone_from(&number);
        question.id = number;
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

/// Puts the category before ids that are unique only within one, as POPE's are.
fn make_unique(questions: &mut [Question]) -> Result<()> {
    let twice = |questions: &[Question]| {
        let mut seen = HashSet::new();
        questions.iter().find(|question| !seen.insert(question.id.clone())).map(|question| question.id.clone())
    };
    if twice(questions).is_none() {
        return Ok(());
    }
    for question in questions.iter_mut() {
        let category = question.categories.first().cloned().unwrap_or_default();
        question.id = format!("{category}/{}", question.id);
        question.group = question.id.clone();
    }
    match twice(questions) {
        None => Ok(()),
        Some(id) => Err(Error::data(format!("two questions have the id {id}, also within their category: rename one"))),
    }
}
