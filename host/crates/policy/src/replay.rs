//! A call that is made once more, with the answers of its record.
//!
//! What a policy decides depends on what it is told, and nothing else. A record has all that it was told, so the same version
//! decides the same again; and another version shows what it would have decided, together with what it asked that the record
//! does not know.
//!
//! * A question about the request or the fleet is answered by what the record says of the same question, wherever that stands.
//! * State changes from one question to the next: its answers are those of the record in their order. Only reading may be left
//!   out on the way; who writes something else, or not at all, gets no further answers. Who counts on from a number that the
//!   record has is told what follows from it.
//! * Figures of lanes stand beside the questions in every record, so those are answered by the fleet that is handed over.
//! * Whatever has no answer in the record is [missing](Missing), and answered by the request and the fleet that are handed over
//!   and by a state that is empty. So are answers that were [redacted](crate::marks): they are inputs that are not there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use pointsman_domain::{PolicyRef, Read, RequestView};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::interview::Question;
use crate::marks::{fits, redacted};
use crate::reads::{CUT, HostCallLog, MOST_READS};

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

/// Does the note of a recorded call say that there was no advice for a reason of that moment: a deadline, or the faults before?
pub fn is_passing(note: &str) -> bool {
    ["it did not finish within ", "it is out of service ", "no instance of it can be made: "]
        .iter()
        .any(|begin| note.starts_with(begin))
}

/// The questions and answers of a record, while a guest is asked again.
#[derive(Debug)]
pub(crate) struct Script {
    recorded: Vec<Entry>,
    /// Where the next change of state, or question about it, is looked for.
    state: usize,
    /// Counters as the guest knows them.
    counters: BTreeMap<String, i64>,
    is_cut: bool,
    reads: HostCallLog,
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
            counters: BTreeMap::new(),
            is_cut: record.iter().any(|read| read.call == CUT),
            reads: HostCallLog::default(),
            missing: Vec::new(),
            differing: Vec::new(),
        }
    }

    /// What it asked, what was missing, and what differed.
    pub(crate) fn into_parts(self) -> (Vec<Read>, Vec<Missing>, Vec<Differing>) {
        (self.reads.into_list(), self.missing, self.differing)
    }

    /// The record's answer to a question, or else what is `live`.
    pub(crate) fn settle<T: Serialize + DeserializeOwned>(
        &mut self,
        question: Question,
        live: T,
    ) -> T {
        let (of_state, of_fleet) =
            (question.call.starts_with("state."), question.call.starts_with("fleet."));
        let found = if of_state { self.next_of_state(&question) } else { self.any(&question) };
        let found = found.or_else(|| self.counted_on(&question));
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
                if let (INCREMENT, Some(key), Some(now)) =
                    (call, key(&with), recorded["ok"].as_i64())
                {
                    self.counters.insert(key.to_owned(), now);
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

    /// What follows from the last number of a counter, as if nobody else had counted since.
    fn counted_on(&self, question: &Question) -> Option<Value> {
        let by = question.with.get(1)?.as_i64()?;
        let last =
            self.counters.get(key(&question.with)?).filter(|_| question.call == INCREMENT)?;
        Some(json!({ "ok": last.saturating_add(by) }))
    }

    /// The next answer about the state, if it is one to that question.
    fn next_of_state(&mut self, question: &Question) -> Option<Value> {
        let ahead = self.recorded.iter().enumerate().skip(self.state);
        for (index, Entry { read, .. }) in
            ahead.filter(|(_, entry)| entry.read.call.starts_with("state."))
        {
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

/// The question that counts.
const INCREMENT: &str = "state.increment";

/// The key of a question about the state.
fn key(with: &[Value]) -> Option<&str> {
    with.first()?.as_str()
}

/// Is it that question which was recorded?
fn is_asked(question: &Question, recorded: &Read) -> bool {
    let Read { call, with, gave: _ } = recorded;
    call == question.call
        && with.len() == question.with.len()
        && with.iter().zip(&question.with).all(|(recorded, asked)| fits(recorded, asked))
}

#[cfg(test)]
mod tests;
