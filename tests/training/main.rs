//! Losses, the optimizer, fine-tuning on new words, and the comparison of designs.

mod adapters;
mod compare;
mod loss;
mod optim;
mod vocabulary_growth;
