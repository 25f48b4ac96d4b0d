//! What a request is expected to use.

/// What a request is expected to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that the response may have; `None` if the request does not limit them.
    pub output_tokens: Option<u32>,
    /// Number of choices that the response has, each with an output of its own; 0 counts as 1.
    pub choices: u32,
}
