//! Answers host calls from a record.

use std::collections::BTreeMap;
use std::fmt;

use pointsman_domain::Read;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::contract::host_call_log::{HostCallLog, MAX_LOGGED_CALLS, TRUNCATED};
use crate::contract::journal::{HostCall, Journal};
use crate::marks::{fits, redacted};

/// A host call that the record could not answer. Its message has no subject: "calls request.text
/// `[0]`, …".
#[derive(Debug, Clone, PartialEq)]
pub struct Missing {
    /// The function, as named in the contract.
    pub call: String,
    /// The arguments.
    pub with: Vec<Value>,
    /// The reason.
    pub why: Gap,
}

/// The reason why a record cannot answer a host call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// The recorded call did not make this host call.
    NotAsked,
    /// The record is truncated.
    Cut,
    /// The result is redacted.
    Redacted,
    /// The recorded value has the wrong type.
    Unreadable,
}

/// A host call whose recorded result differs from the request or the fleet that the caller passed.
/// The guest got the recorded result.
#[derive(Debug, Clone, PartialEq)]
pub struct Differing {
    /// The function, as named in the contract.
    pub call: String,
    /// The arguments.
    pub with: Vec<Value>,
    /// The recorded result.
    pub recorded: Value,
    /// The result that the request or the fleet would have given.
    pub live: Value,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "calls {} {}, ", self.call, json!(self.with))?;
        f.write_str(match self.why {
            Gap::NotAsked => "which is not in the record",
            Gap::Cut => "but the record is truncated before this call",
            Gap::Redacted => "whose result is redacted in the record",
            Gap::Unreadable => "whose recorded result is invalid",
        })
    }
}

impl fmt::Display for Differing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, with, recorded, live } = self;
        write!(f, "calls {call} {}: recorded {recorded}, now {live}", json!(with))
    }
}

/// The host calls of a record, and the state of replaying them.
#[derive(Debug)]
pub(crate) struct ReplayLog {
    recorded: Vec<Entry>,
    /// The index from which the next host call about the state is searched.
    state_position: usize,
    /// The last values of counters that the guest has seen.
    counters: BTreeMap<String, i64>,
    is_truncated: bool,
    log: HostCallLog,
    missing: Vec<Missing>,
    differing: Vec<Differing>,
}

#[derive(Debug)]
struct Entry {
    read: Read,
    used: bool,
}

impl Journal for ReplayLog {
    /// Returns the recorded result of a host call, or `live` without one.
    fn resolve<T: Serialize + DeserializeOwned>(&mut self, host_call: HostCall, live: T) -> T {
        let is_state = host_call.function.starts_with("state.");
        let is_fleet = host_call.function.starts_with("fleet.");
        let found = if is_state { self.next_state_call(&host_call) } else { self.find(&host_call) };
        let found = found.or_else(|| self.continue_counter(&host_call));
        let recorded = match found {
            Some(recorded) if redacted(&recorded) => Err(Gap::Redacted),
            Some(recorded) => match serde_json::from_value::<T>(recorded.clone()) {
                Ok(result) => Ok((result, recorded)),
                Err(_) => Err(Gap::Unreadable),
            },
            None if self.is_truncated => Err(Gap::Cut),
            None => Err(Gap::NotAsked),
        };
        let HostCall { function, args } = host_call;
        let live_json = json!(live);
        match recorded {
            Ok((result, recorded)) => {
                // An empty state differs from the recorded one by construction.
                if recorded != live_json && !is_state && self.differing.len() < MAX_LOGGED_CALLS {
                    let (call, with, recorded) =
                        (function.to_owned(), args.clone(), recorded.clone());
                    self.differing.push(Differing { call, with, recorded, live: live_json });
                }
                if let (INCREMENT, Some(key), Some(now)) =
                    (function, key(&args), recorded["ok"].as_i64())
                {
                    self.counters.insert(key.to_owned(), now);
                }
                self.log.push(function, args, recorded);
                result
            }
            Err(why) => {
                // Every record has the fleet and the endpoint, also if no guest asked for them.
                let is_always_recorded = is_fleet || function == ENDPOINT_KIND;
                let is_known = is_always_recorded && matches!(why, Gap::NotAsked | Gap::Cut);
                if !is_known && self.missing.len() < MAX_LOGGED_CALLS {
                    let (call, with) = (function.to_owned(), args.clone());
                    self.missing.push(Missing { call, with, why });
                }
                self.log.push(function, args, live_json);
                live
            }
        }
    }
}

impl ReplayLog {
    pub(crate) fn new(record: &[Read]) -> Self {
        let is_call = |read: &&Read| read.call != TRUNCATED;
        let entry = |read: &Read| Entry { read: read.clone(), used: false };
        Self {
            recorded: record.iter().filter(is_call).map(entry).collect(),
            state_position: 0,
            counters: BTreeMap::new(),
            is_truncated: record.iter().any(|read| read.call == TRUNCATED),
            log: HostCallLog::default(),
            missing: Vec::new(),
            differing: Vec::new(),
        }
    }

    /// Returns the host calls, those that were missing, and those that differed.
    pub(crate) fn into_parts(self) -> (Vec<Read>, Vec<Missing>, Vec<Differing>) {
        (self.log.into_calls(), self.missing, self.differing)
    }

    /// Finds the recorded result of a host call. If it was recorded several times, returns each
    /// result in turn, and then the last one again.
    fn find(&mut self, host_call: &HostCall) -> Option<Value> {
        let mut found = None;
        for entry in self.recorded.iter_mut().filter(|entry| is_same(host_call, &entry.read)) {
            let is_unused = !entry.used;
            found = Some(entry);
            if is_unused {
                break;
            }
        }
        let entry = found?;
        entry.used = true;
        Some(entry.read.gave.clone())
    }

    /// Continues a counter from its last known value, as if no other request had incremented it.
    fn continue_counter(&self, host_call: &HostCall) -> Option<Value> {
        let by = host_call.args.get(1)?.as_i64()?;
        let last =
            self.counters.get(key(&host_call.args)?).filter(|_| host_call.function == INCREMENT)?;
        // A made-up value: an overflow must not panic.
        Some(json!({ "ok": last.saturating_add(by) }))
    }

    /// Returns the next recorded result about the state, if it belongs to this host call.
    fn next_state_call(&mut self, host_call: &HostCall) -> Option<Value> {
        let ahead = self.recorded.iter().enumerate().skip(self.state_position);
        for (index, Entry { read, .. }) in
            ahead.filter(|(_, entry)| entry.read.call.starts_with("state."))
        {
            if is_same(host_call, read) {
                self.state_position = index + 1;
                return Some(read.gave.clone());
            }
            // Only reads can be skipped: a write changed what follows.
            if read.call != "state.get" {
                break;
            }
        }
        None
    }
}

/// The function that returns the name of the endpoint, which earlier versions of the contract lack.
const ENDPOINT_KIND: &str = "request.endpoint-kind";
/// The function that increments a counter.
const INCREMENT: &str = "state.increment";

/// Returns the key of a host call about the state.
fn key(args: &[Value]) -> Option<&str> {
    args.first()?.as_str()
}

/// Returns whether `recorded` is this host call.
fn is_same(host_call: &HostCall, recorded: &Read) -> bool {
    let Read { call, with, gave: _ } = recorded;
    call == host_call.function
        && with.len() == host_call.args.len()
        && with.iter().zip(&host_call.args).all(|(recorded, arg)| fits(recorded, arg))
}

#[cfg(test)]
mod tests;
