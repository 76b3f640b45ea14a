//! Merges text and visual embeddings: the source row of every token of a batch, by index arithmetic.
//!
//! Source rows form one tall matrix: the text embeddings of all positions, then all patches of all tiles, then the
//! newline, then the patches of shrunk grids. Merging is then a single gather, whose gradient is exact.

use std::ops::Range;

use candle_core::Tensor;

use crate::batch::{MultimodalBatch, Visual};
use crate::config::VisionConfig;
use crate::patch_grid::PatchGrid;
use crate::{Error, Result};

/// Plan of the gathers that merge a batch.
pub(super) struct MergePlan {
    /// Row of the tall matrix for each position of the batch, row by row.
    pub index: Vec<u32>,
    /// Bilinear shrinking: four patch rows (counted from the first patch) and their weights for each shrunk token.
    shrunk: Vec<[(u32, f32); 4]>,
    /// Number of tiles and frames processed so far.
    tiles: usize,
    /// Rows of the tall matrix that hold patches, and the first row that holds shrunk patches.
    patch_rows: Range<u32>,
    first_shrunk: u32,
}

impl MergePlan {
    /// Plans all images and videos of `batch`.
    ///
    /// # Errors
    /// [`Error::Batch`] if images, their tiles and the layout disagree.
    pub fn new(batch: &MultimodalBatch, config: &VisionConfig) -> Result<Self> {
        let positions = batch.batch_size() * batch.layout.seq_len;
        let sources = Sources::new(batch, config, positions)?;
        let mut packing = Self {
            index: (0..positions as u32).collect(),
            shrunk: vec![],
            tiles: 0,
            patch_rows: sources.first_patch..sources.newline,
            first_shrunk: sources.first_shrunk,
        };
        let mut visuals = batch.visuals.iter();
        for (row, samples) in batch.layout.rows.iter().enumerate() {
            for span in samples.iter().flat_map(|s| &s.visuals) {
                let visual = visuals.next().ok_or_else(|| batch.visual_count_error())?;
                let tokens = packing.tokens(visual, config, &sources)?;
                let start = row * batch.layout.seq_len + span.start;
                match packing.index.get_mut(start..start + span.len()) {
                    Some(target) if tokens.len() == span.len() => target.copy_from_slice(&tokens),
                    _ => {
                        return Err(Error::batch(format!(
                            "an image of {} tokens is laid out at positions {span:?} of row {row}",
                            tokens.len()
                        )));
                    }
                }
            }
        }
        if visuals.next().is_some() {
            return Err(batch.visual_count_error());
        }
        Ok(packing)
    }

    /// Computes the shrunk patches: weighted sums of four rows of `patches` (patches, width) each; `None` if no grid is
    /// shrunk.
    ///
    /// candle's bilinear resize has no backward pass; gathers have one.
    pub fn shrink(&self, patches: &Tensor) -> Result<Option<Tensor>> {
        let n = self.shrunk.len();
        let corner = |k: usize| -> Result<Tensor> {
            let index = Tensor::from_iter(self.shrunk.iter().map(|c| c[k].0), patches.device())?;
            let weights = Tensor::from_iter(self.shrunk.iter().map(|c| c[k].1), patches.device())?;
            let weights = weights.reshape((n, 1))?.to_dtype(patches.dtype())?;
            Ok(patches.index_select(&index, 0)?.broadcast_mul(&weights)?)
        };
        if n == 0 {
            return Ok(None);
        }
        Ok(Some((((corner(0)? + corner(1)?)? + corner(2)?)? + corner(3)?)?))
    }

    /// Source rows of one image's tokens, newlines included.
    fn tokens(&mut self, visual: &Visual, config: &VisionConfig, sources: &Sources) -> Result<Vec<u32>> {
        let first_patch = self.tiles * sources.patches_per_tile;
        let tiles = visual.pixel_values().dim(0)?;
        self.tiles += tiles;
        match visual {
            Visual::Video { .. } => {
                let patches = first_patch..first_patch + tiles * sources.patches_per_tile;
                let newline = config.image_newline.then_some(sources.newline);
                Ok(patches.map(|p| sources.patch(p)).chain(newline).collect())
            }
            Visual::Image { size, .. } => {
                let grid = PatchGrid::new(config, *size)?;
                if grid.num_tiles() != tiles {
                    return Err(Error::batch(format!(
                        "an image of {size} needs {} tiles, found {tiles}: use the ImageProcessor of the same model",
                        grid.num_tiles()
                    )));
                }
                Ok(self.image_tokens(&grid, first_patch, sources))
            }
        }
    }

