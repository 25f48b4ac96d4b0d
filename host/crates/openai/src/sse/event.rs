//! What the data of one event says about its stream.

use std::collections::HashSet;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::de::IgnoredAny;

use crate::endpoint::StreamKind;
use crate::scan::{self, Child, Children};
use crate::usage::{self, Timings, Usage};

/// The types of events that end a stream of the kind [`StreamKind::Events`].
const RESPONSE_COMPLETED: &str = "response.completed";
const RESPONSE_INCOMPLETE: &str = "response.incomplete";
const RESPONSE_FAILED: &str = "response.failed";
const ERROR_EVENT: &str = "error";

/// The types of events of the kind [`StreamKind::Messages`] that say how it goes.
const MESSAGE_START: &str = "message_start";
const MESSAGE_DELTA: &str = "message_delta";
const MESSAGE_STOP: &str = "message_stop";

/// What an event says, besides its content.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) is_error: bool,
    pub(super) usage: Option<Usage>,
}

/// Which choices of a response have ended, and what else is kept between events.
#[derive(Debug)]
pub(super) struct Ended {
    /// The number of choices that the client asked for.
    choices: u32,
    indices: HashSet<u32>,
    /// The event with the whole response, or the one that ends a message, has arrived.
    whole: bool,
    /// The usage at the beginning of a message, which has its prompt.
    prompt: Option<Usage>,
}

impl Default for Ended {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Ended {
    pub(super) fn new(choices: u32) -> Self {
        Self { choices: choices.max(1), indices: HashSet::new(), whole: false, prompt: None }
    }

    /// Returns true if the event with the whole response has arrived.
    pub(super) fn has_whole_response(&self) -> bool {
        self.whole
    }

    pub(super) fn is_complete(&self) -> bool {
        self.whole || self.indices.len() >= self.choices as usize
    }

    /// Notes the end of a choice that has no index.
    pub(super) fn note_next(&mut self) {
        self.note(u32::try_from(self.indices.len()).unwrap_or(u32::MAX));
        self.whole |= self.is_complete();
    }

    /// Notes the end of a choice. Others than those that were asked for do not count, so that an
    /// engine cannot fill the memory.
    fn note(&mut self, index: u32) {
        if index < self.choices {
            self.indices.insert(index);
        }
    }
}

/// Returns a line without the byte order mark that a stream may begin with.
pub(super) fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
}

/// Returns true if a line, of which at least the name of the field has arrived, has data. Earlier
/// builds of llama.cpp report errors in a field of their own.
pub(super) fn has_data(line: &[u8]) -> bool {
    let line = without_mark(line);
    line.starts_with(b"data:") || line.starts_with(b"error:")
}

/// Returns true if a line without a line ending is whole, so that it counts at the end of a body.
pub(super) fn is_whole(line: &[u8]) -> bool {
    let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return false };
    data == b"[DONE]" || serde_json::from_slice::<IgnoredAny>(data).is_ok()
}

/// Reads the data of an event.
pub(super) fn read(kind: StreamKind, data: &[u8], ended: &mut Ended) -> Seen {
    match kind {
        StreamKind::Chunks => chunk(data, ended),
        StreamKind::Events => typed(data, ended),
        StreamKind::Messages => message(data, ended),
        StreamKind::Transcripts | StreamKind::Speech | StreamKind::Images => {
            named(kind, data, ended)
        }
        StreamKind::Native => native(data, ended),
    }
}

/// Returns true if the data of an event has a part of the response's text, of its reasoning, or of
/// the arguments of a tool call.
pub(super) fn has_content(data: &[u8]) -> bool {
    static TEXT: LazyLock<[Finder<'static>; 8]> = LazyLock::new(|| {
        [
            Finder::new(b"\"content\":"),
            Finder::new(b"\"text\":"),
            Finder::new(b"\"reasoning_content\":"),
            Finder::new(b"\"reasoning\":"),
            Finder::new(b"\"arguments\":"),
            Finder::new(b"\"delta\":"),
            // Those of content blocks.
            Finder::new(b"\"thinking\":"),
            Finder::new(b"\"partial_json\":"),
        ]
    });
    TEXT.iter().any(|key| {
        key.find_iter(data).any(|at| {
            let value = data[at + key.needle().len()..].trim_ascii_start();
            value.starts_with(b"\"") && !value.starts_with(b"\"\"")
        })
    })
}

