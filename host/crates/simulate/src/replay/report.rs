//! What came of a replay, counted.

use std::collections::BTreeMap;

use pointsman_domain::{Decision, FleetView, PolicyRef};
use pointsman_record::DecisionRecord;
use serde::Serialize;
use serde_json::{Value, json};

use super::again::{Again, Call, Verdict};
use super::difference::Difference;

/// Texts that are counted each by itself; there may be as many as requests.
const MOST_TEXTS: usize = 200;
/// Bad lines that are named.
const MOST_NAMED: usize = 10;

/// How many are the same, and how many are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// As in the record.
    pub same: u64,
    /// Otherwise.
    pub differ: u64,
    /// Nobody knows.
    pub unknown: u64,
}

impl Count {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.same + self.differ + self.unknown
    }

    /// The same of those that are known.
    pub fn agreement(&self) -> Option<f64> {
        let known = self.same + self.differ;
        (known > 0).then(|| self.same as f64 / known as f64)
    }
}

/// The calls of one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OfPolicy {
    /// The calls that were compared.
    pub calls: Count,
    /// Of those that differ, by the version that wrote the record.
    pub differ_in_same_version: u64,
    /// Calls that were not compared, because it had said nothing then for a reason of that moment.
    pub silent: u64,
    /// Calls that there were none of then.
    pub new: u64,
    /// Versions in the records, and how many calls each.
    pub then: BTreeMap<String, u64>,
    /// The version that was asked.
    pub now: Option<String>,
}

/// Differences of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// How many.
    pub count: u64,
    /// In words, the first two hundred different ones.
    pub texts: BTreeMap<String, u64>,
}

impl Kind {
    fn add(&mut self, text: String) {
        self.count += 1;
        if self.texts.len() < MOST_TEXTS || self.texts.contains_key(&text) {
            *self.texts.entry(text).or_default() += 1;
        }
    }

    /// The commonest text.
    pub fn commonest(&self) -> Option<(&str, u64)> {
        let most = self.texts.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
        most.map(|(text, count)| (text.as_str(), *count))
    }
}

/// An input that records do not have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// Calls that lack it.
    pub calls: u64,
    /// The first of them: a sentence without its subject.
    pub example: String,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

/// What would have become of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// Where they went first, and where they would go: lanes, `refused`, `no lane`.
    pub moves: BTreeMap<String, BTreeMap<String, u64>>,
    /// Refused now, and not then.
    pub refused_now: u64,
    /// Refused then, and not now.
    pub refused_then: u64,
    /// Higher in the queue.
    pub raised: u64,
    /// Lower in the queue.
    pub lowered: u64,
    /// Requests that some lane would have served then and now.
    pub started: u64,
    /// Of those, by the figures of the lanes, sooner.
    pub sooner: u64,
    /// Later.
    pub later: u64,
    /// Sum of the changes in milliseconds.
    pub change_ms: i64,
}

/// A call that is otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Otherwise {
    /// Who.
    pub policy: String,
    /// In which hook.
    pub hook: &'static str,
    /// What.
    pub differences: Vec<Difference>,
    /// Why, where the version wrote the record itself.
    pub why: Vec<String>,
}

/// A decision with something that is otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Of this request.
    pub request: String,
    /// In this file.
    pub file: String,
    /// The calls that are otherwise.
    pub calls: Vec<Otherwise>,
    /// What is otherwise in the decision.
    pub decision: Vec<Difference>,
}

/// What came of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that were read.
    pub files: u64,
    /// Decisions.
    pub decisions: Count,
    /// Calls by policy.
    pub policies: BTreeMap<String, OfPolicy>,
    /// Differences by who and what; `decision` is nobody's.
    pub kinds: BTreeMap<(String, &'static str), Kind>,
    /// Inputs that are not there, by policy and kind.
    pub lacking: BTreeMap<(String, String), Lack>,
    /// Why policies said nothing then, by policy and reason.
    pub silent: BTreeMap<(String, String), u64>,
    /// What would have become of the requests.
    pub effect: Effect,
    /// The first decisions with something that is otherwise.
    pub shown: Vec<Shown>,
    /// Lines that could not be used, ...
    pub skipped: u64,
    /// ... and the first of them.
    pub skipped_first: Vec<String>,
    /// It was ended before the end of the records.
    pub stopped: bool,
    keep: usize,
}

impl Report {
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Is everything as in the records, and nothing unknown?
    pub fn agrees(&self) -> bool {
        let agrees = |count: &Count| count.differ == 0 && count.unknown == 0;
        agrees(&self.decisions) && self.policies.values().all(|policy| agrees(&policy.calls))
    }

    pub(super) fn skip(&mut self, what: String) {
        self.skipped += 1;
        if self.skipped_first.len() < MOST_NAMED {
            self.skipped_first.push(what);
        }
    }

