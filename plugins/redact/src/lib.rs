//! Prompts without what should not be in them.
//!
//! E-mail addresses, telephone numbers, keys, bank accounts and the operator's own words are looked for in all texts of a
//! prompt: messages with their parts and tool calls, the prompt of a completion, the input of responses and embeddings. A
//! request in which something is found is *rewritten*, *refused*, or goes to *private* lanes only.
//!
//! The prompt is read in the largest pieces that the host hands out, and each piece in which something is found becomes one
//! edit. What cannot be read whole counts as unreadable and is refused, unless the operator says otherwise: what was not
//! looked at may hold anything.

mod config;
mod find;
mod rewrite;
#[cfg(test)]
mod tests;

use pointsman_sdk::config::quoted;
use pointsman_sdk::{Advice, Call, Edit, FieldValue, LaneId, Policy, PolicyError};

use self::config::{Action, Config, Unreadable};
use self::rewrite::{Counts, Marker};

/// The configured policy.
#[derive(Debug)]
pub struct Redact {
    config: Config,
}

pointsman_sdk::export_policy!(Redact);

/// Where prompts are, at whatever endpoint.
const ROOTS: [&str; 5] = ["/messages", "/prompt", "/suffix", "/input", "/instructions"];
/// Where texts are in an object that is too large to be read at once.
const PROSE: [&str; 10] = [
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
/// Bytes that the host hands out at once.
const PIECE: u32 = 64 << 10;
/// Bytes of edits that the host takes, with room for the rest of the advice, and how many.
const MOST_EDITED: usize = 200 << 10;
const MOST_EDITS: usize = 32;
/// Elements of one list, and levels of lists and objects, that are looked at one by one.
const MOST_ELEMENTS: usize = 4096;
const DEEPEST: usize = 8;

impl Policy for Redact {
    const NAME: &'static str = "redact";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)? })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let marker = Marker { rules: &self.config.rules, mask: &self.config.mask };
        let mut review = Review {
            call,
            marker,
            edits: Vec::new(),
            counts: Counts::default(),
            unreadable: false,
        };
        for root in ROOTS {
            review.visit(root, DEEPEST);
        }
        let Review { edits, counts, mut unreadable, .. } = review;
        let edited: usize = edits.iter().map(|(pointer, json)| pointer.len() + json.len()).sum();
        let too_many = edits.len() > MOST_EDITS || edited > MOST_EDITED;
        unreadable |= too_many && self.config.action == Action::Rewrite;
        call.metrics.add("found", counts.total());
        call.metrics.add("unreadable", u64::from(unreadable));
        if unreadable {
            match self.config.unreadable {
                Unreadable::Refuse => return Ok(too_large()),
                Unreadable::Private => {
                    return Ok(self.privately(call, "the prompt is too large to be looked through"));
                }
                // Half of the edits would pass for all of them.
                Unreadable::Pass if too_many => {
                    return Ok(Advice::any().because("too much to mask; nothing is"));
                }
                Unreadable::Pass => {}
            }
        }
        if counts.total() == 0 {
            return Ok(Advice::any());
        }
        let found = counts.sentence();
        Ok(match self.config.action {
            Action::Rewrite => {
                let edits = edits.into_iter().map(Edit::SetField).collect();
                Advice { edits, ..Advice::any() }.because(format!("masked: {found}"))
            }
            Action::Refuse => {
                let message =
                    format!("The prompt holds what must not be sent to this service: {found}.");
                Advice::refuse(400, "sensitive_content", message)
            }
            Action::Private => self.privately(call, &format!("found: {found}")),
        })
    }
}

impl Redact {
    /// Only lanes that may see everything, also after a failure.
    fn privately(&self, call: &Call<'_>, why: &str) -> Advice {
        let (label, value) = &self.config.private;
        let candidates = call.fleet.candidates();
        let able = |lane: &LaneId| call.fleet.stat(*lane).is_some_and(|stat| stat.able());
        let lanes: Vec<LaneId> = call
            .fleet
            .with_label(label, value)
            .into_iter()
            .filter(|lane| candidates.contains(lane) && able(lane))
            .collect();
        if lanes.is_empty() {
            let message = "The prompt may only be answered by a private lane, and none for this model is able to.";
            return Advice::refuse(503, "no_private_lane", message).because(why);
        }
        Advice::only(lanes.clone())
            .because(format!("private lanes only: {why}"))
            .falling_back_to(lanes)
    }
}

fn too_large() -> Advice {
    let message =
        "The prompt is too large to be looked through for what must not be sent to this service.";
    Advice::refuse(413, "prompt_too_large_to_review", message)
}

/// A request that is being looked through.
struct Review<'a> {
    call: &'a Call<'a>,
    marker: Marker<'a>,
    /// Pointers and their new JSON.
    edits: Vec<(String, String)>,
    counts: Counts,
    unreadable: bool,
}

impl Review<'_> {
    /// Look at a value, and if it is too large for that, at what is in it. Is there one?
    fn visit(&mut self, pointer: &str, deeper: usize) -> bool {
        match self.call.request.field(pointer, PIECE) {
            FieldValue::Absent => return false,
            FieldValue::Json(json) => match self.marker.json(&json, &mut self.counts) {
                Ok(Some(masked)) => self.edits.push((pointer.to_owned(), masked)),
                Ok(None) => {}
                Err(_) => self.unreadable = true,
            },
            FieldValue::TooLarge(_) if deeper == 0 => self.unreadable = true,
            FieldValue::TooLarge(_) => self.descend(pointer, deeper - 1),
        }
        true
    }

    fn descend(&mut self, pointer: &str, deeper: usize) {
        let has = |key: &str| {
            let there = self.call.request.field(&format!("{pointer}/{key}"), 64);
            !matches!(there, FieldValue::Absent)
        };
        if has("0") {
            let mut index = 0;
            while index < MOST_ELEMENTS && self.visit(&format!("{pointer}/{index}"), deeper) {
                index += 1;
            }
            self.unreadable |= index == MOST_ELEMENTS;
        } else if has("role") || has("type") || has("arguments") {
            // Images and sounds are large, and have no text.
            for key in PROSE {
                self.visit(&format!("{pointer}/{key}"), deeper);
            }
        } else {
            self.long_text(pointer);
        }
    }

    /// A text that is longer than a piece: read piece by piece, which the host does for messages and prompts.
    fn long_text(&mut self, pointer: &str) {
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
            let piece = self.call.request.text(index, text.len() as u64, PIECE);
            if piece.is_empty() {
                break;
            }
            text.push_str(&piece);
        }
        // The host hands out so much in a call, and then nothing. While it still hands out a whole piece, an empty one was
        // the end of the text.
        let again = self.call.request.text(index, 0, PIECE);
        let whole = !again.is_empty() && again.len() == text.floor_char_boundary(PIECE as usize);
        self.unreadable |= !whole;
        if let Some(masked) = self.marker.text(&text, &mut self.counts) {
            self.edits.push((pointer.to_owned(), quoted(&masked)));
        }
    }
}