    fn image_tokens(&mut self, grid: &PatchGrid, first_patch: usize, sources: &Sources) -> Vec<u32> {
        let side = sources.side;
        let patch = |row: usize, column: usize| {
            let (row, column) = (row + grid.offset.height, column + grid.offset.width);
            let tile = row / side * grid.tiles.width + column / side;
            first_patch + tile * side * side + row % side * side + column % side
        };
        let mut tokens = Vec::with_capacity(grid.tokens());
        let shrinks = grid.rows_cols != grid.unpadded;
        for row in 0..grid.rows_cols.height {
            for column in 0..grid.rows_cols.width {
                if shrinks {
                    tokens.push(sources.first_shrunk + self.shrunk.len() as u32);
                    let rows = interpolate(row, grid.rows_cols.height, grid.unpadded.height);
                    let columns = interpolate(column, grid.rows_cols.width, grid.unpadded.width);
                    let corner = |(r, rw): (usize, f32), (c, cw): (usize, f32)| (patch(r, c) as u32, rw * cw);
                    self.shrunk.push([
                        corner(rows[0], columns[0]),
                        corner(rows[0], columns[1]),
                        corner(rows[1], columns[0]),
                        corner(rows[1], columns[1]),
                    ]);
                } else {
                    tokens.push(sources.patch(patch(row, column)));
                }
            }
            tokens.extend(grid.newline.then_some(sources.newline));
        }
        tokens
    }
}

/// Reorders per-patch features, such as a teacher's (tiles * patches of a tile, width), to the order of a batch.
/// Returns the positions (counted over all rows) that hold a patch, and their features (positions, width).
///
/// Features of shrunk grids are shrunk the same way.
///
/// # Errors
/// [`Error::Batch`] if images, their tiles and the layout disagree.
pub fn patches_in_order(
    batch: &MultimodalBatch,
    config: &VisionConfig,
    features: &Tensor,
) -> Result<(Vec<u32>, Tensor)> {
    let packing = MergePlan::new(batch, config)?;
    let patches = packing.patch_rows.len() as u32;
    let source = |&row: &u32| match row {
        row if packing.patch_rows.contains(&row) => Some(row - packing.patch_rows.start),
        row if row >= packing.first_shrunk => Some(patches + row - packing.first_shrunk),
        _ => None,
    };
    let (positions, rows): (Vec<u32>, Vec<u32>) =
        packing.index.iter().enumerate().filter_map(|(i, row)| Some((i as u32, source(row)?))).unzip();
    let mut sources = vec![features.clone()];
    sources.extend(packing.shrink(features)?);
    let rows = Tensor::from_vec(rows, positions.len(), features.device())?;
    Ok((positions, Tensor::cat(&sources, 0)?.index_select(&rows, 0)?))
}

/// First row of each source in the tall matrix.
struct Sources {
    side: usize,
    patches_per_tile: usize,
    first_patch: u32,
    newline: u32,
    first_shrunk: u32,
}

impl Sources {
    fn new(batch: &MultimodalBatch, config: &VisionConfig, positions: usize) -> Result<Self> {
        let side = config.patches_per_side();
        let mut tiles = 0;
        for visual in &batch.visuals {
            let (t, channels, height, width) = visual.pixel_values().dims4()?;
            if (channels, height, width) != (3, config.image_size, config.image_size) || t == 0 {
                return Err(Error::batch(format!(
                    "pixel values of shape {:?}, expected (tiles, 3, {size}, {size})",
                    visual.pixel_values().dims(),
                    size = config.image_size
                )));
            }
            tiles += t;
        }
        let newline = positions + tiles * side * side;
        Ok(Self {
            side,
            patches_per_tile: side * side,
            first_patch: positions as u32,
            newline: newline as u32,
            first_shrunk: (newline + usize::from(config.image_newline)) as u32,
        })
    }

    fn patch(&self, patch: usize) -> u32 {
        self.first_patch + patch as u32
    }
}

/// Source coordinates of output `i` and their two weights, with half-pixel centres (`align_corners = false`).
fn interpolate(i: usize, out_len: usize, in_len: usize) -> [(usize, f32); 2] {
    let at = ((i as f32 + 0.5) * (in_len as f32 / out_len as f32) - 0.5).max(0.0);
    let low = (at as usize).min(in_len - 1);
    let fraction = at - low as f32;
    [(low, 1.0 - fraction), ((low + 1).min(in_len - 1), fraction)]
}

#[cfg(test)]
mod tests {
    use super::interpolate;

    #[test]
    fn interpolation_uses_half_pixel_centres() {
        assert_eq!(interpolate(0, 2, 4), [(0, 0.5), (1, 0.5)]);
        assert_eq!(interpolate(1, 2, 4), [(2, 0.5), (3, 0.5)]);
        // When enlarging, the border is repeated.
        assert_eq!(interpolate(0, 4, 2), [(0, 1.0), (1, 0.0)]);
        assert_eq!(interpolate(3, 4, 2), [(1, 0.75), (1, 0.25)]);
    }
}
