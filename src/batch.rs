//! What a processor or data loader produces and a model consumes: token ids, pictures, and where everything stands.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::config::VisionConfig;
use crate::patch_grid::{PatchGrid, Size, video_tokens};
use crate::{Error, Result};

/// Label of a position that does not count in the loss. candle's gathers skip this very value.
pub const IGNORE_INDEX: u32 = u32::MAX;

/// One picture or video, ready for the model.
#[derive(Debug, Clone)]
pub enum Visual {
    /// A picture cut into tiles.
    Image {
        /// Normalised pixels, `(tiles, 3, image_size, image_size)` in reading order.
        pixel_values: Tensor,
        /// Size of the picture in pixels before any resizing; decides the patch grid.
        size: Size,
    },
    /// A video of evenly sampled frames.
    Video {
        /// Normalised pixels, `(frames, 3, image_size, image_size)`.
        pixel_values: Tensor,
    },
}

impl Visual {
    /// Number of tokens this takes in a sequence.
    ///
    /// # Errors
    /// As [`PatchGrid::new`].
    pub fn tokens(&self, config: &VisionConfig) -> Result<usize> {
        match self {
            Self::Image { size, .. } => Ok(PatchGrid::new(config, *size)?.tokens()),
            Self::Video { pixel_values } => Ok(video_tokens(config, pixel_values.dim(0)?)),
        }
    }

    /// Number of its tokens that hold a patch, newlines not counted.
    ///
    /// # Errors
    /// As [`PatchGrid::new`].
    pub fn patches(&self, config: &VisionConfig) -> Result<usize> {
        match self {
            Self::Image { size, .. } => Ok(PatchGrid::new(config, *size)?.rows_cols.area()),
            Self::Video { pixel_values } => Ok(pixel_values.dim(0)? * config.patches_per_tile()),
        }
    }

    /// Lengths of its attention blocks: a picture is one; a video is one for each frame, and its newline is one.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    pub fn blocks(&self, config: &VisionConfig) -> Result<Vec<usize>> {
        match self {
            Self::Image { .. } => Ok(vec![self.tokens(config)?]),
            Self::Video { pixel_values } => {
                let mut blocks = vec![config.patches_per_tile(); pixel_values.dim(0)?];
                blocks.extend(config.image_newline.then_some(1));
                Ok(blocks)
            }
        }
    }

    /// The token that stands for this in a prompt.
    pub fn placeholder(&self, image_token: u32, video_token: u32) -> u32 {
        match self {
            Self::Image { .. } => image_token,
            Self::Video { .. } => video_token,
        }
    }

    /// The normalised pixels, `(tiles or frames, 3, image_size, image_size)`.
    pub fn pixel_values(&self) -> &Tensor {
        match self {
            Self::Image { pixel_values, .. } | Self::Video { pixel_values } => pixel_values,
        }
    }
}

/// One conversation or document inside a row: a stretch of positions that see nothing outside it.
///
/// Positions of a row that no sample covers are padding, on whichever side; several samples in a row are packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Positions in the row.
    pub range: Range<usize>,
    /// Blocks of positions (in the row) whose members see each other and everything before: an image, a video frame.
    pub visual_blocks: Vec<Range<usize>>,
    /// Positions (in the row) of each picture or video, in the order of [`MultimodalBatch::visuals`].
    pub visuals: Vec<Range<usize>>,
}

/// Where everything stands in a batch of sequences of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceLayout {
    /// Length of every row, padding included.
    pub seq_len: usize,
    /// Samples of each row, in order of position.
    pub rows: Vec<Vec<Sample>>,
}

impl SequenceLayout {
    /// A layout of text only: every row is one sample without padding.
    pub fn text(batch: usize, seq_len: usize) -> Self {
        let sample = Sample { range: 0..seq_len, visual_blocks: vec![], visuals: vec![] };
        Self { seq_len, rows: vec![vec![sample]; batch] }
    }

