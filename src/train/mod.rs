//! The two-stage trainer.
