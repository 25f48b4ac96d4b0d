//! Enforcement of the manifest's `[allow]` table, by which the operator limits the advice of a
//! policy.

use crate::advice::{Advice, Edit, LaneAdvice, Rejection};
use crate::fleet_view::Topology;

/// What a policy may change. [`Allow::default`] permits a priority of 0 and lowering the output
/// limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow {
    /// JSON Pointers of fields that the policy may set or remove, including everything below them.
    pub fields: Vec<String>,
    /// Headers (lower case) that the policy may set or remove.
    pub headers: Vec<String>,
    /// True if the policy may prepend system messages and drop old messages.
    pub system: bool,
    /// True if the policy may set the model name sent to the engine.
    pub model: bool,
    /// True if the policy may replace the whole body.
    pub body: bool,
    /// Minimum and maximum priority.
    pub priority: (i32, i32),
}

/// A part of a policy's advice that was dropped, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Kind of advice, used as a metric label: `set-field`, `hint`, …
    pub what: &'static str,
    /// Reason, for the log.
    pub reason: String,
}

/// Headers that policies cannot change: those that frame or authenticate a message, or that name
/// its peer (RFC 9110 section 7.6.1 lists the hop-by-hop ones).
const PROTECTED_HEADERS: [&str; 15] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
];

/// Maximum numbers of edits, fallback steps, and notes or hints in one piece of advice.
const MAX_EDITS: usize = 32;
const MAX_STEPS: usize = 8;
const MAX_NOTES: usize = 32;

/// Removes from `advice` what `allow` does not permit, and returns what was dropped.
pub fn enforce_allow(advice: &mut Advice, allow: &Allow) -> Vec<Dropped> {
    let mut dropped = Vec::new();
    keep_allowed(&mut advice.edits, allow, &mut dropped);
    if let Some(fallback) = &mut advice.fallback {
        truncate(&mut fallback.steps, MAX_STEPS, "fallback", &mut dropped);
        for step in &mut fallback.steps {
            keep_allowed(&mut step.edits, allow, &mut dropped);
        }
    }
    if let Some(queue) = &mut advice.queue {
        let (low, high) = allow.priority;
        // `clamp` panics if its bounds are reversed.
        let clamped = queue.priority.clamp(low.min(high), low.max(high));
        if clamped != queue.priority {
            let reason =
                format!("priority {} is out of range: expected {low} to {high}", queue.priority);
            dropped.push(Dropped { what: "priority", reason });
            queue.priority = clamped;
        }
    }
    dropped.extend(advice.reject.as_mut().and_then(cap_retry_after));
    truncate(&mut advice.notes, MAX_NOTES, "note", &mut dropped);
    truncate(&mut advice.hints, MAX_NOTES, "hint", &mut dropped);
    dropped
}

/// Removes from `edits` what `allow` does not permit, and returns what was dropped.
pub fn enforce_allow_edits(edits: &mut Vec<Edit>, allow: &Allow) -> Vec<Dropped> {
    let mut dropped = Vec::new();
    keep_allowed(edits, allow, &mut dropped);
    dropped
}

/// Reduces the `Retry-After` of a rejection to the maximum, and returns what was dropped.
pub fn cap_retry_after(rejection: &mut Rejection) -> Option<Dropped> {
    let max = Rejection::MAX_RETRY_AFTER_S;
    let after = rejection.retry_after_s.filter(|after| *after > max)?;
    rejection.retry_after_s = Some(max);
    let reason = format!("limit exceeded: {after} s of at most {max} s");
    Some(Dropped { what: "retry-after", reason })
}

/// Removes a filter that only names lanes which the topology does not have, and returns what was
/// dropped: such advice is invalid, and would exclude all lanes, or none. An empty list is a valid
/// filter, and so are known lanes that are not candidates for the request.
pub fn drop_unknown_filter(advice: &mut Advice, topology: &Topology) -> Option<Dropped> {
    /// Maximum lanes that the reason names.
    const MAX_NAMED: usize = 4;
    let (kind, lanes) = match &advice.lanes {
        LaneAdvice::Only(lanes) => ("only", lanes),
        LaneAdvice::Avoid(lanes) => ("avoid", lanes),
        LaneAdvice::Ordered(lanes) => ("ordered", lanes),
        LaneAdvice::Any | LaneAdvice::Scores(_) | LaneAdvice::Blend(_) => return None,
    };
    if lanes.is_empty() || lanes.iter().any(|lane| topology.lane(*lane).is_some()) {
        return None;
    }
    let named: Vec<String> = lanes.iter().take(MAX_NAMED).map(|lane| lane.0.to_string()).collect();
    let more = if lanes.len() > MAX_NAMED { ", …" } else { "" };
    let (named, count) = (named.join(", "), topology.lanes().len());
    let reason = format!("`{kind}` only names unknown lanes: {named}{more}; {count} lanes exist");
    advice.lanes = LaneAdvice::Any;
    Some(Dropped { what: "lanes", reason })
}

fn keep_allowed(edits: &mut Vec<Edit>, allow: &Allow, dropped: &mut Vec<Dropped>) {
    truncate(edits, MAX_EDITS, "edit", dropped);
    edits.retain(|edit| match why_forbidden(edit, allow) {
        None => true,
        Some(reason) => {
            dropped.push(Dropped { what: edit.kind(), reason });
            false
        }
    });
}

