//! What went on while policies were asked: kept for the decisions that are recorded, and for no others.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::advice::Advice;
use crate::fleet_view::LaneStat;
use crate::merge::PolicyRef;

/// One question of a policy to the host, and the answer that it got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// The function, as in the contract: `request.field`, `state.get`, …
    pub call: String,
    /// Its arguments.
    pub with: Vec<Value>,
    /// The answer.
    pub gave: Value,
}

/// One call of one policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Consulted {
    /// Which version of which policy.
    pub policy: PolicyRef,
    /// The hook that was called: `on-request` or `on-failure`.
    pub hook: String,
    /// How long it took.
    #[serde(rename = "took-us", with = "crate::units::micros")]
    pub took: Duration,
    /// What it asked, in order.
    pub reads: Vec<Read>,
    /// What of its advice was let through; `None` without any, and for other hooks.
    pub advice: Option<Advice>,
    /// Why there was none, or what was decided after a failure.
    pub note: Option<String>,
    /// What was left out, and why.
    pub dropped: Vec<String>,
    /// The lanes at the moment of a call that came later than the decision. Zeros are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fleet: Vec<LaneStat>,
}

/// Collects what goes on in one decision, if it is to be recorded.
#[derive(Debug, Default)]
pub struct Trace {
    consulted: Option<Vec<Consulted>>,
}

impl Trace {
    /// A trace that keeps nothing, and costs nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// A trace that keeps everything.
    pub fn on() -> Self {
        Self { consulted: Some(Vec::new()) }
    }

    /// Is anything kept?
    pub fn is_on(&self) -> bool {
        self.consulted.is_some()
    }

    /// Keep a call. It is only put together if it is kept.
    pub fn consulted(&mut self, call: impl FnOnce() -> Consulted) {
        if let Some(consulted) = &mut self.consulted {
            consulted.push(call());
        }
    }

    /// The calls that were kept, in order.
    pub fn into_consulted(self) -> Vec<Consulted> {
        self.consulted.unwrap_or_default()
    }
}
