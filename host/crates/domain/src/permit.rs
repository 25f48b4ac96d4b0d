//! Which of a policy's advice the operator lets through: the manifest's `[allow]` table.

use crate::advice::{Advice, Edit};

/// What a policy may touch. [`Allow::default`] permits nothing but a priority of 0 and lowering the output limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow {
    /// JSON Pointers that it may set or remove, with everything below them.
    pub fields: Vec<String>,
    /// Headers (lower case) that it may set or remove.
    pub headers: Vec<String>,
    /// May it prepend system messages and drop old messages?
    pub system: bool,
    /// May it set the model name sent to the engine?
    pub model: bool,
    /// May it put another body in place of the whole one?
    pub body: bool,
    /// Lowest and highest priority.
    pub priority: (i32, i32),
}

/// Something that was left out of a policy's advice, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Kind of advice, for a metric's label: `set-field`, `hint`, …
    pub what: &'static str,
    /// Sentence for the log.
    pub reason: String,
}

/// Headers that no policy may touch: those that frame or authenticate a message, or that name its peer
/// (RFC 9110 section 7.6.1 lists the hop-by-hop ones).
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

/// Most edits, fallback steps, notes and hints that one piece of advice may have.
const MOST_EDITS: usize = 32;
const MOST_STEPS: usize = 8;
const MOST_NOTES: usize = 32;

/// Reduce `advice` to what `allow` permits, and say what was left out.
pub fn permit(advice: &mut Advice, allow: &Allow) -> Vec<Dropped> {
    let mut dropped = Vec::new();
    keep_allowed(&mut advice.edits, allow, &mut dropped);
    if let Some(fallback) = &mut advice.fallback {
        truncate(&mut fallback.steps, MOST_STEPS, "fallback", &mut dropped);
        for step in &mut fallback.steps {
            keep_allowed(&mut step.edits, allow, &mut dropped);
        }
    }
    if let Some(queue) = &mut advice.queue {
        let (low, high) = allow.priority;
        let clamped = queue.priority.clamp(low.min(high), high.max(low));
        if clamped != queue.priority {
            let reason = format!("priority {} is outside {low} to {high}", queue.priority);
            dropped.push(Dropped { what: "priority", reason });
            queue.priority = clamped;
        }
    }
    truncate(&mut advice.notes, MOST_NOTES, "note", &mut dropped);
    truncate(&mut advice.hints, MOST_NOTES, "hint", &mut dropped);
    dropped
}

/// Reduce edits to what `allow` permits, and say what was left out.
pub fn permit_edits(edits: &mut Vec<Edit>, allow: &Allow) -> Vec<Dropped> {
    let mut dropped = Vec::new();
    keep_allowed(edits, allow, &mut dropped);
    dropped
}

fn keep_allowed(edits: &mut Vec<Edit>, allow: &Allow, dropped: &mut Vec<Dropped>) {
    truncate(edits, MOST_EDITS, "edit", dropped);
    edits.retain(|edit| match refusal(edit, allow) {
        None => true,
        Some(reason) => {
            dropped.push(Dropped { what: edit.kind(), reason });
            false
        }
    });
}

fn refusal(edit: &Edit, allow: &Allow) -> Option<String> {
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
                .then(|| format!("`allow.fields` does not list `{pointer}`"))
        }
        Edit::SetHeader(name, _) | Edit::RemoveHeader(name) => {
            let name = name.to_ascii_lowercase();
            if PROTECTED_HEADERS.contains(&name.as_str()) {
                return Some(format!("no policy may touch the header `{name}`"));
            }
            (!allow.headers.contains(&name))
                .then(|| format!("`allow.headers` does not list `{name}`"))
        }
    }
}

fn truncate<T>(list: &mut Vec<T>, most: usize, what: &'static str, dropped: &mut Vec<Dropped>) {
    if list.len() > most {
        dropped.push(Dropped { what, reason: format!("{} are more than {most}", list.len()) });
        list.truncate(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::QueueAdvice;

    #[test]
    fn only_what_the_manifest_allows_gets_through() {
        let allow = Allow {
            fields: vec!["/temperature".into(), "/metadata".into()],
            headers: vec!["x-lane".into(), "authorization".into()],
            system: true,
            ..Allow::default()
        };
        for (edit, through) in [
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
            let dropped = permit(&mut advice, &allow);
            assert_eq!(advice.edits.len() == 1, through, "{edit:?}");
            assert_eq!(dropped.is_empty(), through, "{edit:?}");
        }
    }

    #[test]
    fn a_whole_body_needs_a_word_of_its_own() {
        let advice = Advice { edits: vec![Edit::ReplaceBody("{}".into())], ..Advice::default() };
        for body in [false, true] {
            // Leave for every field is no leave for the body.
            let allow = Allow {
                fields: vec![String::new()],
                system: true,
                model: true,
                body,
                ..Allow::default()
            };
            let mut advice = advice.clone();
            let dropped = permit(&mut advice, &allow);
            assert_eq!(
                (advice.edits.len(), dropped.len()),
                (usize::from(body), usize::from(!body))
            );
        }
    }

    #[test]
    fn priorities_are_clamped_and_lists_cut() {
        let allow = Allow { priority: (-1, 3), ..Allow::default() };
        let mut advice = Advice {
            queue: Some(QueueAdvice { priority: 99, ..QueueAdvice::default() }),
            edits: vec![Edit::CapOutputTokens(1); 40],
            ..Advice::default()
        };
        let dropped = permit(&mut advice, &allow);
        assert_eq!(advice.queue.as_ref().map(|queue| queue.priority), Some(3));
        assert_eq!(advice.edits.len(), MOST_EDITS);
        assert_eq!(
            dropped.iter().map(|dropped| dropped.what).collect::<Vec<_>>(),
            ["edit", "priority"]
        );
    }
}
