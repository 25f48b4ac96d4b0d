//! Memory accounting of records, which bounds the queue by the memory that it really uses.
//!
//! Policies determine the length of most fields, so everything that has a length counts. Cheap:
//! only lengths are read.
//!
//! Types are destructured completely, so that a new field does not compile before it is considered.

use pointsman_domain::{
    Advice, Decision, Edit, FallbackAdvice, FallbackStep, LaneAdvice, LaneOpinion, Merged, Note,
    Plan, PolicyCall, PolicyRef, QueueAdvice, Read, Rejection, Scalar, Step,
};
use serde_json::Value;

use crate::format::{DecisionRecord, RequestRecord};

impl DecisionRecord {
    /// Returns the approximate number of bytes that the record uses. Data shared between records,
    /// such as names of policies and chains, does not count.
    pub fn weight(&self) -> usize {
        let Self { fleet, consulted, merged, decision, tries, request, .. } = self;
        let names = self.request_id.len()
            + self.model.len()
            + self.tenant.as_ref().map_or(0, |tenant| tenant.len());
        size_of::<Self>()
            + names
            + size_of_val(fleet.as_slice())
            + consulted.heap_bytes()
            + size_of_val(&**merged)
            + merged.heap_bytes()
            + decision.heap_bytes()
            + size_of_val(tries.as_slice())
            + request.heap_bytes()
    }
}

/// The heap memory of a value, in bytes, beyond its own size.
trait HeapSize {
    fn heap_bytes(&self) -> usize;
}

impl<T: HeapSize> HeapSize for Vec<T> {
    fn heap_bytes(&self) -> usize {
        size_of_val(self.as_slice()) + self.iter().map(HeapSize::heap_bytes).sum::<usize>()
    }
}

impl<T: HeapSize> HeapSize for Option<T> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, HeapSize::heap_bytes)
    }
}

impl<A: HeapSize, B: HeapSize> HeapSize for (A, B) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes() + self.1.heap_bytes()
    }
}

impl HeapSize for String {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl HeapSize for PolicyRef {
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl HeapSize for Value {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) => 0,
            Self::String(text) => text.len(),
            Self::Array(items) => items.heap_bytes(),
            Self::Object(fields) => fields
                .iter()
                .map(|(key, value)| {
                    size_of_val(key) + key.len() + size_of_val(value) + value.heap_bytes()
                })
                .sum(),
        }
    }
}

impl HeapSize for RequestRecord {
    fn heap_bytes(&self) -> usize {
        let Self { headers, body } = self;
        headers.heap_bytes() + body.heap_bytes()
    }
}

impl HeapSize for Read {
    fn heap_bytes(&self) -> usize {
        let Self { call, with, gave } = self;
        call.heap_bytes() + with.heap_bytes() + gave.heap_bytes()
    }
}

impl HeapSize for PolicyCall {
    fn heap_bytes(&self) -> usize {
        let Self { policy: _, hook, took: _, reads, advice, note, dropped, fleet, log } = self;
        hook.heap_bytes()
            + reads.heap_bytes()
            + advice.heap_bytes()
            + note.heap_bytes()
            + dropped.heap_bytes()
            + size_of_val(fleet.as_slice())
            + log.heap_bytes()
    }
}

impl HeapSize for Advice {
    fn heap_bytes(&self) -> usize {
        let Self { reject, lanes, switching: _, queue, fallback, edits, notes, hints } = self;
        reject.heap_bytes()
            + lanes.heap_bytes()
            + queue.heap_bytes()
            + fallback.heap_bytes()
            + edits.heap_bytes()
            + notes.heap_bytes()
            + hints.heap_bytes()
    }
}

impl HeapSize for LaneAdvice {
    fn heap_bytes(&self) -> usize {
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

impl HeapSize for Rejection {
    fn heap_bytes(&self) -> usize {
        let Self { status: _, code, message, retry_after_s: _ } = self;
        code.heap_bytes() + message.heap_bytes()
    }
}

impl HeapSize for QueueAdvice {
    fn heap_bytes(&self) -> usize {
        let Self { priority: _, flow, max_wait: _, on_timeout: _ } = self;
        flow.heap_bytes()
    }
}

impl HeapSize for FallbackAdvice {
    fn heap_bytes(&self) -> usize {
        let Self { on: _, steps, first_token: _ } = self;
        steps.heap_bytes()
    }
}

impl HeapSize for FallbackStep {
    fn heap_bytes(&self) -> usize {
        let Self { lane: _, edits } = self;
        edits.heap_bytes()
    }
}

impl HeapSize for Edit {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::SetField(name, value) | Self::SetHeader(name, value) => {
                name.heap_bytes() + value.heap_bytes()
            }
            Self::SetModel(text)
            | Self::ReplaceBody(text)
            | Self::RemoveField(text)
            | Self::PrependSystem(text)
            | Self::RemoveHeader(text) => text.heap_bytes(),
            Self::CapOutputTokens(_) | Self::KeepLastMessages(_) => 0,
        }
    }
}

impl HeapSize for Note {
    fn heap_bytes(&self) -> usize {
        let Self { key, value } = self;
        let text = match value {
            Scalar::Flag(_) | Scalar::Int(_) => 0,
            Scalar::Text(text) => text.heap_bytes(),
        };
        key.heap_bytes() + text
    }
}

impl HeapSize for Merged {
    fn heap_bytes(&self) -> usize {
        let Self {
            by,
            reject,
            candidates,
            need: _,
            lanes,
            opinions,
            switching: _,
            queue,
            fallback,
            edits,
            notes,
        } = self;
        let lanes = size_of_val(candidates.as_slice()) + size_of_val(lanes.as_slice());
        by.heap_bytes()
            + reject.heap_bytes()
            + lanes
            + opinions.heap_bytes()
            + queue.heap_bytes()
            + fallback.heap_bytes()
            + edits.heap_bytes()
            + notes.heap_bytes()
    }
}

impl HeapSize for LaneOpinion {
    fn heap_bytes(&self) -> usize {
        let Self { policy: _, kind: _, lanes } = self;
        size_of_val(lanes.as_slice())
    }
}

impl HeapSize for Decision {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Route(plan) => plan.heap_bytes(),
            Self::Reject(_, rejection) => rejection.heap_bytes(),
            Self::NoLane(_) => 0,
        }
    }
}

impl HeapSize for Plan {
    fn heap_bytes(&self) -> usize {
        let Self { steps, flow, .. } = self;
        steps.heap_bytes() + flow.heap_bytes()
    }
}

impl HeapSize for Step {
    fn heap_bytes(&self) -> usize {
        let Self { lane: _, edits, context: _ } = self;
        edits.heap_bytes()
    }
}
