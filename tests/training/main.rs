//! Losses, the optimizer, and fine-tuning on new words.

mod loss;
mod optim;
mod vocabulary_growth;