    pub(super) fn add(
        &mut self,
        file: &str,
        record: &DecisionRecord,
        fleet: &FleetView,
        again: Again,
    ) {
        let mut otherwise = Vec::new();
        for call in again.calls {
            otherwise.extend(self.call(call));
        }
        let differences = match again.decision {
            None => {
                self.decisions.unknown += 1;
                Vec::new()
            }
            Some((now, differences)) => {
                *(if differences.is_empty() {
                    &mut self.decisions.same
                } else {
                    &mut self.decisions.differ
                }) += 1;
                for difference in &differences {
                    self.difference("decision", difference);
                }
                self.effect.add(&record.decision, &now, fleet);
                differences
            }
        };
        if (!otherwise.is_empty() || !differences.is_empty()) && self.shown.len() < self.keep {
            let (request, file) = (record.request_id.to_string(), file.to_owned());
            self.shown.push(Shown { request, file, calls: otherwise, decision: differences });
        }
    }

    fn difference(&mut self, who: &str, difference: &Difference) {
        let Difference { what, then, now } = difference;
        self.kinds.entry((who.to_owned(), what)).or_default().add(format!("{then} -> {now}"));
    }

    fn call(&mut self, call: Call) -> Option<Otherwise> {
        let Call { policy, hook, then, now, same_version, verdict } = call;
        let of = self.policies.entry(policy.clone()).or_default();
        if let Some(PolicyRef { version, .. }) = then {
            *of.then.entry(version.to_string()).or_default() += 1;
        }
        of.now = now.map(|now| now.version.to_string()).or(of.now.take());
        match verdict {
            Verdict::Same => of.calls.same += 1,
            Verdict::New => of.new += 1,
            Verdict::Silent(note) => {
                of.silent += 1;
                if self.silent.len() < MOST_TEXTS {
                    *self.silent.entry((policy, note)).or_default() += 1;
                }
            }
            Verdict::Unknown(lacking) => {
                of.calls.unknown += 1;
                for (index, lack) in lacking.iter().enumerate() {
                    // A call that lacks one thing several times lacks it once.
                    if lacking.iter().take(index).any(|before| before.kind == lack.kind) {
                        continue;
                    }
                    let entry =
                        self.lacking.entry((policy.clone(), lack.kind.clone())).or_default();
                    entry.calls += 1;
                    if entry.example.is_empty() {
                        (entry.example, entry.hint) = (lack.what.clone(), lack.hint);
                    }
                }
            }
            Verdict::Differs(differences, why) => {
                of.calls.differ += 1;
                of.differ_in_same_version += u64::from(same_version);
                for difference in &differences {
                    self.difference(&policy, difference);
                }
                return Some(Otherwise { policy, hook, differences, why });
            }
        }
        None
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let kinds = self.kinds.iter().map(|((who, what), kind)| {
            json!({ "who": who, "what": what, "count": kind.count, "texts": kind.texts })
        });
        let lacking = self.lacking.iter().map(|((policy, kind), lack)| {
            json!({ "policy": policy, "kind": kind, "calls": lack.calls, "example": lack.example, "hint": lack.hint })
        });
        let silent = self
            .silent
            .iter()
            .map(|((policy, why), calls)| json!({ "policy": policy, "why": why, "calls": calls }));
        json!({
            "agrees": self.agrees(),
            "stopped": self.stopped,
            "files": self.files,
            "skipped": { "lines": self.skipped, "first": self.skipped_first },
            "decisions": self.decisions,
            "agreement": self.decisions.agreement(),
            "policies": self.policies,
            "kinds": kinds.collect::<Vec<_>>(),
            "lacking": lacking.collect::<Vec<_>>(),
            "silent": silent.collect::<Vec<_>>(),
            "effect": self.effect,
            "differences": self.shown,
        })
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        super::text::of(self)
    }
}

impl Effect {
    fn add(&mut self, then: &Decision, now: &Decision, fleet: &FleetView) {
        let place = |decision: &Decision| match decision {
            Decision::Route(plan) => plan
                .steps
                .first()
                .map_or("no lane", |step| fleet.topology.name(step.lane))
                .to_owned(),
            Decision::Reject(..) => "refused".to_owned(),
            Decision::NoLane(_) => "no lane".to_owned(),
        };
        *self.moves.entry(place(then)).or_default().entry(place(now)).or_default() += 1;
        let refused = |decision: &Decision| matches!(decision, Decision::Reject(..));
        self.refused_now += u64::from(refused(now) && !refused(then));
        self.refused_then += u64::from(refused(then) && !refused(now));
        let (Decision::Route(then), Decision::Route(now)) = (then, now) else { return };
        self.raised += u64::from(now.priority > then.priority);
        self.lowered += u64::from(now.priority < then.priority);
        let start = |plan: &pointsman_domain::Plan| {
            let stat = fleet.stat(plan.steps.first()?.lane)?;
            i64::try_from(stat.start_in_ms()).ok()
        };
        let (Some(then), Some(now)) = (start(then), start(now)) else { return };
        self.started += 1;
        self.sooner += u64::from(now < then);
        self.later += u64::from(now > then);
        self.change_ms = self.change_ms.saturating_add(now - then);
    }

    /// Requests that would go elsewhere first.
    pub fn moved(&self) -> u64 {
        let row = |(then, row): (&String, &BTreeMap<String, u64>)| -> u64 {
            row.iter().filter(|(now, _)| *now != then).map(|(_, count)| count).sum()
        };
        self.moves.iter().map(row).sum()
    }

    /// The mean change of the time to start, in milliseconds.
    pub fn mean_change_ms(&self) -> Option<f64> {
        (self.started > 0).then(|| self.change_ms as f64 / self.started as f64)
    }
}
