//! Hashes of a request's prompt, by which caches of its prefixes are found.

use pointsman_domain::{
    FieldValue, PromptHasher, PromptHashes, RequestView as _, Role, fnv1a_chain,
};

use super::Request;
use super::prompt::Message;

/// Bytes of a block of [`Request::conversation_hashes`]: about 32 tokens.
const BLOCK_BYTES: usize = 128;
/// Maximum number of blocks: 512 KiB, about 130,000 tokens. The rest is not hashed.
const MAX_BLOCKS: usize = 1 << 12;
/// Fields of the body from which templates make the beginning of a prompt.
const TEMPLATE_FIELDS: [&str; 4] =
    ["chat_template_kwargs", "reasoning_effort", "reasoning", "thinking"];
/// Maximum size of such a field.
const MAX_FIELD: usize = 64 << 10;

impl Request {
    /// Returns the hashes of the prompt, which are computed once. Empty for embeddings, whose
    /// engines cache no prefixes, and for endpoints whose prompts are unknown.
    ///
    /// The prompt is hashed as the JSON literals of tools, system prompt, messages and their tool
    /// calls, in this order. Resolving escapes would cost several times as much, and a client
    /// writes the same text in the same way every time.
    pub fn prompt_hashes(&self, hasher: &PromptHasher) -> &PromptHashes {
        self.parsed.prompt_hashes.get_or_init(|| {
            let model = self.head.hashed_model.as_deref().unwrap_or(&self.parsed.model);
            self.hashed_parts()
                .map_or_else(PromptHashes::default, |parts| hasher.hash(model, parts))
        })
    }

    /// Returns the chained hashes of the leading blocks of the prompt, which are the same in every
    /// process. Unlike [`Request::prompt_hashes`] they do not depend on the name of the model, but
    /// on what else templates put before the messages. Empty if the client does not want what is
    /// cached.
    pub fn conversation_hashes(&self) -> Vec<u64> {
        let field = |name: &str| match self.field(&format!("/{name}"), MAX_FIELD) {
            FieldValue::Json(json) => Some(json),
            FieldValue::Absent | FieldValue::TooLarge(_) => None,
        };
        if field("cache_prompt").is_some_and(|value| value == "false") {
            return Vec::new();
        }
        let fields: Vec<String> = TEMPLATE_FIELDS.into_iter().filter_map(field).collect();
        let fields = fields.iter().map(String::as_bytes);
        let parts = self.hashed_parts();
        parts.map_or_else(Vec::new, |parts| {
            fnv1a_chain(fields.chain(parts), BLOCK_BYTES, MAX_BLOCKS)
        })
    }

    /// Returns the parts of the body that are hashed; `None` if there is no prompt.
    fn hashed_parts(&self) -> Option<impl Iterator<Item = &[u8]>> {
        let body: &[u8] = self.body();
        let messages = self.parsed.prompt.messages();
        let literals = |message: &'_ Message| {
            message.literals.clone().into_iter().filter(|literal| !literal.is_empty())
        };
        messages.iter().find_map(|message| literals(message).next())?;
        let preamble = self.parsed.preamble.iter().flatten();
        let preamble = preamble.map(|range| &body[range.clone()]);
        let messages = messages.iter().flat_map(move |message| {
            let literals = literals(message).map(|range| &body[range]);
            std::iter::once(role_mark(message.role)).chain(literals)
        });
        Some(preamble.chain(messages))
    }
}

/// Returns what separates a message from the one before, and differs by role.
fn role_mark(role: Role) -> &'static [u8] {
    match role {
        Role::System => b"\nsystem:",
        Role::User => b"\nuser:",
        Role::Assistant => b"\nassistant:",
        Role::Tool => b"\ntool:",
        Role::Other => b"\nother:",
    }
}
