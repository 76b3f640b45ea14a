//! Collation: conversations to sequences, and sequences to batches.

use candle_core::Device;

use crate::Result;
use crate::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, Sequence};
use crate::config::HaploVlConfig;
use crate::data::{BadSample, IMAGE_MARKER, Length, Record, SampleResult, VIDEO_MARKER};
use crate::processor::{Message, Processor, Role};

/// Form in which a stage trains on a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SampleForm {
    /// The whole conversation; the assistant's turns are labels.
    Dialogue,
    /// The whole conversation without its images; every token is a label.
    Words,
    /// Each turn of the assistant as a separate text, and the image beside them.
    CaptionPair,
}

/// Longest sample, and what is done with a longer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// Longest sample in tokens.
    pub longest: usize,
    /// Whether a longer sample loses the end of its last answer, instead of being bad.
    pub truncates: bool,
}

impl Limit {
    /// No limit.
    pub const NONE: Self = Self { longest: usize::MAX, truncates: false };

    /// The sequence, with the end of its last answer cut off if it is too long and that suffices.
    ///
    /// # Errors
    /// [`BadSample::TooLong`].
    fn apply(self, sequence: Sequence, processor: &Processor) -> SampleResult<Prepared> {
        let (length, limit) = (sequence.len(), self.longest);
        if length <= limit {
            return Ok(Prepared { sequence, is_cut: false });
        }
        if self.truncates && starts_last_answer_before(&sequence, limit, processor) {
            return Ok(Prepared { sequence: first_tokens(sequence, limit), is_cut: true });
        }
        Err(BadSample::TooLong { length, limit })
    }
}

/// Whether the last answer starts before position `end`, so that nothing but its end and what follows it is lost by
/// ending there. Images after the answer are not lost.
fn starts_last_answer_before(sequence: &Sequence, end: usize, processor: &Processor) -> bool {
    let labels = sequence.labels.as_deref().unwrap_or_default();
    let Some(last) = labels.iter().rposition(|label| *label != IGNORE_INDEX) else { return false };
    let first = labels[..last].iter().rposition(|label| *label == IGNORE_INDEX).map_or(0, |before| before + 1);
    first < end && !sequence.input_ids[end..].iter().any(|id| processor.is_placeholder(*id))
}

/// The first `end` tokens; a token that ended the turn is lost with the rest, so that no early end is learnt.
fn first_tokens(mut sequence: Sequence, end: usize) -> Sequence {
    sequence.input_ids.truncate(end);
    sequence.labels.iter_mut().for_each(|labels| labels.truncate(end));
    sequence
}

/// Sample that is ready for batching.
#[derive(Debug)]
pub(super) struct Prepared {
    pub sequence: Sequence,
    /// Whether the last answer was cut to fit the limit.
    pub is_cut: bool,
}

impl Length for Prepared {
    fn length(&self) -> usize {
        self.sequence.len()
    }
}

impl SampleForm {
    /// One sample, ready for batching; runs on worker threads.
    ///
    /// # Errors
    /// [`BadSample::TooLong`] above the limit, and other reasons why a sample cannot be used.
    pub(super) fn prepare(self, processor: &Processor, record: Record, limit: Limit) -> SampleResult<Prepared> {
        match self {
            Self::Dialogue => limit.apply(processor.training_sequence(&record.conversation(processor)?)?, processor),
            Self::Words => {
                let record = without_pictures(record);
                let sequence = processor.training_sequence(&record.conversation(processor)?)?;
                let Prepared { sequence, is_cut } = limit.apply(sequence, processor)?;
                let sequence = Sequence { labels: Some(sequence.input_ids.clone()), ..sequence };
                Ok(Prepared { sequence, is_cut })
            }
            Self::CaptionPair => limit.apply(caption_pair(processor, &record)?, processor),
        }
    }

    /// Collates rows of one or several samples into a batch.
    pub(super) fn collate(
        self,
        rows: Vec<Vec<Sequence>>,
        config: &HaploVlConfig,
        device: &Device,
    ) -> Result<MultimodalBatch> {
        let spec = BatchSpec::new(config);
        if self != Self::CaptionPair {
            return MultimodalBatch::packed(&rows, spec, device);
        }
        // Images are separate from the texts, not part of them.
        let mut visuals = Vec::new();
        let strip = |row: Vec<Sequence>| -> Vec<Sequence> {
            row.into_iter()
                .flat_map(|mut s| {
                    visuals.append(&mut s.visuals);
                    texts_of(&s)
                })
                .collect()
        };
        let rows: Vec<Vec<Sequence>> = rows.into_iter().map(strip).collect();
        let batch = MultimodalBatch::packed(&rows, spec, device)?;
        Ok(MultimodalBatch { visuals, ..batch })
    }
}

fn without_pictures(mut record: Record) -> Record {
    record.images.clear();
    record.videos.clear();
    let asked = record.turns.iter_mut().filter(|turn| turn.role != Role::Assistant);
    asked.for_each(|turn| turn.text = turn.text.replace(IMAGE_MARKER, "").replace(VIDEO_MARKER, "").trim().to_string());
    record
}