/// Returns true if the data of an event has a reason why a choice has ended. A cheap hint: it may
/// be an empty one, or nested in another field.
pub(super) fn has_finish_reason(data: &[u8]) -> bool {
    static FINISH: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"finish_reason\""));
    FINISH.find_iter(data).any(|at| {
        let value = data[at + FINISH.needle().len()..].trim_ascii_start();
        let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii_start();
        value.starts_with(b"\"")
    })
}

/// Reads an event of the kind [`StreamKind::Chunks`].
fn chunk(data: &[u8], ended: &mut Ended) -> Seen {
    static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
    let finishes = has_finish_reason(data);
    // If usage is requested, vLLM sends `"usage":null` in every chunk but the last. If it is not,
    // llama.cpp's last chunk still has its timings.
    if !(finishes || usage::is_in(data) || ERROR.find(data).is_some()) {
        return Seen::default();
    }
    let mut seen = Seen::default();
    let mut timings = None;
    for_each_member(data, 0, |key, start| match key {
        "error" => seen.is_error |= value(data, start) != b"null",
        "usage" => seen.usage = serde_json::from_slice(value(data, start)).ok().or(seen.usage),
        "timings" => {
            timings = serde_json::from_slice(value(data, start)).ok().and_then(Timings::usage);
        }
        "choices" if finishes => {
            for choice in Children::new(data, start).into_iter().flatten() {
                note_choice(data, choice.start, ended);
            }
        }
        _ => {}
    });
    seen.usage = seen.usage.or(timings);
    seen
}

/// Reads an event of the kind [`StreamKind::Native`].
fn native(data: &[u8], ended: &mut Ended) -> Seen {
    static LAST: LazyLock<[Finder<'static>; 2]> =
        LazyLock::new(|| [Finder::new(b"\"stop\""), Finder::new(b"\"error\"")]);
    if !LAST.iter().any(|word| word.find(data).is_some()) {
        return Seen::default();
    }
    let mut seen = Seen::default();
    let (mut index, mut has_stopped, mut evaluated, mut predicted) = (0, false, 0, 0);
    let mut timings = None;
    for_each_member(data, 0, |key, start| {
        let value = value(data, start);
        match key {
            "error" => seen.is_error |= value != b"null",
            "stop" => has_stopped = value == b"true",
            "index" => index = serde_json::from_slice(value).unwrap_or(u32::MAX),
            "tokens_evaluated" => evaluated = serde_json::from_slice(value).unwrap_or(0),
            "tokens_predicted" => predicted = serde_json::from_slice(value).unwrap_or(0),
            "timings" => timings = serde_json::from_slice(value).ok().and_then(Timings::usage),
            _ => {}
        }
    });
    if has_stopped {
        ended.note(index);
        seen.usage = Some(timings.unwrap_or(Usage {
            prompt_tokens: evaluated,
            cached_tokens: None,
            completion_tokens: predicted,
        }));
    }
    seen
}

/// Notes whether the choice that begins at `start` has ended.
fn note_choice(data: &[u8], start: usize, ended: &mut Ended) {
    let (mut index, mut is_finished) = (0, false);
    for_each_member(data, start, |key, start| match key {
        "index" => index = serde_json::from_slice(value(data, start)).unwrap_or(u32::MAX),
        "finish_reason" => {
            let reason: Option<String> = serde_json::from_slice(value(data, start)).ok();
            // Some engines write a missing reason as an empty string, or as the word for null.
            is_finished = reason.is_some_and(|reason| {
                !["", "null", "none"].iter().any(|word| reason.eq_ignore_ascii_case(word))
            });
        }
        _ => {}
    });
    if is_finished {
        ended.note(index);
    }
}

/// Reads an event of the kind [`StreamKind::Events`].
fn typed(data: &[u8], ended: &mut Ended) -> Seen {
    // Most events are deltas of a text, which do not have these words as whole strings.
    static LAST: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
        [
            Finder::new(b"\"response.completed\""),
            Finder::new(b"\"response.incomplete\""),
            Finder::new(b"\"response.failed\""),
            Finder::new(b"\"error\""),
        ]
    });
    if !LAST.iter().any(|word| word.find(data).is_some()) {
        return Seen::default();
    }
    let (mut kind, mut usage) = (String::new(), None);
    for_each_member(data, 0, |key, start| match key {
        "type" => kind = serde_json::from_slice(value(data, start)).unwrap_or_default(),
        "response" => for_each_member(data, start, |key, start| {
            if key == "usage" {
                usage = serde_json::from_slice(value(data, start)).ok();
            }
        }),
        _ => {}
    });
    match &*kind {
        RESPONSE_COMPLETED | RESPONSE_INCOMPLETE => ended.whole = true,
        RESPONSE_FAILED | ERROR_EVENT => return Seen { is_error: true, usage },
        _ => return Seen::default(),
    }
    Seen { is_error: false, usage }
}

