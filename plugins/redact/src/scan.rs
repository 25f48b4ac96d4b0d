//! Scans all texts of a request, in the largest pieces that the host returns.

use nojson::{JsonValueKind, RawJson, RawJsonValue};
use pointsman_sdk::config::quote_json;
use pointsman_sdk::{Advice, Call, Endpoint, FieldValue};

use crate::config::{Action, Config, Unreadable};
use crate::rewrite::{Content, Counts, Masker, Scanned};

/// JSON Pointers of the fields of which engines read texts, of all endpoints.
const ROOTS: [(&str, Content); 33] = [
    // Chat, also of Anthropic and Ollama.
    ("/messages", Content::Protocol),
    ("/system", Content::Protocol),
    ("/tools", Content::Schema),
    ("/functions", Content::Schema),
    ("/response_format", Content::Schema),
    ("/format", Content::Schema),
    ("/json_schema", Content::Schema),
    ("/documents", Content::Protocol),
    ("/chat_template", Content::Schema),
    ("/chat_template_kwargs", Content::Data),
    ("/prediction", Content::Protocol),
    // Completions, Responses, embeddings, moderations, speech, images.
    ("/prompt", Content::Protocol),
    ("/suffix", Content::Protocol),
    ("/input", Content::Protocol),
    ("/instructions", Content::Protocol),
    ("/text", Content::Schema),
    ("/instruction", Content::Protocol),
    ("/negative_prompt", Content::Protocol),
    // Rerank, score and pooling.
    ("/query", Content::Protocol),
    ("/queries", Content::Protocol),
    ("/texts", Content::Protocol),
    ("/items", Content::Protocol),
    ("/text_1", Content::Protocol),
    ("/text_2", Content::Protocol),
    ("/data_1", Content::Protocol),
    ("/data_2", Content::Protocol),
    ("/data", Content::Data),
    // llama.cpp's own, and Ollama's.
    ("/content", Content::Protocol),
    ("/input_prefix", Content::Protocol),
    ("/input_suffix", Content::Protocol),
    ("/input_extra", Content::Protocol),
    ("/template", Content::Schema),
    ("/context", Content::Protocol),
];
/// Roots that may have the ids of tokens instead of texts.
const TOKEN_ROOTS: [&str; 5] = ["/prompt", "/input", "/content", "/context", "/input_prefix"];
/// Endpoints whose requests are forms with files, which policies cannot read.
const FORM_ENDPOINTS: [&str; 4] =
    ["image-edits", "image-variations", "transcriptions", "translations"];
/// Keys with text in an object that is too large to be read in one piece.
const TEXT_KEYS: [&str; 26] = [
    "role",
    "type",
    "id",
    "tool_call_id",
    "content",
    "text",
    "arguments",
    "input",
    "output",
    "summary",
    "refusal",
    "reasoning",
    "reasoning_content",
    "thinking",
    "title",
    "context",
    "source",
    "document",
    "prompt",
    "prompt_string",
    "query",
    "filename",
    "tool_calls",
    "tool_name",
    "function",
    "name",
];
/// Maximum bytes that the host returns per call.
const PIECE_BYTES: u32 = 64 << 10;
/// Maximum size of a body of which values are read that are longer than one piece. The host returns
/// one megabyte per call, and the other fields have to be read as well.
const MAX_BODY_BYTES: u64 = 500 << 10;
/// Maximum bytes of all edits. The host accepts 256 KiB of advice; the rest is for the other
/// fields.
const MAX_EDIT_BYTES: usize = 200 << 10;
/// Maximum number of edits that the host accepts.
const MAX_EDITS: usize = 32;
/// Maximum number of elements of a list that are read one by one.
const MAX_ELEMENTS: usize = 4096;
/// Maximum reads of fields of one request. A prompt of so many small parts takes longer to scan
/// than a call may take.
const MAX_VISITS: usize = 10_000;
/// Maximum depth of lists and objects that are read element by element.
const MAX_DEPTH: usize = 8;

/// The reason why a prompt cannot be scanned completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It is too large, or has too many parts or matches.
    Size,
    /// It is a form with files.
    Form,
    /// It consists of the ids of tokens.
    TokenIds,
    /// A value is not valid JSON.
    Invalid,
}

impl Obstacle {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Size => "the prompt is too large to scan",
            Self::Form => "files cannot be scanned for sensitive content",
            Self::TokenIds => "token ids cannot be scanned for sensitive content",
            Self::Invalid => "the prompt has a value that cannot be scanned",
        }
    }

    pub(crate) fn rejection(self) -> Advice {
        match self {
            Self::Size => {
                let message = "prompt is too large to scan for sensitive content";
                Advice::reject(413, "prompt_too_large_to_review", message)
            }
            Self::Form | Self::TokenIds | Self::Invalid => {
                Advice::reject(400, "prompt_not_reviewable", self.reason())
            }
        }
    }
}