/// The assistant's turns as separate texts, each with an end token that is its label, and the one image beside them.
fn caption_pair(processor: &Processor, record: &Record) -> SampleResult<Sequence> {
    let conversation = record.conversation(processor)?;
    let pictures: Vec<_> = conversation.messages.iter().flat_map(Message::images).collect();
    let [picture] = pictures.as_slice() else {
        let message = format!("{} images, expected one image with its captions", pictures.len());
        return Err(BadSample::BrokenRecord(message));
    };
    let visual = processor.images().process(picture)?;
    let tiles = visual.pixel_values().dims().first().copied();
    if tiles != Some(1) {
        let message = format!(
            "its image becomes {} tiles, but the contrastive loss takes one: set `image_grid_pinpoints` to the tile size",
            tiles.unwrap_or_default()
        );
        return Err(BadSample::BrokenRecord(message));
    }
    let (mut input_ids, mut labels) = (Vec::new(), Vec::new());
    for turn in record.turns.iter().filter(|turn| turn.role == Role::Assistant) {
        input_ids.extend(processor.tokenizer().encode(&turn.text)?);
        input_ids.extend(processor.eos_ids().first());
        labels.resize(input_ids.len(), IGNORE_INDEX);
        if let (Some(label), Some(id)) = (labels.last_mut(), input_ids.last()) {
            *label = *id;
        }
    }
    Ok(Sequence { input_ids, labels: Some(labels), visuals: vec![visual] })
}

/// Splits a sequence after every label.
fn texts_of(sequence: &Sequence) -> Vec<Sequence> {
    let labels = sequence.labels.iter().flatten().enumerate();
    let ends = labels.filter(|(_, label)| **label != IGNORE_INDEX).map(|(i, _)| i + 1);
    let mut start = 0;
    let cut = |end: usize| {
        let input_ids = sequence.input_ids[start..end].to_vec();
        start = end;
        Sequence { input_ids, labels: None, visuals: vec![] }
    };
    ends.map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Turn;
    use crate::data::shapes::{token_ids, tokenizer};
    use crate::processor::ProcessorSettings;

    fn processor() -> Processor {
        let ids = token_ids();
        let (vocab_size, image_token_index, video_token_index) = (ids.vocab_size, ids.image, ids.video);
        let config = HaploVlConfig { vocab_size, image_token_index, video_token_index, ..HaploVlConfig::tiny() };
        Processor::new(&config, ProcessorSettings::new(&config), tokenizer().unwrap(), None).unwrap()
    }

    fn record() -> Record {
        let image = crate::data::ImageSource::Pixels(std::sync::Arc::new(image::RgbImage::new(28, 28)));
        let turns = vec![
            Turn::user("what is there?"),
            Turn::assistant("a red circle."),
            Turn::user("what colour?"),
            Turn::assistant("red red red red red."),
        ];
        Record::new("r".into(), vec![image], turns).unwrap()
    }

    fn prepare(form: SampleForm, longest: usize, truncates: bool) -> SampleResult<Prepared> {
        form.prepare(&processor(), record(), Limit { longest, truncates })
    }

    #[test]
    fn only_the_last_answer_is_cut_and_its_end_is_not_learnt() {
        let whole = prepare(SampleForm::Dialogue, usize::MAX, true).unwrap();
        let (length, end) = (whole.sequence.len(), processor().eos_ids()[0]);
        let labels = whole.sequence.labels.unwrap();
        let last = labels.iter().rposition(|label| *label != IGNORE_INDEX).unwrap();
        assert_eq!((labels[last], whole.is_cut), (end, false));
        // Six words or stops and the end of the turn.
        let first = last - 6;
        assert!(labels[first] != IGNORE_INDEX && labels[first - 1] == IGNORE_INDEX);
        for longest in 0..length {
            let cut = prepare(SampleForm::Dialogue, longest, true);
            if longest <= first {
                assert!(matches!(cut, Err(BadSample::TooLong { limit, .. }) if limit == longest), "{longest}");
                continue;
            }
            let Prepared { sequence, is_cut } = cut.unwrap();
            assert!(is_cut && sequence.len() == longest && sequence.visuals.len() == 1);
            let learnt = sequence.labels.unwrap();
            assert_eq!(learnt[..], labels[..longest]);
            assert_eq!(learnt[first..].contains(&end), longest > last, "{longest}");
            assert!(matches!(prepare(SampleForm::Dialogue, longest, false), Err(BadSample::TooLong { .. })));
        }
    }

    #[test]
    fn an_image_behind_the_answer_is_not_cut() {
        let mut asks = record();
        asks.turns.rotate_left(2);
        let mut turns = asks.turns;
        turns.push(Turn::user("<image>"));
        turns[2].text = "what is there?".into();
        let asks = Record { turns, ..record() };
        let whole = SampleForm::Dialogue.prepare(&processor(), asks.clone(), Limit::NONE).unwrap().sequence;
        let limit = Limit { longest: whole.len() - 1, truncates: true };
        let placeholder = whole.input_ids.iter().rposition(|id| processor().is_placeholder(*id)).unwrap();
        let cut = SampleForm::Dialogue.prepare(&processor(), asks, Limit { longest: placeholder, ..limit });
        assert!(matches!(cut, Err(BadSample::TooLong { .. })));
    }

    #[test]
    fn texts_are_cut_and_all_their_tokens_are_learnt() {
        let whole = prepare(SampleForm::Words, usize::MAX, true).unwrap().sequence.len();
        let cut = prepare(SampleForm::Words, whole - 4, true).unwrap();
        assert!(cut.is_cut && cut.sequence.labels.as_ref() == Some(&cut.sequence.input_ids));
    }
}
