//! The report of a replay.

use std::collections::BTreeMap;

use pointsman_domain::{Decision, FleetView, PolicyRef};
use pointsman_record::DecisionRecord;
use serde::Serialize;
use serde_json::{Value, json};

use crate::decision::{CallVerdict, ReplayedCall, ReplayedDecision};
use crate::divergence::Divergence;

/// Maximum number of distinct texts that are counted separately; there may be one for each request.
const MAX_TEXTS: usize = 200;
/// Maximum number of skipped lines that are listed.
const MAX_SKIPPED_LISTED: usize = 10;

/// How many calls or decisions agree with the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// Equal to the record.
    pub same: u64,
    /// Different from the record.
    pub differ: u64,
    /// Unknown, because inputs are not recorded.
    pub unknown: u64,
}

impl Agreement {
    /// Returns the total.
    pub fn all(&self) -> u64 {
        self.same + self.differ + self.unknown
    }

    /// Returns the share of the known ones that agree; `None` if none is known.
    pub fn rate(&self) -> Option<f64> {
        let known = self.same + self.differ;
        (known > 0).then(|| self.same as f64 / known as f64)
    }
}

/// The calls of one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PolicyStatistics {
    /// Calls that were compared.
    pub calls: Agreement,
    /// Calls that differ although the version is the one that wrote the record.
    pub differ_in_same_version: u64,
    /// Calls that were not compared, because the recorded call gave no advice for a transient
    /// reason.
    pub without_advice: u64,
    /// Calls that were not made at the time of the record.
    pub not_recorded: u64,
    /// Calls by recorded version.
    pub recorded_versions: BTreeMap<String, u64>,
    /// The version that was replayed.
    pub replayed_version: Option<String>,
}

/// The divergences of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DivergenceKind {
    /// Number of divergences.
    pub count: u64,
    /// Number of divergences by description. The number of descriptions is bounded.
    pub texts: BTreeMap<String, u64>,
}

impl DivergenceKind {
    fn add(&mut self, text: String) {
        self.count += 1;
        if self.texts.len() < MAX_TEXTS || self.texts.contains_key(&text) {
            *self.texts.entry(text).or_default() += 1;
        }
    }

    /// Returns the most common description with its count.
    pub fn most_common(&self) -> Option<(&str, u64)> {
        let most_common = self.texts.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
        most_common.map(|(text, count)| (text.as_str(), *count))
    }
}

/// How many calls lack an input that is not recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MissingInputCount {
    /// Number of calls.
    pub calls: u64,
    /// Description of the first one; a sentence whose subject is the policy.
    pub example: String,
    /// How to record the input.
    pub hint: Option<&'static str>,
}

/// What the replayed decisions would have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplayEffect {
    /// Number of requests by recorded and replayed first target: a lane, `rejected` or `no lane`.
    pub moves: BTreeMap<String, BTreeMap<String, u64>>,
    /// Requests that only the replayed decision rejects.
    pub rejected_only_now: u64,
    /// Requests that only the recorded decision rejected.
    pub rejected_only_then: u64,
    /// Requests with a higher priority than in the record.
    pub raised: u64,
    /// Requests with a lower priority than in the record.
    pub lowered: u64,
    /// Requests that a lane serves in the record and in the replay.
    pub started: u64,
    /// Requests among those that start sooner, as estimated from the recorded lane metrics.
    pub sooner: u64,
    /// Requests among those that start later.
    pub later: u64,
    /// Sum of the changes of the start time, in milliseconds.
    pub change_ms: i64,
}

/// A call that differs from the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallDivergence {
    /// Name of the policy.
    pub policy: String,
    /// The hook.
    pub hook: &'static str,
    /// What differs.
    pub divergences: Vec<Divergence>,
    /// Possible causes, if the version is the one that wrote the record.
    pub causes: Vec<String>,
}

/// A decision that differs from the record, or of which a call differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecisionDivergence {
    /// Id of the request.
    pub request: String,
    /// File of the record.
    pub file: String,
    /// Calls that differ.
    pub calls: Vec<CallDivergence>,
    /// What differs in the decision.
    pub decision: Vec<Divergence>,
}

