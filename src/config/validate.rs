//! Checks shared by the `validate()` of every configuration.

use crate::{Error, Result};

pub(crate) fn at_least_one(field: &str, value: usize) -> Result<()> {
    if value == 0 { Err(Error::config(field, "is 0, expected at least 1")) } else { Ok(()) }
}

/// Bounds a size, since an absurd one would end in an allocation failure.
pub(crate) fn at_most(field: &str, value: usize, most: usize) -> Result<()> {
    if value > most { Err(Error::config(field, format!("is {value}, expected at most {most}"))) } else { Ok(()) }
}

pub(crate) fn positive(field: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Error::config(field, format!("is {value:?}, expected a finite number above 0")))
    }
}

pub(crate) fn not_negative(field: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err(Error::config(field, format!("is {value:?}, expected a finite number of at least 0")))
    }
}

pub(crate) fn multiple_of(field: &str, value: usize, of: &str, divisor: usize) -> Result<()> {
    if divisor != 0 && value.is_multiple_of(divisor) {
        Ok(())
    } else {
        Err(Error::config(field, format!("is {value}, not a multiple of {of} = {divisor}")))
    }
}
