//! The optimizer, its schedule, and gradient clipping.
