//! Losses of both training stages.