/// The state of a scan of one request.
pub(crate) struct Scan<'a> {
    call: &'a Call<'a>,
    masker: Masker<'a>,
    config: &'a Config,
    /// JSON Pointers and their new values.
    pub(crate) edits: Vec<(String, String)>,
    edit_bytes: usize,
    pub(crate) counts: Counts,
    /// Reads of fields that are left.
    visits_left: usize,
    pub(crate) unreadable: Option<Obstacle>,
    /// The whole body, once a long value was read from it; empty if it cannot be read.
    body: Option<String>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(call: &'a Call<'a>, masker: Masker<'a>, config: &'a Config) -> Self {
        Self {
            call,
            masker,
            config,
            edits: Vec::new(),
            edit_bytes: 0,
            counts: Counts::default(),
            visits_left: MAX_VISITS,
            unreadable: None,
            body: None,
        }
    }

    pub(crate) fn has_too_many_edits(&self) -> bool {
        self.edits.len() > MAX_EDITS || self.edit_bytes > MAX_EDIT_BYTES
    }

    /// Scans the whole request, or as much of it as makes a difference.
    pub(crate) fn request(&mut self) {
        if FORM_ENDPOINTS.contains(&self.call.request.endpoint_kind().as_str()) {
            self.note(Obstacle::Form);
        }
        for (root, content) in ROOTS {
            self.visit(root, content, MAX_DEPTH);
        }
    }

    /// Returns whether the rest of the prompt makes no difference.
    fn is_decided(&self) -> bool {
        (self.unreadable.is_some() && self.config.unreadable != Unreadable::Pass)
            || (self.has_too_many_edits() && self.config.action == Action::Rewrite)
    }

    fn note(&mut self, obstacle: Obstacle) {
        self.unreadable.get_or_insert(obstacle);
    }

    fn edit(&mut self, pointer: &str, json: String) {
        self.edit_bytes += pointer.len() + json.len();
        self.edits.push((pointer.to_owned(), json));
    }

    /// Reads a field. After the maximum number of reads, all fields are absent.
    fn read(&mut self, pointer: &str, max_bytes: u32) -> FieldValue {
        if self.visits_left == 0 {
            self.note(Obstacle::Size);
            return FieldValue::Absent;
        }
        self.visits_left -= 1;
        self.call.request.field(pointer, max_bytes)
    }

    /// Scans a value, or its elements if it is too large to be read in one piece. Returns false if
    /// the value does not exist, or nothing else has to be scanned.
    fn visit(&mut self, pointer: &str, content: Content, depth: usize) -> bool {
        if self.is_decided() {
            return false;
        }
        match self.read(pointer, PIECE_BYTES) {
            FieldValue::Absent => return false,
            FieldValue::Json(json) => {
                let scanned = self.masker.json(&json, content, &mut self.counts).ok();
                self.scanned(pointer, scanned);
            }
            FieldValue::TooLarge(_) if depth == 0 => self.note(Obstacle::Size),
            FieldValue::TooLarge(_) => self.descend(pointer, content, depth - 1),
        }
        true
    }

    /// Takes the result of scanning a value; `None` for invalid JSON.
    fn scanned(&mut self, pointer: &str, scanned: Option<Scanned>) {
        let Some(Scanned { masked, has_token_ids }) = scanned else {
            return self.note(Obstacle::Invalid);
        };
        if has_token_ids && is_prompt(pointer) {
            self.note(Obstacle::TokenIds);
        }
        if let Some(masked) = masked {
            self.edit(pointer, masked);
        }
    }

    /// Scans the elements of a list or object, or a long string.
    fn descend(&mut self, pointer: &str, content: Content, depth: usize) {
        // Objects that clients choose may have such a key as well.
        let may_be_list = match content {
            Content::Protocol => true,
            Content::Schema => depth == MAX_DEPTH - 1,
            Content::Data => false,
        };
        if may_be_list && self.has_key(pointer, "0") {
            let mut index = 0;
            while index < MAX_ELEMENTS
                && self.visit(&child(pointer, &index.to_string()), content, depth)
            {
                index += 1;
            }
            if index == MAX_ELEMENTS {
                self.note(Obstacle::Size);
            }
        } else if content == Content::Protocol
            && TEXT_KEYS.iter().any(|key| self.has_key(pointer, key))
        {
            // Other keys hold images and audio, which are large and have no text.
            for key in TEXT_KEYS {
                let is_data = matches!(key, "input" | "arguments");
                let content = if is_data { Content::Data } else { content };
                self.visit(&child(pointer, key), content, depth);
            }
            let kind = self.read(&child(pointer, "type"), 64);
            if matches!(kind, FieldValue::Json(kind) if kind == "\"text\"") {
                self.visit(&child(pointer, "data"), content, depth);
            }
        } else if !self.is_decided() {
            self.scan_long_value(pointer, content);
        }
    }

    fn has_key(&mut self, pointer: &str, key: &str) -> bool {
        !matches!(self.read(&child(pointer, key), 64), FieldValue::Absent)
    }

    /// Scans a value that is longer than one piece, and which is not a list.
    fn scan_long_value(&mut self, pointer: &str, content: Content) {
        // Only of these endpoints the host's texts are known to be single fields.
        let index = match (self.call.context.endpoint, pointer) {
            (Endpoint::Completions, "/prompt") => Some(0),
            (Endpoint::ChatCompletions, pointer) => pointer
                .strip_prefix("/messages/")
                .and_then(|rest| rest.strip_suffix("/content")?.parse().ok()),
            _ => None,
        };
        match index {
            Some(index) => self.scan_text(pointer, index),
            None => self.scan_in_body(pointer, content),
        }
    }

    /// Scans the text of a message or prompt, which the host returns in pieces.
    fn scan_text(&mut self, pointer: &str, index: u32) {
        let mut text = String::new();
        loop {
            let piece = self.call.request.text(index, text.len() as u64, PIECE_BYTES);
            if piece.is_empty() {
                break;
            }
            text.push_str(&piece);
        }
        // When the read limit of the call is used up, the host returns empty text. If it still
        // returns the first piece, the empty piece above was the end of the text.
        let first = self.call.request.text(index, 0, PIECE_BYTES);
        let is_complete =
            !first.is_empty() && first.len() == text.floor_char_boundary(PIECE_BYTES as usize);
        if !is_complete {
            self.note(Obstacle::Size);
        }
        if self.is_decided() {
            return;
        }
        if let Some(masked) = self.masker.text(&text, &mut self.counts) {
            self.edit(pointer, quote_json(&masked));
        }
    }

    /// Scans a value in the body. A body that the host returns only in part is not JSON.
    fn scan_in_body(&mut self, pointer: &str, content: Content) {
        let body = self.body.take().unwrap_or_else(|| self.read_body());
        let scanned = RawJson::parse(&body).ok().and_then(|parsed| {
            let value = find(parsed.value(), pointer)?;
            self.masker.value(&body, value, content, &mut self.counts).ok()
        });
        self.body = Some(body);
        match scanned {
            Some(scanned) => self.scanned(pointer, Some(scanned)),
            None => self.note(Obstacle::Size),
        }
    }

    /// Reads the whole body; empty if it is too large.
    fn read_body(&self) -> String {
        if self.call.context.body_bytes > MAX_BODY_BYTES {
            return String::new();
        }
        let mut body = Vec::new();
        loop {
            let piece = self.call.request.body(body.len() as u64, PIECE_BYTES);
            if piece.is_empty() {
                return String::from_utf8(body).unwrap_or_default();
            }
            body.extend_from_slice(&piece);
        }
    }
}