    /// Checks that samples follow each other inside their rows, and pictures and blocks inside their samples.
    ///
    /// Layouts that [`MultimodalBatch::new`] makes always do; models check those made by hand.
    ///
    /// # Errors
    /// [`Error::Batch`] naming the row and the range.
    pub fn validate(&self) -> Result<()> {
        for (row, samples) in self.rows.iter().enumerate() {
            let wrong = |what: &str, range: &Range<usize>, within: Range<usize>| {
                Err(Error::batch(format!(
                    "row {row}: {what} at {range:?}, expected a range that is not empty, behind the one before it, and \
                     inside {within:?}"
                )))
            };
            let mut free = 0;
            for Sample { range, visual_blocks, visuals } in samples {
                if range.is_empty() || range.start < free || range.end > self.seq_len {
                    return wrong("a sample", range, free..self.seq_len);
                }
                free = range.end;
                for (what, parts) in [("an attention block", visual_blocks), ("a picture", visuals)] {
                    let mut from = range.start;
                    for part in parts {
                        if part.is_empty() || part.start < from || part.end > range.end {
                            return wrong(what, part, from..range.end);
                        }
                        from = part.end;
                    }
                }
            }
        }
        Ok(())
    }

    /// Position of every token inside its own sample, row by row; 0 for padding. The layout must be valid.
    pub fn positions(&self) -> Vec<Vec<u32>> {
        let row_positions = |row: &Vec<Sample>| {
            let mut positions = vec![0; self.seq_len];
            for sample in row {
                for (p, i) in sample.range.clone().enumerate() {
                    positions[i] = p as u32;
                }
            }
            positions
        };
        self.rows.iter().map(row_positions).collect()
    }
}

/// Which end of the shorter rows of a batch is filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaddingSide {
    /// Before the tokens; what generation needs.
    Left,
    /// After the tokens; what training uses.
    Right,
}

/// One sequence before batching: token ids with placeholders, its pictures in order, and optionally labels.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Token ids; each picture stands as a run of placeholder ids as long as its number of tokens.
    pub input_ids: Vec<u32>,
    /// For each position the id that the model should produce *at the next-token shift applied by the loss*, that
    /// is: the id of this very position, or [`IGNORE_INDEX`].
    pub labels: Option<Vec<u32>>,
    /// Pictures and videos in order of appearance.
    pub visuals: Vec<Visual>,
}

/// What the batching needs to know of a model.
#[derive(Debug, Clone, Copy)]
pub struct BatchSpec<'a> {
    /// Tiles and patches.
    pub vision: &'a VisionConfig,
    /// Placeholder id of images.
    pub image_token: u32,
    /// Placeholder id of videos.
    pub video_token: u32,
    /// Longest allowed row.
    pub max_len: usize,
}

impl<'a> BatchSpec<'a> {
    /// The spec of a model.
    pub fn new(config: &'a crate::config::HaploVlConfig) -> Self {
        Self {
            vision: &config.vision,
            image_token: config.image_token_index,
            video_token: config.video_token_index,
            max_len: config.max_position_embeddings,
        }
    }
}

/// A batch, on one device.
#[derive(Debug, Clone)]
pub struct MultimodalBatch {
    /// Token ids, `(batch, seq_len)`, u32. Padding holds 0.
    pub input_ids: Tensor,
    /// Labels, `(batch, seq_len)`, u32, aligned with `input_ids` (not shifted); [`IGNORE_INDEX`] where none.
    pub labels: Option<Tensor>,
    /// Samples, visual blocks and padding.
    pub layout: SequenceLayout,
    /// Pictures and videos, row by row, in order of appearance.
    pub visuals: Vec<Visual>,
}

impl MultimodalBatch {
    /// One sequence a row, the shorter ones padded on `side`.
    ///
    /// # Errors
    /// [`Error::Prompt`] where placeholders and pictures disagree or a sequence is too long, and [`Error::Batch`]
    /// for an empty batch or sequence, or labels of another length than the ids.
    pub fn new(sequences: &[Sequence], spec: BatchSpec<'_>, side: PaddingSide, device: &Device) -> Result<Self> {
        let seq_len = sequences.iter().map(|s| s.input_ids.len()).max().unwrap_or(0);
        let rows = sequences
            .iter()
            .map(|s| {
                let pad = if side == PaddingSide::Left { seq_len - s.input_ids.len() } else { 0 };
                vec![(pad, s)]
            })
            .collect();
        Self::from_placed(rows, seq_len, spec, device)
    }

