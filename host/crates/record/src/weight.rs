//! How much memory a record holds, so that the queue of records is bounded by what it really takes. Policies decide how long
//! most of it is, so everything that has a length counts; cheap, as only lengths are looked at.
//!
//! Types are taken apart to their last field, so that a new field does not build before it has been thought of.

use pointsman_domain::{
    Advice, Consulted, Decision, Edit, FallbackAdvice, FallbackStep, LaneAdvice, Merged, Note,
    Plan, PolicyRef, QueueAdvice, Read, Rejection, Scalar, Step,
};
use serde_json::Value;

use crate::format::{DecisionRecord, RequestRecord};

impl DecisionRecord {
    /// About how many bytes it holds. What many records share, as the names of policies and chains, counts nothing.
    pub fn weight(&self) -> usize {
        let Self { fleet, consulted, merged, decision, tries, request, .. } = self;
        let names = self.request_id.len()
            + self.model.len()
            + self.tenant.as_ref().map_or(0, |tenant| tenant.len());
        size_of::<Self>()
            + names
            + size_of_val(fleet.as_slice())
            + consulted.held()
            + merged.held()
            + decision.held()
            + size_of_val(tries.as_slice())
            + request.held()
    }
}

/// Bytes that a value holds beyond its own size.
trait Held {
    fn held(&self) -> usize;
}

impl<T: Held> Held for Vec<T> {
    fn held(&self) -> usize {
        size_of_val(self.as_slice()) + self.iter().map(Held::held).sum::<usize>()
    }
}

impl<T: Held> Held for Option<T> {
    fn held(&self) -> usize {
        self.as_ref().map_or(0, Held::held)
    }
}

impl<A: Held, B: Held> Held for (A, B) {
    fn held(&self) -> usize {
        self.0.held() + self.1.held()
    }
}

impl Held for String {
    fn held(&self) -> usize {
        self.len()
    }
}

impl Held for PolicyRef {
    fn held(&self) -> usize {
        0
    }
}

impl Held for Value {
    fn held(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) => 0,
            Self::String(text) => text.len(),
            Self::Array(items) => items.held(),
            Self::Object(fields) => fields
                .iter()
                .map(|(key, value)| {
                    size_of_val(key) + key.len() + size_of_val(value) + value.held()
                })
                .sum(),
        }
    }
}

impl Held for RequestRecord {
    fn held(&self) -> usize {
        let Self { headers, body } = self;
        headers.held() + body.held()
    }
}

impl Held for Read {
    fn held(&self) -> usize {
        let Self { call, with, gave } = self;
        call.held() + with.held() + gave.held()
    }
}

impl Held for Consulted {
    fn held(&self) -> usize {
        let Self { policy: _, hook, took: _, reads, advice, note, dropped, fleet } = self;
        hook.held()
            + reads.held()
            + advice.held()
            + note.held()
            + dropped.held()
            + size_of_val(fleet.as_slice())
    }
}

impl Held for Advice {
    fn held(&self) -> usize {
        let Self { reject, lanes, switching: _, queue, fallback, edits, notes, hints } = self;
        reject.held()
            + lanes.held()
            + queue.held()
            + fallback.held()
            + edits.held()
            + notes.held()
            + hints.held()
    }
}

impl Held for LaneAdvice {
    fn held(&self) -> usize {
        match self {
            Self::Any => 0,
            Self::Only(lanes) | Self::Avoid(lanes) | Self::Ordered(lanes) => {
                size_of_val(lanes.as_slice())
            }
            Self::Scores(scores) => size_of_val(scores.as_slice()),
            Self::Blend(weights) => size_of_val(weights.as_slice()),
        }
    }
}

impl Held for Rejection {
    fn held(&self) -> usize {
        let Self { status: _, code, message, retry_after_s: _ } = self;
        code.held() + message.held()
    }
}

impl Held for QueueAdvice {
    fn held(&self) -> usize {
        let Self { priority: _, flow, max_wait: _, on_timeout: _ } = self;
        flow.held()
    }
}

impl Held for FallbackAdvice {
    fn held(&self) -> usize {
        let Self { on: _, steps, first_token: _ } = self;
        steps.held()
    }
}

impl Held for FallbackStep {
    fn held(&self) -> usize {
        let Self { lane: _, edits } = self;
        edits.held()
    }
}

impl Held for Edit {
    fn held(&self) -> usize {
        match self {
            Self::SetField(name, value) | Self::SetHeader(name, value) => {
                name.held() + value.held()
            }
            Self::SetModel(text)
            | Self::ReplaceBody(text)
            | Self::RemoveField(text)
            | Self::PrependSystem(text)
            | Self::RemoveHeader(text) => text.held(),
            Self::CapOutputTokens(_) | Self::KeepLastMessages(_) => 0,
        }
    }
}

impl Held for Note {
    fn held(&self) -> usize {
        let Self { key, value } = self;
        let text = match value {
            Scalar::Flag(_) | Scalar::Int(_) => 0,
            Scalar::Text(text) => text.held(),
        };
        key.held() + text
    }
}

impl Held for Merged {
    fn held(&self) -> usize {
        let Self { by, reject, candidates, lanes, switching: _, queue, fallback, edits, notes } =
            self;
        let lanes = size_of_val(candidates.as_slice()) + size_of_val(lanes.as_slice());
        by.held()
            + reject.held()
            + lanes
            + queue.held()
            + fallback.held()
            + edits.held()
            + notes.held()
    }
}

impl Held for Decision {
    fn held(&self) -> usize {
        match self {
            Self::Route(plan) => plan.held(),
            Self::Reject(_, rejection) => rejection.held(),
            Self::NoLane(_) => 0,
        }
    }
}

impl Held for Plan {
    fn held(&self) -> usize {
        let Self { steps, flow, .. } = self;
        steps.held() + flow.held()
    }
}

impl Held for Step {
    fn held(&self) -> usize {
        let Self { lane: _, edits } = self;
        edits.held()
    }
}
