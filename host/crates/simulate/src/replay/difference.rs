//! What is otherwise now, in words, with lanes by their names.

use pointsman_domain::{
    Advice, Decision, Edit, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, Note, Plan,
    QueueAdvice, Recovery, Rejection, Step, Switching, Topology, Triggers,
};
use pointsman_policy::marks;
use serde::Serialize;
use serde_json::{Value, json};

/// One thing that is otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What: `lanes`, `priority`, `fallback`, …
    pub what: &'static str,
    /// In the record.
    pub then: String,
    /// Asked again.
    pub now: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, then, now } = self;
        write!(f, "{what}: {then} -> {now}")
    }
}

/// Collects differences between two of a kind.
struct Differences<'a> {
    topology: &'a Topology,
    found: Vec<Difference>,
}

impl<'a> Differences<'a> {
    fn new(topology: &'a Topology) -> Self {
        Self { topology, found: Vec::new() }
    }

    /// What is kept back in the record may have been anything.
    fn compare<T: Serialize + ?Sized>(
        &mut self,
        what: &'static str,
        then: &T,
        now: &T,
        words: impl Fn(&Topology, &T) -> String,
    ) {
        if !marks::fits(&json!(then), &json!(now)) {
            let (then, now) = (words(self.topology, then), words(self.topology, now));
            self.found.push(Difference { what, then, now });
        }
    }
}

/// Two pieces of advice.
pub(super) fn of_advice(then: &Advice, now: &Advice, topology: &Topology) -> Vec<Difference> {
    let mut differences = Differences::new(topology);
    differences.compare("reject", &then.reject, &now.reject, |_, it| maybe(it.as_ref(), rejection));
    differences.compare("lanes", &then.lanes, &now.lanes, lanes);
    differences.compare("switching", &then.switching, &now.switching, |_, it| {
        maybe(it.as_ref(), switching)
    });
    queue(&mut differences, then.queue.as_ref(), now.queue.as_ref());
    differences.compare("fallback", &then.fallback, &now.fallback, |topology, it| {
        maybe(it.as_ref(), |it| fallback(topology, it))
    });
    differences.compare("edits", &then.edits, &now.edits, |_, it| edits(it));
    differences.compare("notes", &then.notes, &now.notes, |_, it| notes(it));
    differences.compare("hints", &then.hints, &now.hints, |_, it| notes(it));
    differences.found
}

/// Part for part, where both have a place in the queue.
fn queue(differences: &mut Differences<'_>, then: Option<&QueueAdvice>, now: Option<&QueueAdvice>) {
    if let (Some(then), Some(now)) = (then, now) {
        differences.compare("priority", &then.priority, &now.priority, |_, it| it.to_string());
        differences
            .compare("flow", &then.flow, &now.flow, |_, it| maybe(it.as_ref(), String::clone));
        let wait = |queue: &QueueAdvice| queue.max_wait;
        differences.compare("max-wait", &wait(then), &wait(now), |_, it| {
            maybe(it.as_ref(), |it| format!("{it:?}"))
        });
        differences.compare("on-timeout", &then.on_timeout, &now.on_timeout, |_, it| plain(it));
        return;
    }
    let words = |queue: &QueueAdvice| {
        let flow = queue.flow.as_ref().map(|flow| format!(", flow {flow}")).unwrap_or_default();
        let wait = queue.max_wait.map(|wait| format!(", at most {wait:?}")).unwrap_or_default();
        format!("priority {}{flow}{wait}", queue.priority)
    };
    differences.compare("queue", &then, &now, |_, it| maybe(*it, words));
}

/// What a policy said before, or why it said nothing, and the other.
pub(super) fn of_answers(
    then: Result<&Advice, &str>,
    now: Result<&Advice, &str>,
    topology: &Topology,
) -> Vec<Difference> {
    let words = |answer: Result<&Advice, &str>| match answer {
        Ok(advice) => gist(advice, topology),
        Err(why) => format!("none, because {why}"),
    };
    match (then, now) {
        (Ok(then), Ok(now)) => of_advice(then, now, topology),
        (Err(then), Err(now)) if marks::fits(&json!(then), &json!(now)) => Vec::new(),
        _ => vec![Difference { what: "advice", then: words(then), now: words(now) }],
    }
}

/// The most important of an advice.
fn gist(advice: &Advice, topology: &Topology) -> String {
    match &advice.reject {
        Some(it) => format!("reject with {}", rejection(it)),
        None => lanes(topology, &advice.lanes),
    }
}

