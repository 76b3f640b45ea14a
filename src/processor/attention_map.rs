//! Attention maps: the attention to each image token, mapped back to the image's pixels.

use std::ops::Range;

use super::image::Placement;
use crate::config::VisionConfig;
use crate::patch_grid::{PatchGrid, Size};
use crate::{Error, Result};

/// Attention map of one image: the attention that each of its patches receives.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMap {
    size: Size,
    cells: Vec<AttentionCell>,
}

/// Image region of one token, with its attention weight.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionCell {
    /// Row in the grid of tokens.
    pub row: usize,
    /// Column in the grid of tokens.
    pub column: usize,
    /// Pixel rows of the original image (before resizing).
    pub pixel_rows: Range<u32>,
    /// Pixel columns of the original image.
    pub pixel_columns: Range<u32>,
    /// Attention weight of the token.
    pub weight: f32,
}

impl AttentionMap {
    /// Builds the map of an image of size `image` from one weight per image token, newlines included.
    ///
    /// # Errors
    /// [`Error::Batch`] unless there is one weight per token, and the errors of [`PatchGrid::new`].
    pub fn new(config: &VisionConfig, image: Size, weights: &[f32]) -> Result<Self> {
        let grid = PatchGrid::new(config, image)?;
        if weights.len() != grid.tokens() {
            let (found, expected) = (weights.len(), grid.tokens());
            return Err(Error::batch(format!("{found} weights for an image of {expected} tokens")));
        }
        let canvas = Size::new(grid.tiles.height * config.image_size, grid.tiles.width * config.image_size);
        let Placement { fitted, top, left } = Placement::new(image, canvas);
        let rows = Axis {
            cells: grid.rows_cols.height,
            first: grid.offset.height * config.patch_size,
            length: grid.unpadded.height * config.patch_size,
            border: top,
            fitted: fitted.height,
            image: image.height,
        };
        let columns = Axis {
            cells: grid.rows_cols.width,
            first: grid.offset.width * config.patch_size,
            length: grid.unpadded.width * config.patch_size,
            border: left,
            fitted: fitted.width,
            image: image.width,
        };
        let lines = weights.chunks(grid.rows_cols.width + usize::from(grid.newline));
        let cells = lines.enumerate().flat_map(|(row, line)| {
            let cell = move |(column, &weight): (usize, &f32)| AttentionCell {
                row,
                column,
                pixel_rows: rows.pixels(row),
                pixel_columns: columns.pixels(column),
                weight,
            };
            line.iter().take(grid.rows_cols.width).enumerate().map(cell)
        });
        Ok(Self { size: grid.rows_cols, cells: cells.collect() })
    }

    /// Rows and columns of the token grid.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The cells in reading order.
    pub fn cells(&self) -> &[AttentionCell] {
        &self.cells
    }

    /// The `count` cells with the highest weights, highest first.
    pub fn hottest(&self, count: usize) -> Vec<&AttentionCell> {
        let mut cells = Vec::from_iter(&self.cells);
        cells.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        cells.truncate(count);
        cells
    }

    /// Sum of all weights; over the whole sequence, attention weights sum to 1.
    pub fn total(&self) -> f32 {
        self.cells.iter().map(|cell| cell.weight).sum()
    }
}

/// One axis of an image: the mapping of grid cells to pixels.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// Number of cells.
    cells: usize,
    /// Offset and length of the grid on the canvas, in pixels.
    first: usize,
    length: usize,
    /// Offset and length of the resized image on the canvas, in pixels.
    border: usize,
    fitted: usize,
    /// Length of the original image, in pixels.
    image: usize,
}

impl Axis {
    /// Pixels of the original image under a cell. Neighbours share an edge. The outer cells may lie partly on the
    /// border; if unpadding cut through a patch, the outermost pixels lie under no cell.
    fn pixels(self, cell: usize) -> Range<u32> {
        self.edge(cell)..self.edge(cell + 1)
    }

    fn edge(self, cell: usize) -> u32 {
        let on_canvas = self.first as f64 + self.length as f64 * cell as f64 / self.cells as f64;
        let on_image = (on_canvas - self.border as f64) * self.image as f64 / self.fitted as f64;
        on_image.round().clamp(0.0, self.image as f64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_are_left_out_and_the_hottest_come_first() {
        let vision = crate::config::HaploVlConfig::tiny().vision;
        let map = AttentionMap::new(&vision, Size::new(28, 28), &[0.1, 0.2, 9.0, 0.4, 0.3, 9.0]).unwrap();
        assert_eq!(map.size(), Size::new(2, 2));
        let hottest = map.hottest(1)[0];
        assert_eq!((hottest.row, hottest.column, hottest.weight), (1, 0, 0.4));
        assert_eq!((hottest.pixel_rows.clone(), hottest.pixel_columns.clone()), (14..28, 0..14));
        assert!((map.total() - 1.0).abs() < 1e-6);
        let error = AttentionMap::new(&vision, Size::new(28, 28), &[0.5; 4]).unwrap_err().to_string();
        assert!(error.contains("4 weights for an image of 6 tokens"), "{error}");
    }

    #[test]
    fn cells_lie_side_by_side_on_an_image_of_any_shape() {
        let vision = crate::config::HaploVlConfig::tiny().vision;
        for size in [(100, 100), (30, 100), (1, 1), (7, 1000), (1000, 7)].map(|(h, w)| Size::new(h, w)) {
            let tokens = PatchGrid::new(&vision, size).unwrap().tokens();
            let map = AttentionMap::new(&vision, size, &vec![0.0; tokens]).unwrap();
            let row = Vec::from_iter(map.cells().iter().filter(|cell| cell.row == 0));
            assert!(row.windows(2).all(|pair| pair[0].pixel_columns.end == pair[1].pixel_columns.start));
            assert!(map.cells().iter().all(|cell| cell.pixel_rows.end as usize <= size.height));
        }
    }
}
