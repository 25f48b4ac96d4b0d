//! Divergences between a record and its replay, described with the names of lanes.

use pointsman_domain::{
    Advice, Decision, Edit, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, Note, Plan,
    QueueAdvice, Recovery, Rejection, Step, Switching, Topology, Triggers,
};
use pointsman_policy::marks;
use serde::Serialize;
use serde_json::{Value, json};

/// A difference between a record and its replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// The part that differs: `lanes`, `priority`, `fallback`, …
    pub part: &'static str,
    /// Description of the recorded value.
    pub recorded: String,
    /// Description of the replayed value.
    pub replayed: String,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { part, recorded, replayed } = self;
        write!(f, "{part}: {recorded} -> {replayed}")
    }
}

/// Collects the divergences of two values of the same kind.
struct Divergences<'a> {
    topology: &'a Topology,
    found: Vec<Divergence>,
}

impl<'a> Divergences<'a> {
    fn new(topology: &'a Topology) -> Self {
        Self { topology, found: Vec::new() }
    }

    /// Compares a part. A redacted text in the record matches any text.
    fn compare<T: Serialize + ?Sized>(
        &mut self,
        part: &'static str,
        recorded: &T,
        replayed: &T,
        words: impl Fn(&Topology, &T) -> String,
    ) {
        if !marks::fits(&json!(recorded), &json!(replayed)) {
            let (recorded, replayed) =
                (words(self.topology, recorded), words(self.topology, replayed));
            self.found.push(Divergence { part, recorded, replayed });
        }
    }
}

/// Compares the advice of a policy.
pub(crate) fn compare_advice(
    recorded: &Advice,
    replayed: &Advice,
    topology: &Topology,
) -> Vec<Divergence> {
    let mut divergences = Divergences::new(topology);
    divergences.compare("reject", &recorded.reject, &replayed.reject, |_, value| {
        optional(value.as_ref(), rejection)
    });
    divergences.compare("lanes", &recorded.lanes, &replayed.lanes, lanes);
    divergences.compare("switching", &recorded.switching, &replayed.switching, |_, value| {
        optional(value.as_ref(), switching)
    });
    queue(&mut divergences, recorded.queue.as_ref(), replayed.queue.as_ref());
    divergences.compare("fallback", &recorded.fallback, &replayed.fallback, |topology, value| {
        optional(value.as_ref(), |advice| fallback(topology, advice))
    });
    divergences.compare("edits", &recorded.edits, &replayed.edits, |_, value| edits(value));
    divergences.compare("notes", &recorded.notes, &replayed.notes, |_, value| notes(value));
    divergences.compare("hints", &recorded.hints, &replayed.hints, |_, value| notes(value));
    divergences.found
}

/// Compares queue advice field by field if both exist.
fn queue(
    divergences: &mut Divergences<'_>,
    recorded: Option<&QueueAdvice>,
    replayed: Option<&QueueAdvice>,
) {
    if let (Some(recorded), Some(replayed)) = (recorded, replayed) {
        divergences.compare("priority", &recorded.priority, &replayed.priority, |_, value| {
            value.to_string()
        });
        divergences.compare("flow", &recorded.flow, &replayed.flow, |_, value| {
            optional(value.as_ref(), String::clone)
        });
        let wait = |queue: &QueueAdvice| queue.max_wait;
        divergences.compare("max-wait", &wait(recorded), &wait(replayed), |_, value| {
            optional(value.as_ref(), |time| format!("{time:?}"))
        });
        divergences.compare(
            "on-timeout",
            &recorded.on_timeout,
            &replayed.on_timeout,
            |_, value| plain(value),
        );
        return;
    }
    let words = |queue: &QueueAdvice| {
        let flow = queue.flow.as_ref().map(|flow| format!(", flow {flow}")).unwrap_or_default();
        let wait = queue.max_wait.map(|wait| format!(", max wait {wait:?}")).unwrap_or_default();
        format!("priority {}{flow}{wait}", queue.priority)
    };
    divergences.compare("queue", &recorded, &replayed, |_, value| optional(*value, words));
}

