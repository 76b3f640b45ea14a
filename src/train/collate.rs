//! Collation: conversations to sequences, and sequences to batches.

use candle_core::Device;

use crate::Result;
use crate::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, Sequence};
use crate::config::HaploVlConfig;
use crate::data::{BadSample, IMAGE_MARKER, Record, SampleResult, VIDEO_MARKER};
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

impl SampleForm {
    /// One sample, ready for batching; runs on worker threads.
    ///
    /// # Errors
    /// [`BadSample::TooLong`] above `longest` tokens, and other reasons why a sample cannot be used.
    pub(super) fn prepare(self, processor: &Processor, record: Record, longest: usize) -> SampleResult<Sequence> {
        let sequence = self.sequence(processor, record)?;
        match sequence.len() {
            length if length > longest => Err(BadSample::TooLong { length, limit: longest }),
            _ => Ok(sequence),
        }
    }

    fn sequence(self, processor: &Processor, record: Record) -> SampleResult<Sequence> {
        match self {
            Self::Dialogue => Ok(processor.training_sequence(&record.conversation(processor)?)?),
            Self::Words => {
                let record = without_pictures(record);
                let sequence = processor.training_sequence(&record.conversation(processor)?)?;
                Ok(Sequence { labels: Some(sequence.input_ids.clone()), ..sequence })
            }
            Self::CaptionPair => caption_pair(processor, &record),
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
