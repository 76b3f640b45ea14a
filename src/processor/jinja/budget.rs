//! Limits on what one rendering may take: steps, bytes and recursion.

use std::cell::Cell;

use super::value::Value;
use super::{Failure, Result};

/// Largest text that a template may make, the prompt included.
pub(in crate::processor) const MAX_TEXT_MIB: usize = 16;
const MAX_TEXT_BYTES: usize = MAX_TEXT_MIB << 20;
/// Bytes that all values of one rendering may take together, freed ones included.
const MAX_TOTAL_BYTES: usize = 8 * MAX_TEXT_BYTES;
/// Steps of one rendering: far more than any conversation needs, and over in a second.
const MAX_STEPS: usize = 1_000_000;
/// Bytes that are read in the time of a step.
const BYTES_PER_STEP: usize = 64;
/// Recursion of expressions, statements and macros. A level takes about 1 KiB of stack (6 KiB without optimisation).
const MAX_DEPTH: usize = 256;

/// What a rendering may still take. Every operation charges it before it allocates or loops.
pub(super) struct Budget {
    steps: Cell<usize>,
    bytes: Cell<usize>,
    depth: Cell<usize>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { steps: Cell::new(MAX_STEPS), bytes: Cell::new(MAX_TOTAL_BYTES), depth: Cell::new(MAX_DEPTH) }
    }
}

impl Budget {
    /// Charges steps.
    pub(super) fn steps(&self, count: usize) -> Result<()> {
        let out_of = || Failure::new(format!("takes more than {MAX_STEPS} steps; does it loop endlessly?"));
        self.steps.set(self.steps.get().checked_sub(count).ok_or_else(out_of)?);
        Ok(())
    }

    /// Charges the time of reading that many bytes.
    pub(super) fn read(&self, bytes: usize) -> Result<()> {
        self.steps(1 + bytes / BYTES_PER_STEP)
    }

    /// Charges a text of that many bytes.
    pub(super) fn text(&self, bytes: usize) -> Result<()> {
        self.text_after(0, bytes)
    }

    /// Charges bytes that are added to a text of `written`.
    pub(super) fn text_after(&self, written: usize, bytes: usize) -> Result<()> {
        if written.saturating_add(bytes) > MAX_TEXT_BYTES {
            return Err(Failure::new(format!("would make a text of more than {MAX_TEXT_MIB} MiB")));
        }
        self.read(bytes)?;
        self.hold(bytes)
    }

    /// Charges a list of that many values.
    pub(super) fn values(&self, count: usize) -> Result<()> {
        self.steps(count)?;
        self.hold(count.saturating_mul(size_of::<Value>()))
    }

    fn hold(&self, bytes: usize) -> Result<()> {
        let most = MAX_TOTAL_BYTES >> 20;
        let out_of = || Failure::new(format!("makes values of more than {most} MiB; does it repeat texts or lists?"));
        self.bytes.set(self.bytes.get().checked_sub(bytes).ok_or_else(out_of)?);
        Ok(())
    }

    /// Enters a level of recursion, which ends when the returned value is dropped.
    pub(super) fn enter(&self) -> Result<Level<'_>> {
        self.steps(1)?;
        let too_deep = || Failure::new(format!("nests expressions or macro calls more than {MAX_DEPTH} deep"));
        self.depth.set(self.depth.get().checked_sub(1).ok_or_else(too_deep)?);
        Ok(Level(&self.depth))
    }
}

/// A level of recursion.
pub(super) struct Level<'b>(&'b Cell<usize>);

impl Drop for Level<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}
