//! One sequence before batching.

use super::{BatchSpec, Sample, Visual};
use crate::{Error, Result};

/// One sequence before batching: token ids with placeholders, its images in order, and optionally labels.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Token ids; each image is a run of placeholder ids, one per token of the image.
    pub input_ids: Vec<u32>,
    /// For each position the id that the model should produce *at the next-token shift applied by the loss*, that
    /// is: the id of this very position, or [`IGNORE_INDEX`](super::IGNORE_INDEX).
    pub labels: Option<Vec<u32>>,
    /// Images and videos in order of appearance.
    pub visuals: Vec<Visual>,
}

impl Sequence {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether the sequence has no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Finds each image's run of placeholders, and lays the sequence out from position `start` on.
    pub(super) fn sample(&self, start: usize, spec: BatchSpec<'_>) -> Result<Sample> {
        if self.is_empty() {
            return Err(Error::batch("holds an empty sequence, expected at least one token"));
        }
        let is_placeholder = |id: u32| id == spec.image_token || id == spec.video_token;
        let mut sample = Sample { range: start..start + self.len(), visual_blocks: vec![], visuals: vec![] };
        let mut at = 0;
        for (n, visual) in self.visuals.iter().enumerate() {
            let tokens = visual.tokens(spec.vision)?;
            let id = visual.placeholder(spec.image_token, spec.video_token);
            let from = at + self.input_ids[at..].iter().take_while(|&&id| !is_placeholder(id)).count();
            let run = self.input_ids[from..].iter().take(tokens).take_while(|&&found| found == id).count();
            if run != tokens {
                return Err(self.placeholder_error(n, run, tokens, spec));
            }
            sample.visuals.push(start + from..start + from + tokens);
            let mut block_start = start + from;
            for length in visual.blocks(spec.vision)? {
                sample.visual_blocks.push(block_start..block_start + length);
                block_start += length;
            }
            at = from + tokens;
        }
        let left = self.input_ids[at..].iter().filter(|&&id| is_placeholder(id)).count();
        if left > 0 {
            return Err(Error::prompt(format!(
                "{left} image or video placeholder tokens are left over after its {} image(s): give one image for \
                 each `<image>`, and do not write the placeholder in the text",
                self.visuals.len()
            )));
        }
        Ok(sample)
    }

    fn placeholder_error(&self, n: usize, run: usize, tokens: usize, spec: BatchSpec<'_>) -> Error {
        let total = self.input_ids.iter().filter(|&&id| id == spec.image_token || id == spec.video_token).count();
        Error::prompt(format!(
            "image {} of {} needs {tokens} placeholder tokens, but {run} stand in its place ({total} in the whole \
             prompt): give one `<image>` for each image, in the same order",
            n + 1,
            self.visuals.len()
        ))
    }
}