/// The result of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Files that were read.
    pub files: u64,
    /// Decisions.
    pub decisions: Agreement,
    /// Calls by policy.
    pub policies: BTreeMap<String, PolicyStatistics>,
    /// Divergences by policy and kind. Those of decisions have `decision` in place of the policy.
    pub kinds: BTreeMap<(String, &'static str), DivergenceKind>,
    /// Missing inputs by policy and kind.
    pub missing_inputs: BTreeMap<(String, String), MissingInputCount>,
    /// Recorded calls without advice, by policy and reason.
    pub without_advice: BTreeMap<(String, String), u64>,
    /// What the replayed decisions would have changed.
    pub effect: ReplayEffect,
    /// The first decisions that differ.
    pub differences: Vec<DecisionDivergence>,
    /// Lines that could not be used.
    pub skipped: u64,
    /// The first lines that could not be used.
    pub skipped_first: Vec<String>,
    /// True if the replay ended before the records did.
    pub interrupted: bool,
    max_differences: usize,
}

impl ReplayReport {
    pub(crate) fn new(max_differences: usize) -> Self {
        Self { max_differences, ..Self::default() }
    }

    /// Returns true if everything is known and equal to the records.
    pub fn agrees(&self) -> bool {
        let agrees = |count: &Agreement| count.differ == 0 && count.unknown == 0;
        agrees(&self.decisions) && self.policies.values().all(|policy| agrees(&policy.calls))
    }

    pub(crate) fn skip(&mut self, line: String) {
        self.skipped += 1;
        if self.skipped_first.len() < MAX_SKIPPED_LISTED {
            self.skipped_first.push(line);
        }
    }

    pub(crate) fn add(
        &mut self,
        file: &str,
        record: &DecisionRecord,
        fleet: &FleetView,
        replayed: ReplayedDecision,
    ) {
        let mut calls = Vec::new();
        for call in replayed.calls {
            calls.extend(self.call(call));
        }
        let divergences = match replayed.decision {
            None => {
                self.decisions.unknown += 1;
                Vec::new()
            }
            Some((decision, divergences)) => {
                *(if divergences.is_empty() {
                    &mut self.decisions.same
                } else {
                    &mut self.decisions.differ
                }) += 1;
                for divergence in &divergences {
                    self.divergence("decision", divergence);
                }
                self.effect.add(&record.decision, &decision, fleet);
                divergences
            }
        };
        if (!calls.is_empty() || !divergences.is_empty())
            && self.differences.len() < self.max_differences
        {
            let (request, file) = (record.request_id.to_string(), file.to_owned());
            self.differences.push(DecisionDivergence {
                request,
                file,
                calls,
                decision: divergences,
            });
        }
    }

    fn divergence(&mut self, policy: &str, divergence: &Divergence) {
        let Divergence { part, recorded, replayed } = divergence;
        self.kinds
            .entry((policy.to_owned(), part))
            .or_default()
            .add(format!("{recorded} -> {replayed}"));
    }

    fn call(&mut self, call: ReplayedCall) -> Option<CallDivergence> {
        let ReplayedCall { policy, hook, recorded, replayed, same_version, verdict, detail: _ } =
            call;
        let statistics = self.policies.entry(policy.clone()).or_default();
        if let Some(PolicyRef { version, .. }) = recorded {
            *statistics.recorded_versions.entry(version.to_string()).or_default() += 1;
        }
        if let Some(PolicyRef { version, .. }) = replayed {
            statistics.replayed_version = Some(version.to_string());
        }
        match verdict {
            CallVerdict::Same => statistics.calls.same += 1,
            CallVerdict::NotRecorded => statistics.not_recorded += 1,
            CallVerdict::NoAdvice(reason) => {
                statistics.without_advice += 1;
                if self.without_advice.len() < MAX_TEXTS {
                    *self.without_advice.entry((policy, reason)).or_default() += 1;
                }
            }
            CallVerdict::Unknown(missing_inputs) => {
                statistics.calls.unknown += 1;
                for (index, input) in missing_inputs.iter().enumerate() {
                    // A call that lacks the same input several times is counted once.
                    if missing_inputs.iter().take(index).any(|before| before.kind == input.kind) {
                        continue;
                    }
                    let entry = self
                        .missing_inputs
                        .entry((policy.clone(), input.kind.clone()))
                        .or_default();
                    entry.calls += 1;
                    if entry.example.is_empty() {
                        (entry.example, entry.hint) = (input.description.clone(), input.hint);
                    }
                }
            }
            CallVerdict::Differs(divergences, causes) => {
                statistics.calls.differ += 1;
                statistics.differ_in_same_version += u64::from(same_version);
                for divergence in &divergences {
                    self.divergence(&policy, divergence);
                }
                return Some(CallDivergence { policy, hook, divergences, causes });
            }
        }
        None
    }