/// Returns the pointer to a member or element.
fn child(pointer: &str, key: &str) -> String {
    // `format!` would make the component larger.
    let mut child = String::with_capacity(pointer.len() + 1 + key.len());
    child.push_str(pointer);
    child.push('/');
    child.push_str(key);
    child
}

/// Returns whether the value is a prompt, or a list in it, which may have the ids of tokens.
fn is_prompt(pointer: &str) -> bool {
    TOKEN_ROOTS.iter().any(|root| {
        let below = pointer.strip_prefix(root);
        below.is_some_and(|below| below.bytes().all(|byte| byte == b'/' || byte.is_ascii_digit()))
    })
}

/// Returns the value at a JSON Pointer. Of duplicate keys the last one counts, as for the host.
fn find<'a, 'b>(root: RawJsonValue<'a, 'b>, pointer: &str) -> Option<RawJsonValue<'a, 'b>> {
    let mut value = root;
    for token in pointer.split('/').skip(1) {
        let mut found = None;
        if value.kind() == JsonValueKind::Array {
            found = value.to_array().ok()?.nth(token.parse().ok()?);
        } else {
            for (key, member) in value.to_object().ok()? {
                if key.to_unquoted_string_str().is_ok_and(|key| key == token) {
                    found = Some(member);
                }
            }
        }
        value = found?;
    }
    Some(value)
}
