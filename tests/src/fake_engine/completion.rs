//! The bodies of completions, with the keys of the captured engines in their order.

use serde_json::{Value, json};

use super::options::Flavour;

/// The error of vLLM after its core has died.
pub(super) const CORE_DEAD: &str =
    "EngineCore encountered an issue. See stack trace (above) for the root cause.";
/// The last event of a stream.
pub(super) const DONE: &str = "data: [DONE]\n\n";
const FINGERPRINT: &str = "vllm-0.32.0-431c467d";
/// The words of completions. The choice of words depends only on the prompt.
const WORDS: [&str; 16] = [
    "amber ", "brook ", "cedar ", "delta ", "ember ", "fjord ", "grove ", "heron ", "inlet ",
    "juniper ", "kelp ", "lark ", "moss ", "north ", "otter ", "pine ",
];

/// A completion.
#[derive(Debug, Clone)]
pub(super) struct Completion {
    pub(super) flavour: Flavour,
    /// True if the engine was started with the command line of the real engine: the words then
    /// depend on the prompt, and the response has only the keys of the real engine.
    pub(super) faithful: bool,
    pub(super) garbage: bool,
    pub(super) chat: bool,
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created: u64,
    pub(super) prompt: String,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) tokens: u64,
    pub(super) finish: &'static str,
    pub(super) include_usage: bool,
    /// The response is a stream.
    pub(super) streamed: bool,
    /// The response has the form of llama.cpp's own endpoints.
    pub(super) native: bool,
}

/// Returns a JSON value as an event of a stream.
pub(super) fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// Returns the events with which vLLM ends a stream after its core has died. Only these have spaces
/// after the colons.
pub(super) fn core_dead_event() -> String {
    format!(
        "data: {{\"error\": {{\"message\": \"{CORE_DEAD}\", \"type\": \"InternalServerError\", \
         \"param\": null, \
         \"code\": 500}}}}\n\n{DONE}"
    )
}

impl Completion {
    /// Returns the text of a token.
    pub(super) fn token(&self, at: u64) -> String {
        if self.garbage {
            return format!("\u{fffd}{:x}!", at.wrapping_mul(2_654_435_761) % 251);
        }
        if !self.faithful {
            return format!("word{at} ");
        }
        let start = 0xcbf2_9ce4_8422_2325_u64 ^ at;
        let hash = self
            .prompt
            .bytes()
            .fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        WORDS[((hash >> 32) % 16) as usize].to_owned()
    }

    /// Returns the body of a response that is not streamed.
    pub(super) fn whole(&self, finish: &str) -> Value {
        let text: String = (0..self.tokens).map(|at| self.token(at)).collect();
        let mut body = match self.flavour {
            Flavour::Vllm => self.vllm_whole(&text, finish),
            Flavour::LlamaCpp if self.native => self.native_end(&text, finish),
            Flavour::LlamaCpp => self.llama_whole(&text, finish),
        };
        if !self.faithful
            && let Some(body) = body.as_object_mut()
        {
            body.insert("x_unknown".to_owned(), json!({ "kept": [1.50, null] }));
        }
        body
    }

    fn vllm_whole(&self, text: &str, finish: &str) -> Value {
        let mut choice = if self.chat {
            json!({ "index": 0, "message": { "role": "assistant", "content": text, "refusal": null,
                "annotations": null, "audio": null, "function_call": null, "reasoning": null },
                "logprobs": null, "finish_reason": finish, "stop_reason": null, "token_ids": null })
        } else {
            json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": finish,
                "stop_reason": null,
                "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null })
        };
        choice["routed_experts"] = Value::Null;
        let object = if self.chat { "chat.completion" } else { "text_completion" };
        let mut usage = self.vllm_usage();
        usage["prompt_tokens_details"] = Value::Null;
        usage["completion_tokens_details"] = Value::Null;
        let mut body = json!({ "id": self.id, "object": object, "created": self.created,
            "model": self.model,
            "choices": [choice], "service_tier": null, "system_fingerprint": FINGERPRINT,
                "usage": usage });
        let prompt: &[&str] =
            if self.chat { &["prompt_logprobs", "prompt_token_ids", "prompt_text"] } else { &[] };
        for key in prompt.iter().chain(&["kv_transfer_params", "ec_transfer_params", "metrics"]) {
            body[*key] = Value::Null;
        }
        body
    }