/// What is to come after a failed try.
pub(super) fn of_recovery(
    then: Result<&Recovery, &str>,
    now: Result<&Recovery, &str>,
    topology: &Topology,
) -> Vec<Difference> {
    let words = |recovery: Result<&Recovery, &str>| match recovery {
        Ok(Recovery::Planned) => "as planned".to_owned(),
        Ok(Recovery::Retry(it)) => format!("try {}", step(topology, it.lane, &it.edits)),
        Ok(Recovery::GiveUp(it)) => format!("give up with {}", rejection(it)),
        Err(why) => format!("none, because {why}"),
    };
    let same = match (then, now) {
        (Ok(then), Ok(now)) => marks::fits(&json!(then), &json!(now)),
        (Err(then), Err(now)) => marks::fits(&json!(then), &json!(now)),
        _ => false,
    };
    let difference =
        || Difference { what: "after a failed try", then: words(then), now: words(now) };
    (!same).then(difference).into_iter().collect()
}

/// Two decisions, each with the edits of the whole request.
pub(super) fn of_decisions(
    (then, edits_then): (&Decision, &[Edit]),
    (now, edits_now): (&Decision, &[Edit]),
    topology: &Topology,
) -> Vec<Difference> {
    let mut differences = Differences::new(topology);
    let (Decision::Route(before), Decision::Route(after)) = (then, now) else {
        let same = match (then, now) {
            (Decision::Reject(_, then), Decision::Reject(_, now)) => {
                marks::fits(&json!(then), &json!(now))
            }
            (then, now) => then == now,
        };
        if !same {
            let words = |decision: &Decision| match decision {
                Decision::Route(plan) => first(topology, plan),
                Decision::Reject(_, it) => format!("rejected with {}", rejection(it)),
                Decision::NoLane(why) => format!("none: {why}"),
            };
            differences.found.push(Difference { what: "lane", then: words(then), now: words(now) });
        }
        return differences.found;
    };
    let lane = |plan: &Plan| plan.steps.first().map(|step| step.lane);
    if lane(before) != lane(after) {
        let (then, now) = (first(topology, before), first(topology, after));
        differences.found.push(Difference { what: "lane", then, now });
    }
    let further = |plan: &Plan| plan.steps.iter().skip(1).cloned().collect::<Vec<Step>>();
    differences.compare("fallback", &further(before), &further(after), |topology, steps| {
        list(steps.iter().map(|it| step(topology, it.lane, &it.edits)))
    });
    differences.compare("falls back on", &before.on, &after.on, |_, it| triggers(*it));
    differences.compare("priority", &before.priority, &after.priority, |_, it| it.to_string());
    differences
        .compare("flow", &before.flow, &after.flow, |_, it| maybe(it.as_ref(), String::clone));
    differences.compare("max-wait", &before.max_wait, &after.max_wait, |_, it| format!("{it:?}"));
    differences.compare("on-timeout", &before.on_timeout, &after.on_timeout, |_, it| plain(it));
    differences.compare("first-token", &before.first_token, &after.first_token, |_, it| {
        maybe(it.as_ref(), |it| format!("{it:?}"))
    });
    differences.compare("switching", &before.switching, &after.switching, |_, it| switching(it));
    differences.compare("edits", edits_then, edits_now, |_, it| edits(it));
    differences.found
}

fn first(topology: &Topology, plan: &Plan) -> String {
    plan.steps.first().map_or_else(|| "none".to_owned(), |step| topology.name(step.lane).to_owned())
}

fn maybe<T>(value: Option<&T>, words: impl Fn(&T) -> String) -> String {
    value.map_or_else(|| "none".to_owned(), words)
}

/// As the format has it, without the quotes of a text.
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
    let again = retry_after_s.map(|seconds| format!(", again in {seconds} s")).unwrap_or_default();
    format!("{status} {code} ({message}{again})")
}

fn lanes(topology: &Topology, lanes: &LaneAdvice) -> String {
    let named = |lanes: &[LaneId]| list(lanes.iter().map(|lane| topology.name(*lane).to_owned()));
    match lanes {
        LaneAdvice::Any => "any".to_owned(),
        LaneAdvice::Only(lanes) => format!("only {}", named(lanes)),
        LaneAdvice::Avoid(lanes) => format!("avoid {}", named(lanes)),
        LaneAdvice::Ordered(lanes) => format!("ordered {}", named(lanes)),
        LaneAdvice::Scores(scores) => {
            let scored = scores.iter().map(|it| format!("{} {}", topology.name(it.lane), it.score));
            format!("scores {}", list(scored))
        }
        LaneAdvice::Blend(weights) => {
            format!(
                "blend {}",
                list(weights.iter().map(|it| format!("{} {}", plain(&it.metric), it.weight)))
            )
        }
    }
}

fn triggers(on: Triggers) -> String {
    if on == Triggers::ALL {
        return "everything".to_owned();
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
