//! What most users touch: captioning, visual question answering, and chat.