/// Reads an event of the kind [`StreamKind::Messages`].
fn message(data: &[u8], ended: &mut Ended) -> Seen {
    // Most events are deltas of a text, which do not have these words as whole strings.
    static WORDS: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
        [
            Finder::new(b"\"message_start\""),
            Finder::new(b"\"message_delta\""),
            Finder::new(b"\"message_stop\""),
            Finder::new(b"\"error\""),
        ]
    });
    if !WORDS.iter().any(|word| word.find(data).is_some()) {
        return Seen::default();
    }
    let (mut kind, mut has_error) = (String::new(), false);
    let (mut usage, mut start_usage) = (None, None);
    for_each_member(data, 0, |key, start| match key {
        "type" => kind = serde_json::from_slice(value(data, start)).unwrap_or_default(),
        "error" => has_error |= value(data, start) != b"null",
        "usage" => usage = serde_json::from_slice(value(data, start)).ok(),
        "message" => for_each_member(data, start, |key, start| {
            if key == "usage" {
                start_usage = serde_json::from_slice(value(data, start)).ok();
            }
        }),
        _ => {}
    });
    match &*kind {
        // Each of the two has what the other one lacks.
        MESSAGE_START => ended.prompt = start_usage,
        MESSAGE_DELTA => {
            let usage = usage.map(|usage: Usage| usage.with_prompt_of(ended.prompt));
            return Seen { is_error: false, usage };
        }
        MESSAGE_STOP => ended.whole = true,
        // Errors of the engine's server have no type.
        _ => return Seen { is_error: has_error || kind == ERROR_EVENT, usage: None },
    }
    Seen { is_error: false, usage: start_usage }
}

/// Returns true if the data of an event, or the beginning of it, is that of an event which ends a
/// choice.
pub(super) fn is_last(kind: StreamKind, data: &[u8]) -> bool {
    // As a whole string. In a text, its quotes would be escaped.
    let is_in = |name: &&str| {
        let quoted = [b"\"", name.as_bytes(), b"\""].concat();
        memchr::memmem::find(data, &quoted).is_some()
    };
    kind.last_events().iter().any(is_in)
}

/// Reads an event of a kind that has [`StreamKind::last_events`].
fn named(kind: StreamKind, data: &[u8], ended: &mut Ended) -> Seen {
    static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
    // Most events are deltas.
    if !(is_last(kind, data) || usage::is_in(data) || ERROR.find(data).is_some()) {
        return Seen::default();
    }
    let mut seen = Seen::default();
    let mut name = String::new();
    for_each_member(data, 0, |key, start| match key {
        "type" => name = serde_json::from_slice(value(data, start)).unwrap_or_default(),
        "error" => seen.is_error |= value(data, start) != b"null",
        "usage" => seen.usage = serde_json::from_slice(value(data, start)).ok().or(seen.usage),
        _ => {}
    });
    seen.is_error |= name == ERROR_EVENT;
    if !seen.is_error && kind.last_events().contains(&name.as_str()) {
        ended.note_next();
    }
    seen
}

/// Calls `read` with key and start of each member of the object that begins at `start`.
fn for_each_member(data: &[u8], start: usize, mut read: impl FnMut(&str, usize)) {
    // An array has no keys.
    for Child { key, start } in Children::new(data, start).into_iter().flatten() {
        read(&scan::key(&data[key]), start);
    }
}

fn value(data: &[u8], start: usize) -> &[u8] {
    data.get(start..scan::value_end(data, start)).unwrap_or_default()
}
