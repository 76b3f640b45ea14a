//! Processor: conversations to sequences and batches.

use std::borrow::Cow;
use std::path::Path;

use candle_core::Device;
use image::RgbImage;
use rayon::prelude::*;
use serde_json::Value;

use super::chat_template::ChatTemplate;
use super::conversation::{Content, Conversation, Message, Role};
use super::decode::ImageDecoder;
use super::folder;
use super::image::ImageProcessor;
use super::needed_tokens::{control_tokens, probe};
use super::prompt::Prompt;
use super::tokenizer::{TextTokenizer, Token};
use super::video::VideoProcessor;
use crate::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, PaddingSide, Sequence, Visual, too_long};
use crate::config::{HaploVlConfig, PreprocessorConfig, ProcessorConfig};
use crate::patch_grid::{PatchGrid, Size};
use crate::{Error, Result};

/// Lower bound on the maximum bytes of a token, also where a word unknown to the tokenizer is one token.
const MIN_BYTES_PER_TOKEN: usize = 16;

/// Preprocessing settings: the content of the three processor files.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorSettings {
    /// `preprocessor_config.json`.
    pub image: PreprocessorConfig,
    /// `video_processor/preprocessor_config.json`.
    pub video: PreprocessorConfig,
    /// `processor_config.json`.
    pub tokens: ProcessorConfig,
}

impl ProcessorSettings {
    /// The settings of the released models, for a model of this configuration.
    pub fn new(config: &HaploVlConfig) -> Self {
        Self {
            image: PreprocessorConfig::image(&config.vision),
            video: PreprocessorConfig::video(&config.vision),
            tokens: ProcessorConfig::new(&config.vision),
        }
    }

    /// The placeholders of `processor_config.json` in a folder, for a model of this configuration; without the file,
    /// those of the released models.
    ///
    /// # Errors
    /// An error naming the file if it is invalid.
    pub(crate) fn tokens_of(folder: &Path, config: &HaploVlConfig) -> Result<ProcessorConfig> {
        folder::read_tokens(folder, config)
    }
}

/// Processor: converts conversations to the model's input.
#[derive(Debug, Clone)]
pub struct Processor {
    model: HaploVlConfig,
    settings: ProcessorSettings,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    images: ImageProcessor,
    videos: VideoProcessor,
    decoder: ImageDecoder,
    end_of_turn: EndOfTurn,
    /// Whether the template accepts system messages.
    takes_system: bool,
    lead: Lead,
}

/// What the template writes between its prompt for an answer and the assistant's text.
#[derive(Debug, Clone, Default)]
struct Lead {
    /// Start of the assistant's turn, which a template that ignores `add_generation_prompt` leaves out of the prompt.
    prompted: String,
    /// The rest, which the model has to write: the space after Vicuna's `ASSISTANT:`.
    learned: String,
}

/// End of the assistant's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndOfTurn {
    /// Special token that the chat template writes after the assistant's text.
    Template(u32),
    /// The tokenizer's `eos_token`: the template ends no turn, so training sequences get this token after the assistant's
    /// last text, and it is learned.
    Added(u32),
    /// None: the template ends no turn and the tokenizer has no `eos_token`, so that answers never end; or the template
    /// refuses a question with its answer.
    Missing,
}

impl EndOfTurn {
    /// Id of the token.
    pub fn id(self) -> Option<u32> {
        match self {
            Self::Template(id) | Self::Added(id) => Some(id),
            Self::Missing => None,
        }
    }
}