    /// Several sequences a row, one behind the other; each sees only itself.
    ///
    /// # Errors
    /// As [`Self::new`]; the length limit holds for a whole row.
    pub fn packed(rows: &[Vec<Sequence>], spec: BatchSpec<'_>, device: &Device) -> Result<Self> {
        let row_len = |row: &Vec<Sequence>| row.iter().map(|s| s.input_ids.len()).sum::<usize>();
        let seq_len = rows.iter().map(row_len).max().unwrap_or(0);
        let place = |row| {
            let mut at = 0;
            let next = |s| {
                let start: usize = at;
                at += Sequence::len(s);
                (start, s)
            };
            Vec::from_iter(<&Vec<Sequence>>::into_iter(row).map(next))
        };
        Self::from_placed(rows.iter().map(place).collect(), seq_len, spec, device)
    }

    fn from_placed(
        rows: Vec<Vec<(usize, &Sequence)>>,
        seq_len: usize,
        spec: BatchSpec<'_>,
        device: &Device,
    ) -> Result<Self> {
        if rows.is_empty() || seq_len == 0 {
            return Err(Error::batch("is empty, expected at least one sequence of one token"));
        }
        if seq_len > spec.max_len {
            return Err(too_long(seq_len, spec.max_len));
        }
        let batch = rows.len();
        let mut input_ids = vec![0u32; batch * seq_len];
        let mut labels = vec![IGNORE_INDEX; batch * seq_len];
        let mut any_labels = false;
        let mut visuals = Vec::new();
        let mut layout = SequenceLayout { seq_len, rows: Vec::with_capacity(batch) };
        for (r, row) in rows.into_iter().enumerate() {
            let mut samples = Vec::with_capacity(row.len());
            for (start, sequence) in row {
                let range = start..start + sequence.input_ids.len();
                let flat = r * seq_len + range.start..r * seq_len + range.end;
                input_ids[flat.clone()].copy_from_slice(&sequence.input_ids);
                if let Some(sequence_labels) = &sequence.labels {
                    if sequence_labels.len() != range.len() {
                        return Err(Error::batch(format!(
                            "{} labels for {} tokens: give one label a token",
                            sequence_labels.len(),
                            range.len()
                        )));
                    }
                    labels[flat].copy_from_slice(sequence_labels);
                    any_labels = true;
                }
                samples.push(sequence.sample(start, spec)?);
                visuals.extend(sequence.visuals.iter().cloned());
            }
            layout.rows.push(samples);
        }
        let visuals = visuals.into_iter().map(|v| v.to_device(device)).collect::<Result<_>>()?;
        let labels = any_labels.then(|| Tensor::from_vec(labels, (batch, seq_len), device)).transpose()?;
        let input_ids = Tensor::from_vec(input_ids, (batch, seq_len), device)?;
        Ok(Self { input_ids, labels, layout, visuals })
    }

    /// Checks that the layout is valid and describes `input_ids` and `labels`.
    ///
    /// # Errors
    /// [`Error::Batch`] naming what does not fit.
    pub fn validate(&self) -> Result<()> {
        let expected = [self.layout.rows.len(), self.layout.seq_len];
        let labels = self.labels.as_ref().map_or(expected.as_slice(), |labels| labels.dims());
        if self.input_ids.dims() != expected || labels != expected {
            return Err(Error::batch(format!(
                "has ids of shape {:?} and labels of shape {labels:?}, its layout says {expected:?} (rows, positions)",
                self.input_ids.dims()
            )));
        }
        self.layout.validate()
    }

    /// Number of rows.
    pub fn batch_size(&self) -> usize {
        self.layout.rows.len()
    }