/// Compares the advice of a policy, or the reasons why there was none.
pub fn compare_results(
    recorded: Result<&Advice, &str>,
    replayed: Result<&Advice, &str>,
    topology: &Topology,
) -> Vec<Divergence> {
    let words = |answer: Result<&Advice, &str>| match answer {
        Ok(advice) => summary(advice, topology),
        Err(why) => format!("none ({why})"),
    };
    match (recorded, replayed) {
        (Ok(recorded), Ok(replayed)) => compare_advice(recorded, replayed, topology),
        (Err(recorded), Err(replayed)) if marks::fits(&json!(recorded), &json!(replayed)) => {
            Vec::new()
        }
        _ => vec![Divergence {
            part: "advice",
            recorded: words(recorded),
            replayed: words(replayed),
        }],
    }
}

/// Summarizes advice by its most important part.
fn summary(advice: &Advice, topology: &Topology) -> String {
    match &advice.reject {
        Some(reject) => format!("reject with {}", rejection(reject)),
        None => lanes(topology, &advice.lanes),
    }
}

/// Compares what a policy recommends after a failed attempt.
pub(crate) fn compare_recoveries(
    recorded: Result<&Recovery, &str>,
    replayed: Result<&Recovery, &str>,
    topology: &Topology,
) -> Vec<Divergence> {
    let words = |recovery: Result<&Recovery, &str>| match recovery {
        Ok(Recovery::Planned) => "as planned".to_owned(),
        Ok(Recovery::Retry(retry)) => {
            format!("retry on {}", step(topology, retry.lane, &retry.edits))
        }
        Ok(Recovery::GiveUp(reject)) => format!("give up with {}", rejection(reject)),
        Err(why) => format!("none ({why})"),
    };
    let same = match (recorded, replayed) {
        (Ok(recorded), Ok(replayed)) => marks::fits(&json!(recorded), &json!(replayed)),
        (Err(recorded), Err(replayed)) => marks::fits(&json!(recorded), &json!(replayed)),
        _ => false,
    };
    let divergence =
        || Divergence { part: "recovery", recorded: words(recorded), replayed: words(replayed) };
    (!same).then(divergence).into_iter().collect()
}

/// Compares decisions, each with the edits of the whole chain.
pub(crate) fn compare_decisions(
    (recorded, recorded_edits): (&Decision, &[Edit]),
    (replayed, replayed_edits): (&Decision, &[Edit]),
    topology: &Topology,
) -> Vec<Divergence> {
    let mut divergences = Divergences::new(topology);
    let (Decision::Route(before), Decision::Route(after)) = (recorded, replayed) else {
        let same = match (recorded, replayed) {
            (Decision::Reject(_, recorded), Decision::Reject(_, replayed)) => {
                marks::fits(&json!(recorded), &json!(replayed))
            }
            (recorded, replayed) => recorded == replayed,
        };
        if !same {
            let words = |decision: &Decision| match decision {
                Decision::Route(plan) => first(topology, plan),
                Decision::Reject(_, reject) => format!("rejected with {}", rejection(reject)),
                Decision::NoLane(why) => format!("none: {why}"),
            };
            divergences.found.push(Divergence {
                part: "lane",
                recorded: words(recorded),
                replayed: words(replayed),
            });
        }
        return divergences.found;
    };
    let lane = |plan: &Plan| plan.steps.first().map(|step| step.lane);
    if lane(before) != lane(after) {
        let (recorded, replayed) = (first(topology, before), first(topology, after));
        divergences.found.push(Divergence { part: "lane", recorded, replayed });
    }
    // Older records have no contexts, which follow from the lanes.
    let further = |plan: &Plan| {
        let steps = plan.steps.iter().skip(1).cloned();
        steps.map(|step| Step { context: 0, ..step }).collect::<Vec<Step>>()
    };
    divergences.compare("fallback", &further(before), &further(after), |topology, steps| {
        list(steps.iter().map(|next| step(topology, next.lane, &next.edits)))
    });
    divergences.compare("fallback triggers", &before.on, &after.on, |_, value| triggers(*value));
    divergences
        .compare("priority", &before.priority, &after.priority, |_, value| value.to_string());
    divergences.compare("flow", &before.flow, &after.flow, |_, value| {
        optional(value.as_ref(), String::clone)
    });
    divergences
        .compare("max-wait", &before.max_wait, &after.max_wait, |_, value| format!("{value:?}"));
    divergences
        .compare("on-timeout", &before.on_timeout, &after.on_timeout, |_, value| plain(value));
    divergences.compare("first-token", &before.first_token, &after.first_token, |_, value| {
        optional(value.as_ref(), |time| format!("{time:?}"))
    });
    divergences
        .compare("switching", &before.switching, &after.switching, |_, value| switching(value));
    divergences.compare("edits", recorded_edits, replayed_edits, |_, value| edits(value));
    divergences.found
}

