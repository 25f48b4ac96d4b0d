//! The events of a stream of a message.

use serde_json::{Value, json};

use super::reply::{Reply, Stop, usage_fields};
use crate::usage::Usage;

/// Text of events for the client.
#[derive(Debug, Default)]
pub(super) struct Events(Vec<u8>);

/// The kind of a content block, with what its first event says.
pub(super) enum Block<'a> {
    Thinking,
    Text,
    Call { id: &'a str, name: &'a str },
}

impl Events {
    /// Returns what has been written.
    pub(super) fn into_bytes(self) -> bytes::Bytes {
        self.0.into()
    }

    fn write(&mut self, kind: &str, data: &Value) {
        self.0.extend_from_slice(format!("event: {kind}\ndata: {data}\n\n").as_bytes());
    }

    /// Writes an event that is whole.
    pub(super) fn raw(&mut self, event: &[u8]) {
        self.0.extend_from_slice(event);
    }

    /// Begins a message. Its usage is not known yet: engines report it at the end.
    pub(super) fn message_start(&mut self, reply: &Reply) {
        let message = json!({
            "id": reply.id,
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage_fields(Usage::default()),
        });
        self.write("message_start", &json!({ "type": "message_start", "message": message }));
    }

    /// Begins a content block.
    pub(super) fn block_start(&mut self, index: u32, block: &Block<'_>) {
        let block = match block {
            Block::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Block::Text => json!({ "type": "text", "text": "" }),
            Block::Call { id, name } => {
                json!({ "type": "tool_use", "id": id, "name": name, "input": {} })
            }
        };
        let data = json!({ "type": "content_block_start", "index": index, "content_block": block });
        self.write("content_block_start", &data);
    }

    /// Continues a content block.
    pub(super) fn block_delta(&mut self, index: u32, block: &Block<'_>, text: &str) {
        let delta = match block {
            Block::Thinking => json!({ "type": "thinking_delta", "thinking": text }),
            Block::Text => json!({ "type": "text_delta", "text": text }),
            Block::Call { .. } => json!({ "type": "input_json_delta", "partial_json": text }),
        };
        self.delta(index, &delta);
    }

    fn delta(&mut self, index: u32, delta: &Value) {
        let data = json!({ "type": "content_block_delta", "index": index, "delta": delta });
        self.write("content_block_delta", &data);
    }

    /// Ends a content block. Thinking has a signature, which is empty: only Anthropic's servers can
    /// sign.
    pub(super) fn block_stop(&mut self, index: u32, block: &Block<'_>) {
        if matches!(block, Block::Thinking) {
            self.delta(index, &json!({ "type": "signature_delta", "signature": "" }));
        }
        let data = json!({ "type": "content_block_stop", "index": index });
        self.write("content_block_stop", &data);
    }

    /// Ends a message.
    pub(super) fn message_end(&mut self, stop: &Stop, usage: Usage) {
        let (reason, sequence) = stop.fields();
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        let usage = usage_fields(usage);
        let data = json!({ "type": "message_delta", "delta": delta, "usage": usage });
        self.write("message_delta", &data);
        self.write("message_stop", &json!({ "type": "message_stop" }));
    }
}