    fn vllm_usage(&self) -> Value {
        json!({ "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "completion_tokens": self.tokens })
    }

    fn llama_usage(&self) -> Value {
        json!({ "completion_tokens": self.tokens, "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": { "cached_tokens": self.cached_tokens } })
    }

    fn timings(&self) -> Value {
        json!({ "cache_n": self.cached_tokens, "prompt_n": self.prompt_tokens - self.cached_tokens,
            "prompt_ms": 30.378, "prompt_per_token_ms": 30.378,
                "prompt_per_second": 32.918_559_483_836_99,
            "predicted_n": self.tokens, "predicted_ms": 30.724, "predicted_per_token_ms": 7.681,
            "predicted_per_second": 130.191_378_133_055_86 })
    }

    fn llama_whole(&self, text: &str, finish: &str) -> Value {
        let (choice, object) = if self.chat {
            let message = json!({ "role": "assistant", "content": text });
            (json!({ "finish_reason": finish, "index": 0, "message": message }), "chat.completion")
        } else {
            (
                json!({ "text": text, "index": 0, "logprobs": null, "finish_reason": finish }),
                "text_completion",
            )
        };
        json!({ "choices": [choice], "created": self.created, "model": self.model,
            "system_fingerprint": "b0-unknown", "object": object, "usage": self.llama_usage(),
                "id": self.id,
            "timings": self.timings() })
    }

    /// Returns a whole response of llama.cpp's own endpoints, or the last object of a stream.
    fn native_end(&self, text: &str, finish: &str) -> Value {
        let stop_type = if finish == "length" { "limit" } else { "eos" };
        json!({ "index": 0, "content": text, "tokens": [], "id_slot": -1, "stop": true,
            "model": self.model, "tokens_predicted": self.tokens,
            "tokens_evaluated": self.prompt_tokens,
            "generation_settings": { "seed": 4_294_967_295_u32 },
            "prompt": self.prompt, "has_new_line": false, "truncated": false,
            "stop_type": stop_type, "stopping_word": "",
            "tokens_cached": self.prompt_tokens + self.tokens, "timings": self.timings() })
    }

    /// Returns a chunk of a stream with these choices.
    fn chunk(&self, choices: &Value) -> Value {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        match self.flavour {
            Flavour::Vllm => json!({ "id": self.id, "object": object, "created": self.created,
                "model": self.model, "choices": choices }),
            Flavour::LlamaCpp if self.chat => json!({ "choices": choices, "created": self.created,
                "id": self.id, "model": self.model, "system_fingerprint": "b0-unknown",
                    "object": object }),
            Flavour::LlamaCpp => {
                json!({ "choices": choices, "created": self.created, "model": self.model,
                "system_fingerprint": "b0-unknown", "object": object, "id": self.id })
            }
        }
    }

    /// Returns the chunk before the first token, if the endpoint has one.
    pub(super) fn first(&self) -> Option<String> {
        let chunk = match self.flavour {
            _ if !self.chat => return None,
            Flavour::Vllm => {
                let delta = json!({ "role": "assistant", "content": "" });
                let choices = json!([{ "index": 0, "delta": delta, "logprobs": null,
                    "finish_reason": null }]);
                let mut chunk = self.chunk(&choices);
                chunk["prompt_token_ids"] = Value::Null;
                chunk["prompt_text"] = Value::Null;
                chunk
            }
            Flavour::LlamaCpp => {
                let delta = json!({ "role": "assistant", "content": null });
                self.chunk(&json!([{ "finish_reason": null, "index": 0, "delta": delta }]))
            }
        };
        Some(event(&chunk))
    }

    /// Returns the chunk of a piece of text. With vLLM, the chunk of the last token has the finish
    /// reason.
    pub(super) fn piece(&self, text: &str, finish: Option<&str>) -> String {
        if self.native {
            let piece = || {
                json!({ "index": 0, "content": text, "tokens": [], "stop": false,
                "id_slot": -1, "tokens_predicted": 1, "tokens_evaluated": self.prompt_tokens })
            };
            return event(&finish.map_or_else(piece, |finish| self.native_end("", finish)));
        }
        let choices = match (self.flavour, self.chat) {
            (Flavour::Vllm, true) => {
                let mut choice = json!({ "index": 0, "delta": { "content": text }, "logprobs": null,
                    "finish_reason": finish });
                if finish.is_some() {
                    choice["stop_reason"] = Value::Null;
                }
                choice["token_ids"] = Value::Null;
                json!([choice])
            }
            (Flavour::Vllm, false) => json!([{ "index": 0, "text": text, "logprobs": null,
                "finish_reason": finish, "stop_reason": null, "prompt_token_ids": null,
                    "token_ids": null }]),
            (Flavour::LlamaCpp, true) => {
                let delta = if finish.is_some() { json!({}) } else { json!({ "content": text }) };
                json!([{ "finish_reason": finish, "index": 0, "delta": delta }])
            }
            (Flavour::LlamaCpp, false) => {
                json!([{ "text": text, "index": 0, "logprobs": null, "finish_reason": finish }])
            }
        };
        let mut chunk = self.chunk(&choices);
        if finish.is_some() && !self.include_usage {
            match self.flavour {
                Flavour::Vllm => chunk["system_fingerprint"] = FINGERPRINT.into(),
                Flavour::LlamaCpp => chunk["timings"] = self.timings(),
            }
        }
        event(&chunk)
    }

    /// Returns the events after the chunk of the last token.
    pub(super) fn last(&self) -> String {
        let mut last = String::new();
        if self.native {
            return last;
        }
        if self.include_usage {
            let mut chunk = self.chunk(&json!([]));
            match self.flavour {
                Flavour::Vllm => {
                    chunk["usage"] = self.vllm_usage();
                    chunk["system_fingerprint"] = FINGERPRINT.into();
                }
                Flavour::LlamaCpp => {
                    chunk["usage"] = self.llama_usage();
                    chunk["timings"] = self.timings();
                }
            }
            last = event(&chunk);
        }
        last + DONE
    }
}
