//! A call that is made once more, with the answers of its record.
//!
//! What a policy decides depends on what it is told, and nothing else. A record has all that it was told, so the same version
//! decides the same again; and another version shows what it would have decided, together with what it asked that the record
//! does not know.

use std::fmt;
use std::sync::Arc;

use pointsman_domain::{PolicyRef, Read, RequestView};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::interview::Question;
use crate::reads::{CUT, MOST_READS, Reads};

/// What stands in a record for a value that is kept back begins with this; its length follows, and maybe a hash.
const MARK: &str = "redacted:";

/// What came of a call that was made once more.
///
/// * A question about the request or the fleet is answered by what the record says of the same question, wherever that stands.
/// * State changes from one question to the next: its answers are those of the record in their order. Only reading may be left
///   out on the way; who writes something else, or not at all, gets no further answers.
/// * Figures of lanes stand beside the questions in every record, so those are answered by the fleet that is handed over.
/// * Whatever has no answer in the record is [missing](Missing), and answered by the request and the fleet that are handed over
///   and by a state that is empty. So are answers that were redacted: they are inputs that are not there.
#[derive(Debug, Clone)]
pub struct Replayed<A> {
    /// The version that was asked.
    pub policy: PolicyRef,
    /// What it answered, without what it may not advise; or why there is no answer.
    pub answer: Result<A, String>,
    /// What was left out of its answer, and why.
    pub dropped: Vec<String>,
    /// What it asked, and what it was told.
    pub reads: Vec<Read>,
    /// Questions that the record could not answer. Without any, the answer is what this version would have said then.
    pub missing: Vec<Missing>,
    /// Questions that the record answers otherwise than the request and the fleet that were handed over.
    pub differing: Vec<Differing>,
    /// The request with the edits of its advice, as the next policy of the chain sees it.
    pub request: Arc<dyn RequestView>,
}

/// A question that the record could not answer. Its text is a sentence without its subject: "asks `request.text` with …".
#[derive(Debug, Clone, PartialEq)]
pub struct Missing {
    /// The function, as in the contract.
    pub call: String,
    /// Its arguments.
    pub with: Vec<Value>,
    /// Why there is no answer.
    pub why: Gap,
}

/// Why a record has no answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// It was not asked then.
    NotAsked,
    /// The record does not have all questions.
    Cut,
    /// The answer is not to be known.
    Redacted,
    /// What stands there is no answer to this question.
    Unreadable,
}

/// A question that the record answers otherwise than the request or the fleet that was handed over. It got the record's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Differing {
    /// The function, as in the contract.
    pub call: String,
    /// Its arguments.
    pub with: Vec<Value>,
    /// What the record says.
    pub recorded: Value,
    /// What would have been said now.
    pub live: Value,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asks {} {}, ", self.call, json!(self.with))?;
        f.write_str(match self.why {
            Gap::NotAsked => "which the record does not have",
            Gap::Cut => "and the record ends before that",
            Gap::Redacted => "whose answer is redacted in the record",
            Gap::Unreadable => "and what the record says of it is no answer",
        })
    }
}

impl fmt::Display for Differing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, with, recorded, live } = self;
        write!(f, "asks {call} {}: the record says {recorded}, and now it is {live}", json!(with))
    }
}

/// The questions and answers of a record, while a guest is asked again.
#[derive(Debug)]
pub(crate) struct Script {
    recorded: Vec<Entry>,
    /// Where the next change of state, or question about it, is looked for.
    state: usize,
    is_cut: bool,
    reads: Reads,
    missing: Vec<Missing>,
    differing: Vec<Differing>,
}

#[derive(Debug)]
struct Entry {
    read: Read,
    used: bool,
}

impl Script {
    pub(crate) fn new(record: &[Read]) -> Self {
        let known = |read: &&Read| read.call != CUT;
        let entry = |read: &Read| Entry { read: read.clone(), used: false };
        Self {
            recorded: record.iter().filter(known).map(entry).collect(),
            state: 0,
            is_cut: record.iter().any(|read| read.call == CUT),
            reads: Reads::default(),
            missing: Vec::new(),
            differing: Vec::new(),
        }
    }

    /// What it asked, what was missing, and what differed.
    pub(crate) fn into_parts(self) -> (Vec<Read>, Vec<Missing>, Vec<Differing>) {
        (self.reads.into_list(), self.missing, self.differing)
    }

