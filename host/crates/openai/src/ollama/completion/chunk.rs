//! What a translation reads of an engine's events and responses.

use serde::Deserialize;
use serde_json::Value;

use crate::usage::Usage;

/// An event of a stream, or a whole response, of chat completions or completions.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    choices: Option<Vec<Choice>>,
    pub(super) usage: Option<Usage>,
    timings: Option<Timings>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    #[serde(alias = "message")]
    delta: Option<Delta>,
    /// Of completions.
    text: Option<String>,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Debug, Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Option<Vec<Value>>,
}

/// llama.cpp's times.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Timings {
    prompt_ms: Option<f64>,
    predicted_ms: Option<f64>,
}

/// A part of the first choice.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) thinking: String,
    pub(super) logprobs: Vec<Value>,
    pub(super) calls: Vec<CallPart>,
    pub(super) finish_reason: Option<String>,
}

/// A tool call, or a part of one.
#[derive(Debug)]
pub(super) struct CallPart {
    pub(super) index: u64,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

impl Chunk {
    pub(super) fn is_error(&self) -> bool {
        self.error.is_some()
    }

    /// Returns the milliseconds for the prompt and the response.
    pub(super) fn timings(&self) -> Option<(f64, f64)> {
        let timings = self.timings?;
        Some((timings.prompt_ms?, timings.predicted_ms?))
    }

    /// Returns what the event says of the first choice.
    pub(super) fn into_piece(self) -> Option<Piece> {
        let choices = self.choices?;
        let choice = choices.into_iter().find(|choice| choice.index == 0)?;
        let delta = choice.delta.unwrap_or_default();
        let calls = delta.tool_calls.unwrap_or_default().into_iter().enumerate();
        let call = |(position, call): (usize, CallDelta)| CallPart {
            index: call.index.unwrap_or(position as u64),
            id: call.id.unwrap_or_default(),
            name: call.function.as_ref().and_then(|f| f.name.clone()).unwrap_or_default(),
            arguments: call.function.and_then(|f| f.arguments).unwrap_or_default(),
        };
        Some(Piece {
            text: delta.content.or(choice.text).unwrap_or_default(),
            thinking: delta.reasoning_content.or(delta.reasoning).unwrap_or_default(),
            logprobs: choice.logprobs.and_then(|all| all.content).unwrap_or_default(),
            calls: calls.map(call).collect(),
            finish_reason: choice.finish_reason.filter(|reason| !reason.is_empty()),
        })
    }
}