fn first(topology: &Topology, plan: &Plan) -> String {
    plan.steps.first().map_or_else(|| "none".to_owned(), |step| topology.name(step.lane).to_owned())
}

fn optional<T>(value: Option<&T>, words: impl Fn(&T) -> String) -> String {
    value.map_or_else(|| "none".to_owned(), words)
}

/// Serializes a value as in a record, without the quotes of a string.
fn plain<T: Serialize>(value: &T) -> String {
    match json!(value) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn switching(switching: &Switching) -> String {
    plain(switching)
}

fn rejection(rejection: &Rejection) -> String {
    let Rejection { status, code, message, retry_after_s } = rejection;
    let retry =
        retry_after_s.map(|seconds| format!(", retry after {seconds} s")).unwrap_or_default();
    format!("{status} {code} ({message}{retry})")
}

fn lanes(topology: &Topology, lanes: &LaneAdvice) -> String {
    let named = |lanes: &[LaneId]| list(lanes.iter().map(|lane| topology.name(*lane).to_owned()));
    match lanes {
        LaneAdvice::Any => "any".to_owned(),
        LaneAdvice::Only(lanes) => format!("only {}", named(lanes)),
        LaneAdvice::Avoid(lanes) => format!("avoid {}", named(lanes)),
        LaneAdvice::Ordered(lanes) => format!("ordered {}", named(lanes)),
        LaneAdvice::Scores(scores) => {
            let scored =
                scores.iter().map(|lane| format!("{} {}", topology.name(lane.lane), lane.score));
            format!("scores {}", list(scored))
        }
        LaneAdvice::Blend(weights) => {
            format!(
                "blend {}",
                list(weights.iter().map(|weight| format!(
                    "{} {}",
                    plain(&weight.metric),
                    weight.weight
                )))
            )
        }
    }
}

fn triggers(on: Triggers) -> String {
    if on == Triggers::ALL {
        return "all".to_owned();
    }
    list(Vec::from(on).iter().map(plain))
}

fn fallback(topology: &Topology, fallback: &FallbackAdvice) -> String {
    let FallbackAdvice { on, steps, first_token } = fallback;
    let steps = list(steps.iter().map(|FallbackStep { lane, edits }| step(topology, *lane, edits)));
    let first = first_token.map(|time| format!(", first token in {time:?}")).unwrap_or_default();
    format!("{steps} on {}{first}", triggers(*on))
}

fn step(topology: &Topology, lane: LaneId, with: &[Edit]) -> String {
    let name = topology.name(lane);
    if with.is_empty() { name.to_owned() } else { format!("{name} with {}", edits(with)) }
}

fn edits(edits: &[Edit]) -> String {
    let words = |edit: &Edit| {
        let kind = edit.kind();
        match edit {
            Edit::SetModel(text) | Edit::RemoveField(text) | Edit::RemoveHeader(text) => {
                format!("{kind} {text}")
            }
            Edit::PrependSystem(text) | Edit::ReplaceBody(text) => format!("{kind} {text:?}"),
            Edit::CapOutputTokens(number) | Edit::KeepLastMessages(number) => {
                format!("{kind} {number}")
            }
            Edit::SetField(name, value) | Edit::SetHeader(name, value) => {
                format!("{kind} {name} = {value}")
            }
        }
    };
    list(edits.iter().map(words))
}

fn notes(notes: &[Note]) -> String {
    list(notes.iter().map(|note| format!("{} = {}", note.key, note.value)))
}
