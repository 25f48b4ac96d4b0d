//! Trace of a policy evaluation. Only collected for requests that may be recorded or explained.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::advice::Advice;
use crate::fleet_view::LaneStat;
use crate::policy_ref::PolicyRef;

/// One host call of a policy, with its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// Name of the function, as in the contract: `request.field`, `state.get`, …
    #[serde(rename = "function", alias = "call")]
    pub call: String,
    /// Arguments of the call.
    #[serde(rename = "args", alias = "with")]
    pub with: Vec<Value>,
    /// Result of the call.
    #[serde(rename = "result", alias = "gave")]
    pub gave: Value,
}

/// One call of one policy's hook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyCall {
    /// The policy version that was called.
    pub policy: PolicyRef,
    /// The hook that was called: `on-request` or `on-failure`.
    pub hook: String,
    /// Duration of the call.
    #[serde(rename = "duration-us", alias = "took-us", with = "crate::units::micros")]
    pub took: Duration,
    /// Host calls that the policy made, in order.
    #[serde(rename = "host-calls", alias = "reads")]
    pub reads: Vec<Read>,
    /// The advice after the host's limits were applied; `None` if the call gave no advice, and for
    /// hooks other than `on-request`.
    pub advice: Option<Advice>,
    /// Why there is no advice, or, for `on-failure`, what the policy decided.
    pub note: Option<String>,
    /// Parts of the advice that the host dropped, each with the reason.
    pub dropped: Vec<String>,
    /// Lane statistics at the time of a call that was made after the decision; empty for calls that
    /// belong to the decision. Zeros are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fleet: Vec<LaneStat>,
    /// Log lines of the call, if it was made without effects; those of other calls are in the log
    /// of the host. Not part of records.
    #[serde(skip)]
    pub log: Vec<String>,
}

/// Collects the policy calls of one decision, if the decision may be recorded or explained.
#[derive(Debug, Default)]
pub struct Trace {
    consulted: Option<Vec<PolicyCall>>,
    has_reads: bool,
}

impl Trace {
    /// Creates a trace that collects nothing and does not allocate.
    pub fn off() -> Self {
        Self::default()
    }

    /// Creates a trace that collects every call, with its host calls.
    pub fn on() -> Self {
        Self { consulted: Some(Vec::new()), has_reads: true }
    }

    /// Creates a trace that collects what policies return, but not their host calls, which cost
    /// more and contain texts of the request.
    pub fn without_reads() -> Self {
        Self { consulted: Some(Vec::new()), has_reads: false }
    }

    /// Returns true if the trace collects calls.
    pub fn is_on(&self) -> bool {
        self.consulted.is_some()
    }

    /// Returns true if the trace collects the host calls of each call.
    pub fn has_reads(&self) -> bool {
        self.has_reads
    }

    /// Adds a call. `call` is not evaluated if the trace is off.
    pub fn consulted(&mut self, call: impl FnOnce() -> PolicyCall) {
        if let Some(consulted) = &mut self.consulted {
            consulted.push(call());
        }
    }

    /// Returns the collected calls, in order.
    pub fn into_calls(self) -> Vec<PolicyCall> {
        self.consulted.unwrap_or_default()
    }
}
