//! What the client of a request for answers wants to have.

use super::error::ApiError;
use super::protocol::StreamOptions;

/// Largest number of choices of a request.
pub const MAX_CHOICES: usize = 64;

/// Endpoint of an answer, which decides its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Chat,
    Completion,
}

/// What the client wants to have.
pub struct Wish {
    pub form: Form,
    /// Choices of each prompt.
    pub n: usize,
    /// Alternatives beside each token; `None`: no log probabilities.
    pub logprobs: Option<usize>,
    pub stream: bool,
    /// Whether a stream ends with the token counts.
    pub include_usage: bool,
}

impl Wish {
    /// Checks the fields that all requests for answers have.
    pub fn new(
        form: Form,
        n: Option<usize>,
        logprobs: Option<usize>,
        stream: Option<bool>,
        options: Option<StreamOptions>,
    ) -> Result<Self, ApiError> {
        let (n, stream) = (n.unwrap_or(1), stream.unwrap_or(false));
        if !(1..=MAX_CHOICES).contains(&n) {
            return Err(ApiError::invalid("n", format!("`n` is {n}, expected 1 to {MAX_CHOICES}")));
        }
        if options.is_some() && !stream {
            let message = "`stream_options` is for streams: set `stream` to true, or leave it out";
            return Err(ApiError::invalid("stream_options", message));
        }
        let include_usage = options.unwrap_or_default().include_usage.unwrap_or(false);
        Ok(Self { form, n, logprobs, stream, include_usage })
    }
}
