//! From pictures, videos and conversations to batches; no model code here.
