//! What is at a place: dense lessons in seeing, since every object of a picture is asked for where it is.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::MAX_OBJECTS;
use super::attributes::Description;
use super::scene::{Object, Scene, shuffled};
use super::words::{NUMBERS, Templates, phrase};

/// Columns and rows of the grid; places are named by number words, which are counted from one.
const CELLS: usize = MAX_OBJECTS;
/// Empty places that are asked for, beside those of the objects.
const EMPTY: usize = 2;

const PLACE: Templates = &["what is in {column} {row}?"];
const NOTHING: &str = "no object";
pub(super) const TEMPLATES: &[Templates] = &[PLACE, &[NOTHING]];

/// A place by column and row, both counted from 0.
type Cell = [usize; 2];

impl Scene {
    /// Questions for what is in a cell of a grid of six by six, given by column and row, with their answers: for every
    /// object that has its centre alone in a cell, and for two cells that no object touches, in random order.
    pub fn places(&self, rng: &mut impl Rng) -> Vec<(String, String)> {
        let cells = (0..CELLS).flat_map(|column| (0..CELLS).map(move |row| [column, row]));
        let empty: Vec<Cell> = cells.filter(|&cell| self.objects.iter().all(|object| !object.touches(cell))).collect();
        let alone = |object: &&Object| self.objects.iter().filter(|other| other.cell() == object.cell()).count() == 1;
        let named = |object: &Object| (object.cell(), Description::full(object).to_string());
        let mut places: Vec<(Cell, String)> = self.objects.iter().filter(alone).map(named).collect();
        places.extend(empty.sample(rng, EMPTY).map(|&cell| (cell, NOTHING.to_string())));
        let order = shuffled(&Vec::from_iter(0..places.len()), rng);
        let ask = |([column, row], answer): &(Cell, String), rng: &mut _| {
            let slots = [("column", NUMBERS[column + 1]), ("row", NUMBERS[row + 1])];
            (phrase(PLACE, &slots, rng), answer.clone())
        };
        order.into_iter().filter_map(|at| places.get(at)).map(|place| ask(place, rng)).collect()
    }
}

impl Object {
    /// Where its centre is.
    fn cell(&self) -> Cell {
        [self.x, self.y].map(|at| ((at * CELLS as f32) as usize).min(CELLS - 1))
    }

    /// Whether the square around it reaches into the cell.
    fn touches(&self, [column, row]: Cell) -> bool {
        let near = |at: f32, cell: usize| {
            let [from, to] = [cell, cell + 1].map(|edge| edge as f32 / CELLS as f32);
            at + self.radius > from && at - self.radius < to
        };
        near(self.x, column) && near(self.y, row)
    }
}