fn why_forbidden(edit: &Edit, allow: &Allow) -> Option<String> {
    match edit {
        Edit::CapOutputTokens(_) => None,
        Edit::SetModel(_) => (!allow.model).then(|| "`allow.model` is not set".into()),
        Edit::ReplaceBody(_) => (!allow.body).then(|| "`allow.body` is not set".into()),
        Edit::PrependSystem(_) | Edit::KeepLastMessages(_) => {
            (!allow.system).then(|| "`allow.system` is not set".into())
        }
        Edit::SetField(pointer, _) | Edit::RemoveField(pointer) => {
            let covers = |allowed: &String| {
                pointer
                    .strip_prefix(allowed.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            (!allow.fields.iter().any(covers))
                .then(|| format!("`{pointer}` is not listed in `allow.fields`"))
        }
        Edit::SetHeader(name, _) | Edit::RemoveHeader(name) => {
            let name = name.to_ascii_lowercase();
            if PROTECTED_HEADERS.contains(&name.as_str()) {
                return Some(format!("header `{name}` is protected"));
            }
            (!allow.headers.contains(&name))
                .then(|| format!("`{name}` is not listed in `allow.headers`"))
        }
    }
}

fn truncate<T>(list: &mut Vec<T>, max: usize, what: &'static str, dropped: &mut Vec<Dropped>) {
    if list.len() > max {
        dropped.push(Dropped {
            what,
            reason: format!("limit exceeded: {} of at most {max}", list.len()),
        });
        list.truncate(max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::QueueAdvice;
    use crate::fleet_view::{EngineKind, LaneId, LaneInfo};

    #[test]
    fn edits_not_allowed_by_the_manifest_are_dropped() {
        let allow = Allow {
            fields: vec!["/temperature".into(), "/metadata".into()],
            headers: vec!["x-lane".into(), "authorization".into()],
            system: true,
            ..Allow::default()
        };
        for (edit, allowed) in [
            (Edit::CapOutputTokens(5), true),
            (Edit::SetModel("m".into()), false),
            (Edit::ReplaceBody("{}".into()), false),
            (Edit::PrependSystem("s".into()), true),
            (Edit::SetField("/temperature".into(), "0".into()), true),
            (Edit::SetField("/temperatures".into(), "0".into()), false),
            (Edit::RemoveField("/metadata/user".into()), true),
            (Edit::RemoveField("/stream".into()), false),
            (Edit::RemoveField(String::new()), false),
            (Edit::SetHeader("X-Lane".into(), "coder".into()), true),
            (Edit::SetHeader("x-other".into(), "v".into()), false),
            (Edit::SetHeader("Authorization".into(), "v".into()), false),
        ] {
            let mut advice = Advice { edits: vec![edit.clone()], ..Advice::default() };
            let dropped = enforce_allow(&mut advice, &allow);
            assert_eq!(advice.edits.len() == 1, allowed, "{edit:?}");
            assert_eq!(dropped.is_empty(), allowed, "{edit:?}");
        }
    }

    #[test]
    fn replacing_the_body_needs_its_own_permission() {
        let advice = Advice { edits: vec![Edit::ReplaceBody("{}".into())], ..Advice::default() };
        for body in [false, true] {
            // Permission to set every field does not include replacing the body.
            let allow = Allow {
                fields: vec![String::new()],
                system: true,
                model: true,
                body,
                ..Allow::default()
            };
            let mut advice = advice.clone();
            let dropped = enforce_allow(&mut advice, &allow);
            assert_eq!(
                (advice.edits.len(), dropped.len()),
                (usize::from(body), usize::from(!body))
            );
        }
    }

    #[test]
    fn filters_of_unknown_lanes_only_are_dropped() {
        let ids = |ids: &[u32]| ids.iter().copied().map(LaneId).collect::<Vec<_>>();
        let lane = LaneInfo {
            id: LaneId(0),
            name: "a".into(),
            engine: EngineKind::Other,
            models: vec!["other".into()],
            names: Default::default(),
            labels: Vec::new(),
            max_context: 0,
            endpoints: crate::EndpointSet::all(),
            slots: 1,
            group: 0,
            cost_milli: 0,
            is_peer: false,
        };
        let topology = Topology::new(1, vec![lane]);
        for (lanes, is_dropped) in [
            (LaneAdvice::Only(ids(&[99])), true),
            (LaneAdvice::Avoid(ids(&[99, 98])), true),
            (LaneAdvice::Ordered(ids(&[1, 2, 3, 4, 5])), true),
            // Known, although it may not be a candidate.
            (LaneAdvice::Only(ids(&[99, 0])), false),
            (LaneAdvice::Only(Vec::new()), false),
            (LaneAdvice::Scores(Vec::new()), false),
            (LaneAdvice::Any, false),
        ] {
            let mut advice = Advice { lanes: lanes.clone(), ..Advice::default() };
            let dropped = drop_unknown_filter(&mut advice, &topology);
            assert_eq!(dropped.map(|dropped| dropped.what), is_dropped.then_some("lanes"));
            assert_eq!(advice.lanes, if is_dropped { LaneAdvice::Any } else { lanes });
        }
    }

    #[test]
    fn priorities_are_clamped_and_lists_truncated() {
        let allow = Allow { priority: (-1, 3), ..Allow::default() };
        let mut advice = Advice {
            queue: Some(QueueAdvice { priority: 99, ..QueueAdvice::default() }),
            edits: vec![Edit::CapOutputTokens(1); 40],
            reject: Some(Rejection {
                status: 429,
                code: "budget".into(),
                message: String::new(),
                retry_after_s: Some(35_342),
            }),
            ..Advice::default()
        };
        let dropped = enforce_allow(&mut advice, &allow);
        assert_eq!(advice.queue.as_ref().map(|queue| queue.priority), Some(3));
        assert_eq!(advice.edits.len(), MAX_EDITS);
        assert_eq!(
            dropped.iter().map(|dropped| dropped.what).collect::<Vec<_>>(),
            ["edit", "priority", "retry-after"]
        );
        assert_eq!(advice.reject.and_then(|reject| reject.retry_after_s), Some(3600));
    }
}