impl Processor {
    /// Builds a processor from its parts; without a template, ChatML is used.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a placeholder or a control token of the template is missing, has another id than the
    /// model expects, or ids exceed the model's vocabulary, and the errors of [`ImageProcessor::new`].
    pub fn new(
        model: &HaploVlConfig,
        settings: ProcessorSettings,
        tokenizer: TextTokenizer,
        template: Option<ChatTemplate>,
    ) -> Result<Self> {
        settings.tokens.validate()?;
        let ProcessorConfig { image_token, video_token, .. } = &settings.tokens;
        tokenizer.check_placeholder(image_token, "image_token_index", model.image_token_index)?;
        tokenizer.check_placeholder(video_token, "video_token_index", model.video_token_index)?;
        tokenizer.check_vocabulary(model.vocab_size)?;
        let (template, own) = match template {
            Some(template) => (template, true),
            None => (ChatTemplate::chatml(image_token, video_token)?, false),
        };
        let mut processor = Self {
            images: ImageProcessor::new(&settings.image, &model.vision)?,
            videos: VideoProcessor::new(&settings.video, &model.vision)?,
            decoder: ImageDecoder::default(),
            model: model.clone(),
            end_of_turn: EndOfTurn::Missing,
            takes_system: true,
            lead: Lead::default(),
            settings,
            tokenizer,
            template,
        };
        processor.takes_system = processor.probe_system();
        processor.lead = processor.probe_lead().unwrap_or_default();
        processor.end_of_turn = processor.probe_end_of_turn();
        if processor.end_of_turn.id().is_none() && !own {
            return Err(Error::tokenizer(
                "has no special token `<|im_end|>`, which ends a turn in ChatML: add it to tokenizer.json, or bring \
                 the model's own chat_template.json",
            ));
        }
        processor.check_control_tokens()?;
        Ok(processor)
    }

    /// Reads the processor of a model folder: `tokenizer.json` and, if they exist, `tokenizer_config.json`, the chat
    /// template and the processor files.
    ///
    /// # Errors
    /// The errors of [`Self::new`], and an error for each invalid file.
    pub fn from_folder(path: impl AsRef<Path>, model: &HaploVlConfig) -> Result<Self> {
        let path = path.as_ref();
        let template = ChatTemplate::from_folder(path)?;
        Self::new(model, folder::read_settings(path, model)?, TextTokenizer::from_folder(path)?, template)
    }

