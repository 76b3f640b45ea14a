//! Learning rate schedule.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Shape of the learning rate decay after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Decay {
    /// No decay.
    Constant,
    /// Linear decay.
    Linear,
    /// Half a period of a cosine.
    #[default]
    Cosine,
}

/// Learning rate schedule: a linear warm-up from zero, an optional stable phase at the peak, then a decay to a floor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Shape of the decay.
    pub decay: Decay,
    /// Share of all steps spent warming up, in `0..=1`.
    pub warmup_ratio: f64,
    /// Share of all steps at the peak between warm-up and decay, in `0..=1`, together with the warm-up at most 1: the
    /// "warmup-stable-decay" schedule (Hu et al. 2024, MiniCPM). 0 by default.
    #[serde(alias = "hold_ratio")]
    pub stable_ratio: f64,
    /// Last learning rate as a share of the peak, in `0..=1`. A constant schedule ignores it.
    pub floor_ratio: f64,
}

impl Default for Schedule {
    /// A warm-up of 3 % of the steps, then a cosine decay to 10 % of the peak.
    fn default() -> Self {
        Self { decay: Decay::Cosine, warmup_ratio: 0.03, stable_ratio: 0.0, floor_ratio: 0.1 }
    }
}

impl Schedule {
    /// Checks the ranges of the fields.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let Self { warmup_ratio, stable_ratio, floor_ratio, .. } = *self;
        for (field, value) in
            [("warmup_ratio", warmup_ratio), ("stable_ratio", stable_ratio), ("floor_ratio", floor_ratio)]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::config(format!("schedule.{field}"), format!("is {value:?}, expected 0 to 1")));
            }
        }
        if warmup_ratio + stable_ratio > 1.0 {
            let message =
                format!("is {stable_ratio:?}, expected at most {:?}, the rest after the warm-up", 1.0 - warmup_ratio);
            return Err(Error::config("schedule.stable_ratio", message));
        }
        Ok(())
    }

    /// Number of steps of the warm-up in a run of `total` steps.
    pub fn warmup_steps(&self, total: u64) -> u64 {
        (self.warmup_ratio * total as f64).ceil() as u64
    }

    /// The share of the peak learning rate at `step` (counted from 0) of `total`.
    ///
    /// The factor is `1/w, 2/w, .. 1` during the `w` steps of the warm-up and 1 during the stable phase. The decay that
    /// follows reaches exactly the floor at the last step, and the factor stays at the floor after it.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let warmup = self.warmup_steps(total);
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let stable = (self.stable_ratio * total as f64).round() as u64;
        let peak = (warmup + stable).saturating_sub(1);
        let last = total.saturating_sub(1);
        if step <= peak {
            return 1.0;
        }
        let progress = if step >= last { 1.0 } else { (step - peak) as f64 / (last - peak) as f64 };
        let remaining = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.floor_ratio + (1.0 - self.floor_ratio) * remaining
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay, warmup_ratio: f64) -> Schedule {
        Schedule { decay, warmup_ratio, stable_ratio: 0.0, floor_ratio: 0.1 }
    }

    #[test]
    fn warmup_rises_to_the_peak_and_decay_ends_at_the_floor() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let schedule = schedule(decay, 0.1);
            let factors: Vec<f64> = (0..100).map(|step| schedule.factor(step, 100)).collect();
            assert_eq!(factors[0], 0.1);
            assert_eq!(factors[9], 1.0);
            assert_eq!(factors[99], 0.1);
            assert!(factors[..10].is_sorted() && factors[9..].is_sorted_by(|a, b| a > b));
            assert_eq!(schedule.factor(1_000, 100), 0.1);
        }
    }

    #[test]
    fn the_stable_phase_stays_at_the_peak_and_the_decay_ends_at_the_floor() {
        let held = Schedule { stable_ratio: 0.5, ..schedule(Decay::Linear, 0.1) };
        let factors: Vec<f64> = (0..100).map(|step| held.factor(step, 100)).collect();
        assert!(factors[..10].is_sorted() && factors[9..60].iter().all(|factor| *factor == 1.0));
        assert!(factors[59..].is_sorted_by(|a, b| a > b) && factors[99] == 0.1);
        let to_the_end = Schedule { stable_ratio: 0.9, ..held };
        assert!(to_the_end.validate().is_ok() && to_the_end.factor(99, 100) == 1.0);
        let error = Schedule { stable_ratio: 0.95, ..held }.validate().unwrap_err().to_string();
        assert!(error.contains("schedule.stable_ratio") && error.contains("0.9"), "{error}");
    }

    #[test]
    fn without_warmup_the_first_step_is_the_peak() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            assert_eq!(schedule(decay, 0.0).factor(0, 5), 1.0);
        }
        assert_eq!(schedule(Decay::Linear, 0.0).factor(2, 5), 0.55);
        assert!((schedule(Decay::Cosine, 0.0).factor(2, 5) - 0.55).abs() < 1e-15);
        assert_eq!(schedule(Decay::Constant, 0.0).factor(4, 5), 1.0);
    }

    #[test]
    fn degenerate_lengths_stay_in_range() {
        for total in 0..4 {
            for step in 0..5 {
                for warmup in [0.0, 0.5, 1.0] {
                    let factor = schedule(Decay::Cosine, warmup).factor(step, total);
                    assert!((0.1..=1.0).contains(&factor), "step {step} of {total}, warm-up {warmup}: {factor}");
                }
            }
        }
    }

    #[test]
    fn ratios_out_of_range_are_rejected_by_name() {
        let error = Schedule { warmup_ratio: 1.5, ..Schedule::default() }.validate().unwrap_err().to_string();
        assert!(error.contains("schedule.warmup_ratio"), "{error}");
        assert!(Schedule { floor_ratio: f64::NAN, ..Schedule::default() }.validate().is_err());
        assert!(Schedule::default().validate().is_ok());
    }
}