    /// Returns the report as JSON.
    pub fn json(&self) -> Value {
        let kinds = self.kinds.iter().map(|((policy, part), kind)| {
            json!({ "policy": policy, "part": part, "count": kind.count, "texts": kind.texts })
        });
        let missing_inputs = self.missing_inputs.iter().map(|((policy, kind), input)| {
            json!({
                "policy": policy,
                "kind": kind,
                "calls": input.calls,
                "example": input.example,
                "hint": input.hint,
            })
        });
        let without_advice = self.without_advice.iter().map(|((policy, reason), calls)| {
            json!({ "policy": policy, "reason": reason, "calls": calls })
        });
        json!({
            "agrees": self.agrees(),
            "interrupted": self.interrupted,
            "files": self.files,
            "skipped": { "lines": self.skipped, "first": self.skipped_first },
            "decisions": self.decisions,
            "agreement": self.decisions.rate(),
            "policies": self.policies,
            "kinds": kinds.collect::<Vec<_>>(),
            "missing_inputs": missing_inputs.collect::<Vec<_>>(),
            "without_advice": without_advice.collect::<Vec<_>>(),
            "effect": self.effect,
            "differences": self.differences,
        })
    }
}

impl ReplayEffect {
    fn add(&mut self, recorded: &Decision, replayed: &Decision, fleet: &FleetView) {
        let target = |decision: &Decision| match decision {
            Decision::Route(plan) => plan
                .steps
                .first()
                .map_or("no lane", |step| fleet.topology.name(step.lane))
                .to_owned(),
            Decision::Reject(..) => "rejected".to_owned(),
            Decision::NoLane(_) => "no lane".to_owned(),
        };
        *self.moves.entry(target(recorded)).or_default().entry(target(replayed)).or_default() += 1;
        let rejected = |decision: &Decision| matches!(decision, Decision::Reject(..));
        self.rejected_only_now += u64::from(rejected(replayed) && !rejected(recorded));
        self.rejected_only_then += u64::from(rejected(recorded) && !rejected(replayed));
        let (Decision::Route(recorded), Decision::Route(replayed)) = (recorded, replayed) else {
            return;
        };
        self.raised += u64::from(replayed.priority > recorded.priority);
        self.lowered += u64::from(replayed.priority < recorded.priority);
        let start = |plan: &pointsman_domain::Plan| {
            let stat = fleet.stat(plan.steps.first()?.lane)?;
            i64::try_from(stat.start_in_ms()).ok()
        };
        let (Some(recorded), Some(replayed)) = (start(recorded), start(replayed)) else { return };
        self.started += 1;
        self.sooner += u64::from(replayed < recorded);
        self.later += u64::from(replayed > recorded);
        self.change_ms = self.change_ms.saturating_add(replayed - recorded);
    }

    /// Returns the number of requests whose first target differs.
    pub fn moved(&self) -> u64 {
        let row = |(recorded, row): (&String, &BTreeMap<String, u64>)| -> u64 {
            row.iter().filter(|(replayed, _)| *replayed != recorded).map(|(_, count)| count).sum()
        };
        self.moves.iter().map(row).sum()
    }

    /// Returns the mean change of the start time, in milliseconds.
    pub fn mean_change_ms(&self) -> Option<f64> {
        (self.started > 0).then(|| self.change_ms as f64 / self.started as f64)
    }
}
