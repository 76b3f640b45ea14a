//! From conversations of a data set to sequences, and from sequences to batches.

use std::sync::Arc;

use candle_core::Device;
use image::RgbImage;

use crate::batch::{BatchSpec, MultimodalBatch, Sequence};
use crate::config::HaploVlConfig;
use crate::data::{BadSample, Conversation, IMAGE_MARKER, ImageSource, Role, SampleResult};
use crate::processor::{Content, Conversation as Dialogue, Message, Processor};
use crate::{Error, Result};

/// What a stage makes of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SampleForm {
    /// The whole conversation; the assistant's words are learnt.
    Dialogue,
    /// The whole conversation, without its pictures; every word is learnt.
    Words,
    /// The assistant's words, and the picture beside them.
    CaptionPair,
}

impl SampleForm {
    /// One sample, ready for batching; runs on worker threads.
    pub(super) fn prepare(self, processor: &Processor, conversation: Conversation) -> SampleResult<Sequence> {
        match self {
            Self::Dialogue => Ok(processor.training_sequence(&dialogue(processor, conversation)?)?),
            Self::Words => {
                let conversation = Conversation { images: vec![], ..conversation };
                let sequence = processor.training_sequence(&dialogue(processor, conversation)?)?;
                Ok(Sequence { labels: Some(sequence.input_ids.clone()), ..sequence })
            }
            Self::CaptionPair => caption_pair(processor, conversation),
        }
    }

    /// Rows of one or several samples as a batch.
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
        // Pictures stand beside their captions, not in them.
        let mut visuals = Vec::new();
        let strip = |row: Vec<Sequence>| -> Vec<Sequence> {
            row.into_iter()
                .map(|mut s| {
                    visuals.append(&mut s.visuals);
                    s
                })
                .collect()
        };
        let rows: Vec<Vec<Sequence>> = rows.into_iter().map(strip).collect();
        let batch = MultimodalBatch::packed(&rows, spec, device)?;
        Ok(MultimodalBatch { visuals, ..batch })
    }
}

fn caption_pair(processor: &Processor, conversation: Conversation) -> SampleResult<Sequence> {
    let [picture] = conversation.images.as_slice() else {
        return Err(BadSample::BrokenRecord(format!(
            "{} pictures, expected one with its caption",
            conversation.images.len()
        )));
    };
    let picture = open(processor, picture.clone())?;
    let visual = processor.images().process(&picture)?;
    let words = conversation.turns.iter().filter(|turn| turn.role == Role::Assistant);
    let text = words.map(|turn| turn.text.as_str()).collect::<Vec<_>>().join(" ");
    let mut input_ids = processor.tokenizer().encode(&text)?;
    input_ids.extend(processor.eos_ids().first());
    Ok(Sequence { input_ids, labels: None, visuals: vec![visual] })
}

/// The conversation as the processor takes it: pictures decoded, each with the turn that speaks of it.
pub(super) fn dialogue(processor: &Processor, conversation: Conversation) -> SampleResult<Dialogue> {
    let mut pictures = conversation.images.into_iter();
    let mut dialogue = Dialogue::default();
    for turn in conversation.turns {
        let mut content = Vec::new();
        for picture in pictures.by_ref().take(turn.text.matches(IMAGE_MARKER).count()) {
            content.push(Content::Image(open(processor, picture)?));
        }
        let text = without_leading_markers(&turn.text, content.is_empty());
        dialogue.push(match turn.role {
            Role::System => Message::system(text),
            Role::Assistant => Message::assistant(text),
            Role::User => Message::user(content.into_iter().chain([Content::Text(text)])),
        });
    }
    Ok(dialogue)
}

/// Markers that stand before all text are left to the chat template, which puts pictures there anyway; so are those
/// whose pictures were dropped. Others keep their place.
fn without_leading_markers(text: &str, no_pictures: bool) -> String {
    if no_pictures {
        return text.replace(IMAGE_MARKER, "").trim_start().to_string();
    }
    let mut rest = text.trim_start();
    while let Some(behind) = rest.strip_prefix(IMAGE_MARKER) {
        rest = behind.trim_start();
    }
    if rest.contains(IMAGE_MARKER) { text.to_string() } else { rest.to_string() }
}

fn open(processor: &Processor, picture: ImageSource) -> SampleResult<Arc<RgbImage>> {
    match picture {
        ImageSource::Pixels(pixels) => Ok(pixels),
        ImageSource::File(path) if !path.exists() => Err(BadSample::MissingImage(path)),
        ImageSource::File(path) => Ok(Arc::new(processor.decoder().open(&path).map_err(Error::from)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::without_leading_markers;

    #[test]
    fn markers_before_the_text_go_and_others_stay() {
        assert_eq!(without_leading_markers("<image>\nwhat?", false), "what?");
        assert_eq!(without_leading_markers("<image> <image>\nwhat?", false), "what?");
        assert_eq!(without_leading_markers("first <image> then", false), "first <image> then");
        assert_eq!(without_leading_markers("<image>\nwhat?", true), "what?");
    }
}
