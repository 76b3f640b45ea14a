//! Vocabulary of a run: the tokenizer with the tokens that the recipe adds, and the model configuration that follows it.

mod coverage;
mod rows;
mod surfaces;
mod words;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use self::coverage::{CoverageReport, Sample, check_coverage};
pub(super) use self::rows::{SourceVocabulary, row_map};
pub(super) use self::words::write_chosen;
use super::recipe::Recipe;
use crate::Result;
use crate::config::HaploVlConfig;
use crate::data::shapes::tokenizer as shapes_tokenizer;
use crate::data::{Dataset, Record};
use crate::processor::{ChatTemplate, Processor, ProcessorSettings, TextTokenizer, missing_tokens};

/// Added tokens that a message lists; more are only counted.
const LISTED: usize = 10;

/// The vocabulary of a run.
pub(super) struct Vocabulary {
    pub processor: Arc<Processor>,
    /// The recipe's model configuration with the sizes and ids of the tokenizer.
    pub config: HaploVlConfig,
    /// Tokens that were added, in the order of their ids.
    pub added: Vec<String>,
    /// Words that were chosen among those of the training texts.
    pub chosen: Vec<String>,
    coverage: Option<CoverageReport>,
}

impl Vocabulary {
    /// Opens the tokenizer of a recipe, and adds what the recipe asks for and what the chat template needs.
    ///
    /// # Errors
    /// The errors of the tokenizer's files, and [`Error::Data`](crate::Error::Data) if it lacks too many of the words to
    /// learn.
    pub fn open(recipe: &Recipe, config: &HaploVlConfig, samples: &dyn Dataset<Item = Record>) -> Result<Self> {
        let parts = Parts::open(recipe, config)?;
        let sample = Sample { samples, form: recipe.stage.sample_form() };
        let chosen = words::chosen(recipe, &parts.tokenizer, &sample)?;
        let words: Vec<String> = recipe.tokenizer.add.iter().chain(&chosen).cloned().collect();
        let (parts, added) = parts.with_words(&words)?;
        let coverage = check_coverage(recipe, &parts.tokenizer, &sample)?;
        let (config, processor) = parts.processor(config)?;
        Ok(Self { processor: Arc::new(processor), config, added, chosen, coverage })
    }
}

/// The processor of a model folder for a model of another configuration, with the special tokens that it lacks, and the
/// configuration with its ids.
///
/// # Errors
/// The errors of the folder's files.
pub(crate) fn adopt_processor(folder: &Path, config: &HaploVlConfig) -> Result<(HaploVlConfig, Processor)> {
    let parts = Parts::from_folder(folder, ProcessorSettings::new(config), config)?;
    parts.with_words(&[])?.0.processor(config)
}

impl fmt::Display for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokenizer = self.processor.tokenizer();
        write!(f, "vocabulary: {} tokens, {} rows", tokenizer.size(), self.config.vocab_size)?;
        if !self.added.is_empty() {
            let first: Vec<String> = self.added.iter().take(LISTED).map(|token| format!("{token:?}")).collect();
            let more = self.added.len().saturating_sub(LISTED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            write!(f, "; {} added: {}{more}", self.added.len(), first.join(", "))?;
        }
        self.coverage.as_ref().map_or(Ok(()), |coverage| write!(f, "\n{coverage}"))
    }
}

/// Parts of a processor as they were published.
struct Parts {
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    settings: ProcessorSettings,
}

impl Parts {
    fn open(recipe: &Recipe, config: &HaploVlConfig) -> Result<Self> {
        let settings = ProcessorSettings::new(config);
        if recipe.tokenizer.source == "shapes" {
            return Ok(Self { tokenizer: shapes_tokenizer()?, template: None, settings });
        }
        let model = recipe.open_model_source("tokenizer", &recipe.tokenizer.source)?;
        Self::from_folder(model.path(), settings, config)
    }

    /// Tokenizer, template and placeholder words of a folder; its image settings belong to another model.
    fn from_folder(folder: &Path, mut settings: ProcessorSettings, config: &HaploVlConfig) -> Result<Self> {
        settings.tokens = ProcessorSettings::tokens_of(folder, config)?;
        let template = ChatTemplate::from_folder(folder)?;
        Ok(Self { tokenizer: TextTokenizer::from_folder(folder)?, template, settings })
    }

    /// Adds words and the special tokens that the template and the placeholders need; returns the added tokens, too.
    fn with_words(self, words: &[String]) -> Result<(Self, Vec<String>)> {
        let special = missing_tokens(&self.tokenizer, self.template.as_ref(), &self.settings.tokens)?;
        let (tokenizer, added) = self.tokenizer.with_tokens(&special, words)?;
        Ok((Self { tokenizer, ..self }, added))
    }

    /// The processor, and the model configuration that follows it.
    fn processor(mut self, config: &HaploVlConfig) -> Result<(HaploVlConfig, Processor)> {
        let config = follow(config, &self.tokenizer, &self.settings)?;
        self.settings.tokens.num_image_tokens = config.vision.patches_per_tile();
        let processor = Processor::new(&config, self.settings, self.tokenizer, self.template)?;
        Ok((config, processor))
    }
}

/// The configuration with a vocabulary that holds every token, and with the ids of the placeholders. It never shrinks:
/// published models have more rows than tokens.
fn follow(config: &HaploVlConfig, tokenizer: &TextTokenizer, settings: &ProcessorSettings) -> Result<HaploVlConfig> {
    let mut config = config.clone();
    config.vocab_size = config.vocab_size.max(tokenizer.size());
    config.image_token_index = tokenizer.id(&settings.tokens.image_token).unwrap_or(config.image_token_index);
    config.video_token_index = tokenizer.id(&settings.tokens.video_token).unwrap_or(config.video_token_index);
    config.validate()?;
    Ok(config)
}