    /// Writes all files that [`Self::from_folder`] reads, in the form that HF reads too. The folder is created if
    /// necessary; each file is written whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        folder::write(path.as_ref(), &self.settings, &self.tokenizer, &self.template)
    }

    /// Encodes a conversation as a sequence, with one placeholder per image token.
    ///
    /// With `add_generation_prompt`, the sequence ends where the assistant continues.
    ///
    /// # Errors
    /// [`Error::Prompt`] if images and placeholders disagree, [`Error::ChatTemplate`], [`Error::Tokenizer`], and
    /// [`Error::Image`] for an unusable image.
    pub fn sequence(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<Sequence> {
        let (_, tokens) = self.tokens(conversation, add_generation_prompt)?;
        self.expand(&tokens, None, conversation)
    }

    /// Encodes a finished conversation with labels: the assistant's texts and the token that ends its turn are learned,
    /// all other labels are [`IGNORE_INDEX`]. Labels are aligned with their tokens; the loss shifts them.
    ///
    /// A conversation that is one text of the assistant is learned without the template where the template refuses it, as
    /// templates do that insist on a user's turn first: `bos_token` if `add_bos_token` is set, the text, and the end
    /// token.
    ///
    /// # Errors
    /// The errors of [`Self::sequence`].
    pub fn training_sequence(&self, conversation: &Conversation) -> Result<Sequence> {
        let rendered = match (self.tokens(conversation, false), conversation.messages.as_slice()) {
            (Err(Error::ChatTemplate(_)), [Message { role: Role::Assistant, content }]) => {
                return self.plain_text(content);
            }
            (rendered, _) => rendered?,
        };
        let (prompt, mut tokens) = rendered;
        if let EndOfTurn::Added(id) = self.end_of_turn {
            end_last_turn(&mut tokens, &prompt, id);
        }
        let labels = self.labels(&prompt, &tokens);
        self.expand(&tokens, Some(&labels), conversation)
    }

    /// Encodes a text to continue as a sequence, without the chat template: `bos_token` if `add_bos_token` is set, and
    /// the text, in which control tokens are plain text.
    ///
    /// # Errors
    /// [`Error::Prompt`] for a text without tokens, or one that exceeds the model's context, and [`Error::Tokenizer`].
    pub fn text_sequence(&self, text: &str) -> Result<Sequence> {
        self.check_bytes(text.len())?;
        let mut input_ids = Vec::from_iter(self.added_bos());
        input_ids.extend(self.tokenizer.encode(text)?);
        if input_ids.is_empty() {
            return Err(Error::prompt("is empty, expected a text of at least one token"));
        }
        Ok(Sequence { input_ids, labels: None, visuals: Vec::new() })
    }

    /// A text as a sequence whose tokens are all labels, but for `bos_token`.
    fn plain_text(&self, content: &[Content]) -> Result<Sequence> {
        let text: String = content.iter().filter_map(Content::text).collect();
        let context = self.model.max_position_embeddings;
        let mut labels = self.tokenizer.encode(text.trim())?;
        labels.extend(self.end_of_turn.id());
        let mut input_ids = labels.clone();
        if let Some(bos) = self.added_bos() {
            input_ids.insert(0, bos);
            labels.insert(0, IGNORE_INDEX);
        }
        if input_ids.len() > context {
            return Err(too_long(input_ids.len(), context));
        }
        Ok(Sequence { input_ids, labels: Some(labels), visuals: Vec::new() })
    }

    /// Encodes conversations that await an answer as a batch, one per row, padded on the left.
    ///
    /// # Errors
    /// The errors of [`Self::sequence`] and [`MultimodalBatch::new`].
    pub fn batch(&self, conversations: &[Conversation], device: &Device) -> Result<MultimodalBatch> {
        let sequences = conversations.iter().map(|conversation| self.sequence(conversation, true));
        let sequences: Vec<_> = sequences.collect::<Result<_>>()?;
        MultimodalBatch::new(&sequences, BatchSpec::new(&self.model), PaddingSide::Left, device)
    }

    /// The same processor with another number of frames sampled from each video; the default is 12.
    ///
    /// # Errors
    /// [`Error::Config`] unless `num_frames` is in 1..=16.
    pub fn with_num_frames(self, num_frames: usize) -> Result<Self> {
        Ok(Self { videos: self.videos.with_num_frames(num_frames)?, ..self })
    }

    /// The same processor with another [`Self::decoder`], for example with another pixel limit.
    pub fn with_decoder(self, decoder: ImageDecoder) -> Self {
        Self { decoder, ..self }
    }

    /// The same processor for sequences of up to `length` tokens, whatever the model's context.
    pub(crate) fn with_max_length(mut self, length: usize) -> Self {
        self.model.max_position_embeddings = length;
        self
    }

    /// The decoder of image files.
    pub fn decoder(&self) -> &ImageDecoder {
        &self.decoder
    }

    /// The image processor.
    pub fn images(&self) -> &ImageProcessor {
        &self.images
    }

    /// The video processor.
    pub fn videos(&self) -> &VideoProcessor {
        &self.videos
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The preprocessing settings.
    pub fn settings(&self) -> &ProcessorSettings {
        &self.settings
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The end-of-sequence ids: the token after a turn in the chat template, and the tokenizer's `eos_token`.
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids: Vec<_> = self.end_of_turn.id().into_iter().chain(self.tokenizer.eos_id()).collect();
        ids.dedup();
        ids
    }

    /// Id of `bos_token`, if `add_bos_token` of `tokenizer_config.json` is set.
    fn added_bos(&self) -> Option<u32> {
        let is_added = self.tokenizer.config().get("add_bos_token").and_then(Value::as_bool).unwrap_or(false);
        let (_, token) = self.tokenizer.named_tokens().find(|(name, _)| *name == "bos_token")?;
        self.tokenizer.id(token).filter(|_| is_added)
    }

    /// End of the assistant's turn; worth a notice to the user unless it is [`EndOfTurn::Template`].
    pub fn end_of_turn(&self) -> EndOfTurn {
        self.end_of_turn
    }

    pub(super) fn tokens(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<(Prompt, Vec<Token>)> {
        let texts = conversation.messages.iter().flat_map(Message::texts).map(str::len);
        self.check_bytes(texts.fold(0, usize::saturating_add))?;
        let prompt = self.render(conversation, add_generation_prompt)?;
        let tokens = self.tokenizer.encode_prompt(&prompt, self.model.max_position_embeddings)?;
        Ok((prompt, tokens))
    }

    fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<Prompt> {
        let special = self.tokenizer.named_tokens().map(|(name, token)| (name, token.into()));
        // A special token in a text stays plain text.
        let is_plain = |tag: &&str| self.tokenizer.id(tag).is_none_or(|id| !self.tokenizer.is_special(id));
        let tags: Vec<&str> = self.template.tags().iter().map(String::as_str).filter(is_plain).collect();
        let conversation = self.for_template(conversation);
        let tokens = &self.settings.tokens;
        let mut prompt = Prompt::render(&self.template, &conversation, add_generation_prompt, tokens, &tags, special)?;
        let awaits_answer = conversation.messages.last().is_some_and(|message| message.role != Role::Assistant);
        if add_generation_prompt && awaits_answer {
            prompt.text.push_str(&self.lead.prompted);
        }
        Ok(prompt)
    }

    /// The conversation in a form that the template accepts: without support for system messages, their text comes
    /// before that of the next user message.
    fn for_template<'c>(&self, conversation: &'c Conversation) -> Cow<'c, Conversation> {
        if self.takes_system || !conversation.messages.iter().any(|message| message.role == Role::System) {
            return Cow::Borrowed(conversation);
        }
        Cow::Owned(conversation.with_system_in_user_messages())
    }

    fn labels(&self, prompt: &Prompt, tokens: &[Token]) -> Vec<u32> {
        let mut labels = vec![IGNORE_INDEX; tokens.len()];
        for span in prompt.spans.iter().filter(|span| span.assistant) {
            let lead = prompt.text[..span.range.start].strip_suffix(&self.lead.learned);
            let start = lead.map_or(span.range.start, str::len);
            let first =
                tokens.partition_point(|token| token.range.end <= span.range.start && token.range.start < start);
            for (label, token) in labels.iter_mut().zip(tokens).skip(first) {
                let said = token.range.start < span.range.end;
                let after = prompt.text.get(span.range.end..token.range.end).unwrap_or_default();
                let ends_turn = !said && self.tokenizer.is_control(token, &prompt.text);
                if !said && !ends_turn && !after.trim().is_empty() {
                    break;
                }
                *label = token.id;
                if ends_turn {
                    break;
                }
            }
        }
        labels
    }

    /// Rejects more text than any tokenisation could fit into the context, before rendering.
    fn check_bytes(&self, bytes: usize) -> Result<()> {
        let context = self.model.max_position_embeddings;
        let most = context.saturating_mul(self.tokenizer.longest_token().max(MIN_BYTES_PER_TOKEN));
        if bytes > most {
            let message =
                format!("has {bytes} bytes of text, more than fit the model's context of {context} tokens: shorten it");
            return Err(Error::prompt(message));
        }
        Ok(())
    }

    /// Checks that the vocabulary has every control token of the configuration and of the template; a missing one would
    /// be encoded as plain text.
    fn check_control_tokens(&self) -> Result<()> {
        self.tokenizer.check_named_tokens()?;
        match self.render(&probe(), true) {
            Ok(prompt) => control_tokens(&prompt.text).try_for_each(|token| self.tokenizer.check_control_token(token)),
            // A template's errors are reported on use: it may fail on this conversation only.
            Err(_) => Ok(()),
        }
    }

    /// The token that the template writes after the assistant's text, else the tokenizer's `eos_token`.
    fn probe_end_of_turn(&self) -> EndOfTurn {
        let with_system = [Message::system("a")].into_iter().chain(probe().messages).collect();
        let Some((prompt, tokens)) = [probe(), with_system].iter().find_map(|probe| self.tokens(probe, false).ok())
        else {
            return EndOfTurn::Missing;
        };
        let last = self.labels(&prompt, &tokens).iter().rposition(|&label| label != IGNORE_INDEX);
        match last.map(|at| &tokens[at]).filter(|token| self.tokenizer.is_control(token, &prompt.text)) {
            Some(token) => EndOfTurn::Template(token.id),
            None => self.tokenizer.eos_id().map_or(EndOfTurn::Missing, EndOfTurn::Added),
        }
    }

    /// Whether the template writes a system message before messages that it accepts; some refuse it, some drop it.
    fn probe_system(&self) -> bool {
        let with_system = [Message::system("a")].into_iter().chain(probe().messages).collect();
        let is_whole = |prompt: Prompt| prompt.spans.len() > probe().messages.len();
        self.render(&with_system, true).is_ok_and(is_whole) || self.render(&probe(), true).is_err()
    }

    /// What stands between a prompt and its answer in a training sample.
    fn probe_lead(&self) -> Option<Lead> {
        let question = probe().messages.into_iter().take(1).collect();
        let prompt = self.render(&question, true).ok()?.text;
        let answered = self.render(&probe(), false).ok()?;
        let span = answered.spans.iter().find(|span| span.assistant)?;
        let lead = answered.text[..span.range.start].strip_prefix(&prompt)?;
        let is_ignored = self.render(&question, false).is_ok_and(|without| without.text == prompt);
        // A space becomes part of the first word in most vocabularies.
        let prompted = if is_ignored { lead.trim_end_matches(' ') } else { "" };
        let prompted = if prompted.trim().is_empty() { "" } else { prompted };
        Some(Lead { prompted: prompted.to_owned(), learned: lead[prompted.len()..].to_owned() })
    }

    /// Rejects what cannot fit the context before any pixel is read.
    fn check_length(&self, tokens: &[Token], conversation: &Conversation) -> Result<()> {
        let mut length = tokens.len();
        for image in conversation.messages.iter().flat_map(Message::images) {
            let size = Size::new(image.height() as usize, image.width() as usize);
            // The template wrote one placeholder for the image already.
            length = length.saturating_add(PatchGrid::new(&self.model.vision, size)?.tokens().saturating_sub(1));
        }
        let context = self.model.max_position_embeddings;
        if length > context { Err(too_long(length, context)) } else { Ok(()) }
    }

    /// Repeats each placeholder once per token of its image.
    fn expand(&self, tokens: &[Token], labels: Option<&[u32]>, conversation: &Conversation) -> Result<Sequence> {
        self.check_length(tokens, conversation)?;
        let mut visuals = self.visuals(tokens, conversation)?.into_iter();
        let mut sequence = Sequence { input_ids: Vec::new(), labels: labels.map(|_| Vec::new()), visuals: Vec::new() };
        for (n, token) in tokens.iter().enumerate() {
            let (mut length, mut label) = (1, labels.and_then(|labels| labels.get(n)).copied());
            if self.is_placeholder(token.id)
                && let Some(visual) = visuals.next()
            {
                (length, label) = (visual.tokens(&self.model.vision)?, Some(IGNORE_INDEX));
                sequence.visuals.push(visual);
            }
            sequence.input_ids.extend(std::iter::repeat_n(token.id, length));
            if let (Some(labels), Some(label)) = (&mut sequence.labels, label) {
                labels.extend(std::iter::repeat_n(label, length));
            }
        }
        Ok(sequence)
    }

    /// Preprocesses images and videos in parallel, in the order of their placeholders.
    fn visuals(&self, tokens: &[Token], conversation: &Conversation) -> Result<Vec<Visual>> {
        let images: Vec<&RgbImage> = conversation.messages.iter().flat_map(Message::images).collect();
        let videos: Vec<&[RgbImage]> = conversation.messages.iter().flat_map(Message::videos).collect();
        let ProcessorConfig { image_token, video_token, .. } = &self.settings.tokens;
        self.check_count(tokens, self.model.image_token_index, image_token, images.len())?;
        self.check_count(tokens, self.model.video_token_index, video_token, videos.len())?;
        let (mut images, mut videos) = (images.into_iter(), videos.into_iter());
        let placeholders = tokens.iter().filter(|token| self.is_placeholder(token.id));
        let in_order: Vec<_> = placeholders
            .filter_map(|token| {
                let image = token.id == self.model.image_token_index;
                if image { images.next().map(Media::Image) } else { videos.next().map(Media::Video) }
            })
            .collect();
        in_order
            .into_par_iter()
            .map(|media| match media {
                Media::Image(image) => self.images.process(image),
                Media::Video(frames) => self.videos.process(frames),
            })
            .collect()
    }

    fn check_count(&self, tokens: &[Token], id: u32, token: &str, given: usize) -> Result<()> {
        let asked = tokens.iter().filter(|found| found.id == id).count();
        if asked == given {
            return Ok(());
        }
        Err(Error::prompt(format!(
            "the chat template writes `{token}` {asked} time(s) for {given} given: use a template that writes it once \
             for each, and put images into user messages"
        )))
    }

    pub(crate) fn is_placeholder(&self, id: u32) -> bool {
        id == self.model.image_token_index || id == self.model.video_token_index
    }
}

/// Inserts an end token after the assistant's last text. Earlier turns stay as the template writes them, since a model
/// sees them so in a later prompt.
fn end_last_turn(tokens: &mut Vec<Token>, prompt: &Prompt, id: u32) {
    if let Some(span) = prompt.spans.iter().rfind(|span| span.assistant) {
        let end = span.range.end;
        let at = tokens.partition_point(|token| token.range.start < end);
        tokens.insert(at, Token { id, range: end..end });
    }
}

/// An image or a video before preprocessing.
enum Media<'a> {
    Image(&'a RgbImage),
    Video(&'a [RgbImage]),
}
