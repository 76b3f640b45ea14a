//! From a prompt to an answer: sampling, prefill, decoding, streaming.
