//! Losses, the optimizer, fine-tuning on new words, and the comparison of designs.

mod compare;
mod adapters;
mod loss;
mod optim;
mod vocabulary_growth;
