//! What a message says about itself, and the words of Anthropic's API for those of chat
//! completions.

use serde_json::{Map, Value, json};

use crate::usage::{Timings, Usage};

/// What is known of a message before the engine responds.
#[derive(Debug)]
pub(super) struct Reply {
    /// Its id.
    pub(super) id: String,
    /// The model that the client asked for.
    pub(super) model: String,
    /// The client does not want thinking.
    pub(super) hides_thinking: bool,
}

/// Why a message ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stop {
    reason: &'static str,
    sequence: Option<String>,
}

impl Stop {
    /// Reads the end of a choice; `None` if it has none. vLLM says in `stop_reason` which sequence
    /// it was, or which token.
    pub(super) fn read(choice: &Value) -> Option<Self> {
        let reason = match choice["finish_reason"].as_str()? {
            "" | "null" | "none" => return None,
            "length" => "max_tokens",
            "tool_calls" | "function_call" => "tool_use",
            "content_filter" => "refusal",
            _ => "end_turn",
        };
        let sequence = choice["stop_reason"].as_str().map(str::to_owned);
        let sequence = sequence.filter(|_| reason == "end_turn");
        let reason = if sequence.is_some() { "stop_sequence" } else { reason };
        Some(Self { reason, sequence })
    }

    /// Returns the end for a choice of which the engine says no reason.
    pub(super) fn unknown() -> Self {
        Self { reason: "end_turn", sequence: None }
    }

    /// Returns the end with what the content says about it: some engines end calls with `stop`.
    pub(super) fn with_content(self, has_calls: bool, is_refused: bool) -> Self {
        let is_plain = self.reason == "end_turn";
        match (has_calls, is_refused) {
            (true, _) if is_plain => Self { reason: "tool_use", sequence: None },
            (false, true) if is_plain => Self { reason: "refusal", sequence: None },
            _ => self,
        }
    }

    /// Returns the fields of the end.
    pub(super) fn fields(&self) -> (Value, Value) {
        (self.reason.into(), self.sequence.clone().into())
    }
}

/// Returns the usage of a completion or of one of its chunks; `None` if it has none.
pub(super) fn usage(completion: &Value) -> Option<Usage> {
    let read = |usage: &Value| serde_json::from_value::<Usage>(usage.clone()).ok();
    let reported = completion.get("usage").filter(|usage| usage.is_object()).and_then(read);
    let timings = || {
        let timings = completion.get("timings").filter(|timings| timings.is_object())?;
        serde_json::from_value::<Timings>(timings.clone()).ok()?.usage()
    };
    reported.or_else(timings)
}

/// Returns the usage in Anthropic's form, in which the input does not include what was cached.
pub(super) fn usage_fields(usage: Usage) -> Value {
    let cached = usage.cached_tokens.unwrap_or(0);
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    })
}

/// Returns the text of the reasoning in a message or delta: its name differs by engine.
pub(super) fn reasoning(delta: &Value) -> Option<&str> {
    let of = |key| delta.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    of("reasoning_content").or_else(|| of("reasoning"))
}

/// Returns the text of the arguments of a call. Some engines send the object itself.
pub(super) fn arguments(function: &Value) -> String {
    let arguments = &function["arguments"];
    match arguments.as_str() {
        Some(text) => text.to_owned(),
        None if arguments.is_null() => String::new(),
        None => arguments.to_string(),
    }
}

/// Returns the `input` of a call. It has to be an object; what is none is kept as the text of a
/// member, so that the model sees what it wrote when the client rejects the call. The name is the
/// one that Anthropic's documentation recommends.
pub(super) fn input(arguments: &str) -> Value {
    if arguments.trim().is_empty() {
        return Value::Object(Map::new());
    }
    match serde_json::from_str(arguments) {
        Ok(Value::Object(input)) => Value::Object(input),
        Ok(_) | Err(_) => json!({ "INVALID_JSON": arguments }),
    }
}
