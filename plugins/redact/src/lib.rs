//! Masks sensitive content in prompts, rejects such requests, or keeps them on private lanes.
//!
//! The policy scans all texts of a prompt for email addresses, telephone numbers, API keys, bank
//! accounts and configured words: messages with their parts and tool calls, the prompt of a
//! completion, the input of responses and embeddings. A request with matches is *rewritten*,
//! *rejected*, or uses *private* lanes only.
//!
//! The prompt is read in the largest pieces that the host returns, and each piece with a match
//! becomes one edit. A prompt that cannot be read completely is unreadable and is rejected by
//! default, because the part that was not scanned may contain anything.

mod config;
mod find;
mod rewrite;
#[cfg(test)]
mod tests;

use pointsman_sdk::config::quote_json;
use pointsman_sdk::{Advice, Call, Edit, FieldValue, LaneId, Policy, PolicyError};

use self::config::{Action, Config, Unreadable};
use self::rewrite::{Counts, Masker};

/// The configured policy.
#[derive(Debug)]
pub struct Redact {
    config: Config,
}

pointsman_sdk::export_policy!(Redact);

/// JSON Pointers of the prompts of all endpoints.
const ROOTS: [&str; 5] = ["/messages", "/prompt", "/suffix", "/input", "/instructions"];
/// Keys with text in an object that is too large to be read in one piece.
const TEXT_KEYS: [&str; 10] = [
    "content",
    "text",
    "arguments",
    "output",
    "summary",
    "refusal",
    "reasoning_content",
    "tool_calls",
    "function",
    "name",
];
/// Maximum bytes that the host returns per call.
const PIECE_BYTES: u32 = 64 << 10;
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

impl Policy for Redact {
    const NAME: &'static str = "redact";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)? })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let masker = Masker { rules: &self.config.rules, mask: &self.config.mask };
        let mut scan = Scan::new(call, masker, &self.config);
        for root in ROOTS {
            scan.visit(root, MAX_DEPTH);
            if scan.is_decided() {
                break;
            }
        }
        let too_many = scan.has_too_many_edits();
        let Scan { edits, counts, mut unreadable, .. } = scan;
        unreadable |= too_many && self.config.action == Action::Rewrite;
        call.metrics.add("found", counts.total());
        call.metrics.add("unreadable", u64::from(unreadable));
        if unreadable {
            match self.config.unreadable {
                Unreadable::Reject => return Ok(reject_too_large()),
                Unreadable::Private => {
                    return Ok(self.private_only(call, "the prompt is too large to scan"));
                }
                // Masking only some of the matches would look as if all were masked.
                Unreadable::Pass if too_many => {
                    return Ok(
                        Advice::any().with_reason("too many matches to mask; none are masked")
                    );
                }
                Unreadable::Pass => {}
            }
        }
        if counts.total() == 0 {
            return Ok(Advice::any());
        }
        let found = counts.summary();
        Ok(match self.config.action {
            Action::Rewrite => {
                let edits = edits.into_iter().map(Edit::SetField).collect();
                Advice { edits, ..Advice::any() }.with_reason(format!("masked: {found}"))
            }
            Action::Reject => {
                // The message has the kinds only, because error messages end up in logs.
                let message = format!("prompt contains sensitive content: {found}");
                Advice::reject(400, "sensitive_content", message)
            }
            Action::Private => self.private_only(call, &format!("found {found}")),
        })
    }
}

impl Redact {
    /// Returns advice that allows only private lanes, including as fallbacks.
    fn private_only(&self, call: &Call<'_>, reason: &str) -> Advice {
        let (label, value) = &self.config.private;
        let candidates = call.fleet.candidates();
        let is_available =
            |lane: &LaneId| call.fleet.stat(*lane).is_some_and(|stat| stat.is_available());
        let lanes: Vec<LaneId> = call
            .fleet
            .with_label(label, value)
            .into_iter()
            .filter(|lane| candidates.contains(lane) && is_available(lane))
            .collect();
        if lanes.is_empty() {
            let message = "prompt requires a private lane, and none is available for this model";
            return Advice::reject(503, "no_private_lane", message).with_reason(reason);
        }
        Advice::only(lanes.clone())
            .with_reason(format!("private lanes only: {reason}"))
            .with_fallback(lanes)
    }
}

