//! Embeddings, pre-decoder, post-decoder and the whole HaploVL.