    /// The record's answer to a question, or else what is `live`.
    pub(crate) fn settle<T: Serialize + DeserializeOwned>(&mut self, question: Question, live: T) -> T {
        let (of_state, of_fleet) = (question.call.starts_with("state."), question.call.starts_with("fleet."));
        let found = if of_state { self.next_of_state(&question) } else { self.any(&question) };
        let recorded = match found {
            Some(recorded) if redacted(&recorded) => Err(Gap::Redacted),
            Some(recorded) => match serde_json::from_value::<T>(recorded.clone()) {
                Ok(answer) => Ok((answer, recorded)),
                Err(_) => Err(Gap::Unreadable),
            },
            None if self.is_cut => Err(Gap::Cut),
            None => Err(Gap::NotAsked),
        };
        let Question { call, with } = question;
        let shown = json!(live);
        match recorded {
            Ok((answer, recorded)) => {
                if recorded != shown && !of_state && self.differing.len() < MOST_READS {
                    let (call, with, recorded) = (call.to_owned(), with.clone(), recorded.clone());
                    self.differing.push(Differing { call, with, recorded, live: shown });
                }
                self.reads.push(call, with, recorded);
                answer
            }
            Err(why) => {
                // The fleet stands in every record, whether it was asked for or not.
                let known = of_fleet && matches!(why, Gap::NotAsked | Gap::Cut);
                if !known && self.missing.len() < MOST_READS {
                    self.missing.push(Missing { call: call.to_owned(), with: with.clone(), why });
                }
                self.reads.push(call, with, shown);
                live
            }
        }
    }

    /// The answer to that question; if it was asked several times, each in turn and then the last again.
    fn any(&mut self, question: &Question) -> Option<Value> {
        let mut found = None;
        for entry in self.recorded.iter_mut().filter(|entry| is_asked(question, &entry.read)) {
            let first = !entry.used;
            found = Some(entry);
            if first {
                break;
            }
        }
        let entry = found?;
        entry.used = true;
        Some(entry.read.gave.clone())
    }

    /// The next answer about the state, if it is one to that question.
    fn next_of_state(&mut self, question: &Question) -> Option<Value> {
        let ahead = self.recorded.iter().enumerate().skip(self.state);
        for (index, Entry { read, .. }) in ahead.filter(|(_, entry)| entry.read.call.starts_with("state.")) {
            if is_asked(question, read) {
                self.state = index + 1;
                return Some(read.gave.clone());
            }
            if read.call != "state.get" {
                break;
            }
        }
        None
    }
}

/// Is it that question which was recorded?
fn is_asked(question: &Question, recorded: &Read) -> bool {
    let Read { call, with, gave: _ } = recorded;
    call == question.call
        && with.len() == question.with.len()
        && with.iter().zip(&question.with).all(|(recorded, asked)| fits(recorded, asked))
}

/// Could `asked` be what was recorded as `recorded`? Marks stand for any text.
fn fits(recorded: &Value, asked: &Value) -> bool {
    match (recorded, asked) {
        (Value::String(recorded), Value::String(asked)) => text_fits(recorded, asked),
        (Value::Array(recorded), Value::Array(asked)) => {
            recorded.len() == asked.len() && recorded.iter().zip(asked).all(|(a, b)| fits(a, b))
        }
        (Value::Object(recorded), Value::Object(asked)) => {
            recorded.len() == asked.len()
                && recorded.iter().all(|(key, value)| asked.get(key).is_some_and(|other| fits(value, other)))
        }
        _ => recorded == asked,
    }
}

fn text_fits(recorded: &str, asked: &str) -> bool {
    // Who asks with a record's own marks asks the same.
    if recorded == asked {
        return true;
    }
    let Some((begin, mut rest)) = split_at_mark(recorded) else { return false };
    let Some(mut asked) = asked.strip_prefix(begin) else { return false };
    while let Some((middle, after)) = split_at_mark(rest) {
        let Some(found) = asked.find(middle) else { return false };
        asked = asked.get(found + middle.len()..).unwrap_or_default();
        rest = after;
    }
    asked.ends_with(rest)
}

/// What stands before the first mark of a text, and after it.
fn split_at_mark(text: &str) -> Option<(&str, &str)> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (begin, length) = text.match_indices(MARK).find_map(|(at, _)| {
        let length = text.get(at + MARK.len()..)?;
        (digits(length) > 0).then(|| text.get(..at).map(|begin| (begin, length)))?
    })?;
    let rest = length.get(digits(length)..)?;
    let hash = rest.strip_prefix(':').and_then(|hash| hash.split_at_checked(HASH));
    let is_hash = |hash: &str| hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    Some((begin, hash.filter(|(hash, _)| is_hash(hash)).map_or(rest, |(_, rest)| rest)))
}

/// Digits of the hash in a mark.
const HASH: usize = 16;

/// Does a mark stand anywhere in it?
fn redacted(value: &Value) -> bool {
    match value {
        Value::String(text) => split_at_mark(text).is_some(),
        Value::Array(items) => items.iter().any(redacted),
        Value::Object(fields) => fields.values().any(redacted),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests;