fn reject_too_large() -> Advice {
    let message = "prompt is too large to scan for sensitive content";
    Advice::reject(413, "prompt_too_large_to_review", message)
}

/// The state of a scan of one request.
struct Scan<'a> {
    call: &'a Call<'a>,
    masker: Masker<'a>,
    config: &'a Config,
    /// JSON Pointers and their new values.
    edits: Vec<(String, String)>,
    edit_bytes: usize,
    counts: Counts,
    /// Reads of fields that are left.
    visits_left: usize,
    unreadable: bool,
}

impl<'a> Scan<'a> {
    fn new(call: &'a Call<'a>, masker: Masker<'a>, config: &'a Config) -> Self {
        Self {
            call,
            masker,
            config,
            edits: Vec::new(),
            edit_bytes: 0,
            counts: Counts::default(),
            visits_left: MAX_VISITS,
            unreadable: false,
        }
    }

    fn has_too_many_edits(&self) -> bool {
        self.edits.len() > MAX_EDITS || self.edit_bytes > MAX_EDIT_BYTES
    }

    /// Returns whether the rest of the prompt makes no difference.
    fn is_decided(&self) -> bool {
        (self.unreadable && self.config.unreadable != Unreadable::Pass)
            || (self.has_too_many_edits() && self.config.action == Action::Rewrite)
    }

    fn edit(&mut self, pointer: &str, json: String) {
        self.edit_bytes += pointer.len() + json.len();
        self.edits.push((pointer.to_owned(), json));
    }

    /// Reads a field. After the maximum number of reads, all fields are absent.
    fn read(&mut self, pointer: &str, max_bytes: u32) -> FieldValue {
        if self.visits_left == 0 {
            self.unreadable = true;
            return FieldValue::Absent;
        }
        self.visits_left -= 1;
        self.call.request.field(pointer, max_bytes)
    }

    /// Scans a value, or its elements if it is too large to be read in one piece. Returns false if
    /// the value does not exist, or nothing else has to be scanned.
    fn visit(&mut self, pointer: &str, depth: usize) -> bool {
        if self.is_decided() {
            return false;
        }
        match self.read(pointer, PIECE_BYTES) {
            FieldValue::Absent => return false,
            FieldValue::Json(json) => match self.masker.json(&json, &mut self.counts) {
                Ok(Some(masked)) => self.edit(pointer, masked),
                Ok(None) => {}
                Err(_) => self.unreadable = true,
            },
            FieldValue::TooLarge(_) if depth == 0 => self.unreadable = true,
            FieldValue::TooLarge(_) => self.descend(pointer, depth - 1),
        }
        true
    }

    /// Scans the elements of a list or object, or a long string.
    fn descend(&mut self, pointer: &str, depth: usize) {
        let mut has_key = |key: &str| {
            let field = self.read(&format!("{pointer}/{key}"), 64);
            !matches!(field, FieldValue::Absent)
        };
        if has_key("0") {
            let mut index = 0;
            while index < MAX_ELEMENTS && self.visit(&format!("{pointer}/{index}"), depth) {
                index += 1;
            }
            self.unreadable |= index == MAX_ELEMENTS;
        } else if has_key("role") || has_key("type") || has_key("arguments") {
            // Other keys hold images and audio, which are large and have no text.
            for key in TEXT_KEYS {
                self.visit(&format!("{pointer}/{key}"), depth);
            }
        } else if !self.is_decided() {
            self.scan_long_text(pointer);
        }
    }

    /// Scans a string that is longer than one piece. The host returns the text of messages and
    /// prompts in pieces, but no other strings.
    fn scan_long_text(&mut self, pointer: &str) {
        let index = match pointer {
            "/prompt" => Some(0),
            _ => pointer
                .strip_prefix("/messages/")
                .and_then(|rest| rest.strip_suffix("/content")?.parse().ok()),
        };
        let Some(index) = index else {
            self.unreadable = true;
            return;
        };
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
        self.unreadable |= !is_complete;
        if self.is_decided() {
            return;
        }
        if let Some(masked) = self.masker.text(&text, &mut self.counts) {
            self.edit(pointer, quote_json(&masked));
        }
    }
}