    /// For each position, counted over all rows, the label that its logits are to predict: that of the next position
    /// of the same sample, or [`IGNORE_INDEX`]. `(batch * seq_len)`.
    ///
    /// # Errors
    /// [`Error::Batch`] if there are no labels, and as [`Self::validate`].
    pub fn next_token_labels(&self) -> Result<Vec<u32>> {
        self.validate()?;
        let labels = self.labels.as_ref().ok_or_else(|| Error::batch("has no labels"))?.to_vec2::<u32>()?;
        let mut next = vec![IGNORE_INDEX; self.batch_size() * self.layout.seq_len];
        for ((row, samples), labels) in self.layout.rows.iter().enumerate().zip(&labels) {
            for Range { start, end } in samples.iter().map(|sample| sample.range.clone()) {
                let at = row * self.layout.seq_len;
                next[at + start..at + end - 1].copy_from_slice(&labels[start + 1..end]);
            }
        }
        Ok(next)
    }

    /// Positions, counted over all rows, that hold text: neither padding nor pictures. The batch must be valid.
    pub fn text_positions(&self) -> Vec<u32> {
        let mut text = Vec::new();
        for (row, samples) in self.layout.rows.iter().enumerate() {
            for sample in samples {
                let in_visual = |i: &usize| sample.visuals.iter().any(|span| span.contains(i));
                let at = row * self.layout.seq_len;
                text.extend(sample.range.clone().filter(|i| !in_visual(i)).map(|i| (at + i) as u32));
            }
        }
        text
    }

    /// The pixels of all pictures and videos one behind the other, `(tiles and frames, 3, image_size, image_size)`.
    ///
    /// # Errors
    /// From candle, if there is no picture, or they differ in size.
    pub fn pixel_values(&self) -> Result<Tensor> {
        let pixels: Vec<&Tensor> = self.visuals.iter().map(Visual::pixel_values).collect();
        Ok(Tensor::cat(&pixels, 0)?)
    }

    /// `(batch, seq_len)` of ones where a token stands and zeros for padding, f32.
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn attention_mask(&self) -> Result<Tensor> {
        self.validate()?;
        let mut mask = vec![0f32; self.batch_size() * self.layout.seq_len];
        for (r, row) in self.layout.rows.iter().enumerate() {
            for sample in row {
                let at = r * self.layout.seq_len;
                mask[at + sample.range.start..at + sample.range.end].fill(1.0);
            }
        }
        Ok(Tensor::from_vec(mask, (self.batch_size(), self.layout.seq_len), self.input_ids.device())?)
    }
}

/// The error of a prompt that does not fit the model's context.
pub(crate) fn too_long(length: usize, context: usize) -> Error {
    Error::prompt(format!(
        "is {length} tokens long (text and image patches together), more than the model's context of {context}: shorten \
         it, or use fewer or smaller pictures"
    ))
}

impl Visual {
    fn to_device(&self, device: &Device) -> Result<Self> {
        let moved = self.pixel_values().to_device(device)?;
        Ok(match self {
            Self::Image { size, .. } => Self::Image { pixel_values: moved, size: *size },
            Self::Video { .. } => Self::Video { pixel_values: moved },
        })
    }

    /// The same picture in another number type.
    ///
    /// # Errors
    /// From candle only.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let cast = self.pixel_values().to_dtype(dtype)?;
        Ok(match self {
            Self::Image { size, .. } => Self::Image { pixel_values: cast, size: *size },
            Self::Video { .. } => Self::Video { pixel_values: cast },
        })
    }
}

impl Sequence {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Finds each picture's run of placeholders, and lays the sequence out from position `start` on.
    fn sample(&self, start: usize, spec: BatchSpec<'_>) -> Result<Sample> {
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
                "{left} image or video placeholder tokens are left over after its {} picture(s): give one picture for \
                 each `<image>`, and do not write the placeholder in the text",
                self.visuals.len()
            )));
        }
        Ok(sample)
    }

    fn placeholder_error(&self, n: usize, run: usize, tokens: usize, spec: BatchSpec<'_>) -> Error {
        let total = self.input_ids.iter().filter(|&&id| id == spec.image_token || id == spec.video_token).count();
        Error::prompt(format!(
            "picture {} of {} needs {tokens} placeholder tokens, but {run} stand in its place ({total} in the whole \
             prompt): give one `<image>` for each picture, in the same order",
            n + 1,
            self.visuals.len()
        ))
    }
}
