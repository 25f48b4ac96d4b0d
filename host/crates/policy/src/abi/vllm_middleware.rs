//! Middlewares that were built for vLLM Router, as policies that refuse or rewrite requests.
//!
//! Their contract (`wit/vllm-router-middleware-0.1`) has one function: the whole request in, and out comes leave to go on, a
//! status to refuse it with, or changes of its headers and its body. It says nothing about lanes, so nothing of that comes
//! of it.

use std::fmt::Display;

use pointsman_domain as domain;
use wasmtime::Store;
use wasmtime::component::{Component, Linker};

use self::bindings::vllm::router_middleware::types::{Action, HeaderParam, ModifyAction, Request};
use super::{PolicyError, wasi};
use crate::host_calls::{HostState, Shared};

mod bindings {
    #![allow(
        missing_docs,
        unreachable_pub,
        missing_debug_implementations,
        clippy::all,
        reason = "generated from the WIT"
    )]
    wasmtime::component::bindgen!({
        path: "../../../wit/vllm-router-middleware-0.1",
        world: "middleware",
        // The body goes to the guest from where it lies.
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// A new body may be longer than the old one by this much, ...
const MOST_GROWTH: usize = 1 << 20;
/// ... and is never longer than this, which is also the limit of the router that these are made for.
const MOST_BODY: usize = 10 << 20;
/// Changes of headers that are looked at. More than `permit` lets through, so that those that are too many are counted there.
const MOST_CHANGES: usize = 64;

pub(crate) type Linked = bindings::MiddlewarePre<HostState>;
pub(crate) type Instance = bindings::Middleware;

/// Link a component whose names are checked. The linker is its own: which versions of WASI it wants differs with its tools.
pub(crate) fn link(component: &Component) -> wasmtime::Result<Linked> {
    let mut linker = Linker::new(component.engine());
    wasi::define(&mut linker, component)?;
    bindings::MiddlewarePre::new(linker.instantiate_pre(component)?)
}

pub(crate) fn configure(config: &str) -> Result<(), PolicyError> {
    if config == "{}" {
        return Ok(());
    }
    Err(PolicyError::InvalidConfig(
        "a vLLM Router middleware has no configuration; leave `config` out".into(),
    ))
}

/// Bytes that may come back: a body like the one that went in.
pub(crate) fn most_result(request: Option<&dyn domain::RequestView>) -> usize {
    let bytes = request.map_or(0, |request| request.figures().body_bytes);
    let body = usize::try_from(bytes).unwrap_or(MOST_BODY);
    body.saturating_add(MOST_GROWTH).min(MOST_BODY)
}

/// In the router that it was made for, an instance serves one request. So it may never free what it allocates, and is left
/// before that does harm.
pub(crate) fn needs_recycling(state: &HostState) -> bool {
    state.memory.used() > state.memory.most() / 2
}

pub(crate) fn advise(
    instance: &Instance,
    store: &mut Store<HostState>,
    facts: &domain::Facts,
) -> wasmtime::Result<Result<domain::Advice, PolicyError>> {
    let view = &*facts.request;
    let headers = view.headers();
    let lowered: Vec<HeaderParam<'_>> =
        headers.iter().map(|&(name, value)| HeaderParam { name, value }).collect();
    let request = Request {
        method: "POST",
        path: view.figures().endpoint.path().unwrap_or("/"),
        query: "",
        headers: &lowered,
        body: view.bytes(0, usize::MAX),
        request_id: view.id(),
    };
    store.data_mut().wasi.begin(facts.now_ms, facts.seed);
    // It asks nothing: the whole request is handed to it.
    let question = store.data().question("request", Vec::new);
    store.data_mut().answer(question, |_| ());
    let action = instance.vllm_router_middleware_on_request().call_handle(&mut *store, request);
    // Before the error: what a guest says last is often why it failed.
    store.data_mut().end_output();
    Ok(Ok(advice(action?, &headers, &store.data().shared)))
}

fn advice(action: Action, headers: &[(&str, &[u8])], shared: &Shared) -> domain::Advice {
    match action {
        Action::Continue => domain::Advice::default(),
        Action::Reject(status) => {
            if !(400..=599).contains(&status) {
                dropped(
                    shared,
                    "reject-status",
                    &format_args!("{status} is no status to refuse a request with"),
                );
            }
            domain::Advice {
                reject: Some(rejection(status, &shared.name)),
                ..domain::Advice::default()
            }
        }
        Action::Modify(changes) => {
            domain::Advice { edits: edits(changes, headers, shared), ..domain::Advice::default() }
        }
    }
}

/// Among statuses above 499 a policy has 503 only: the others are the host's own, and mean that something is broken.
fn rejection(status: u16, name: &str) -> domain::Rejection {
    domain::Rejection {
        status: if (500..=599).contains(&status) { 503 } else { status },
        code: "rejected_by_policy".into(),
        message: format!("The policy `{name}` refused the request."),
        retry_after_s: None,
    }
}

/// Body first: should there be too many edits, it is not the one that is left out.
fn edits(changes: ModifyAction, headers: &[(&str, &[u8])], shared: &Shared) -> Vec<domain::Edit> {
    let ModifyAction { headers_set, headers_add, headers_remove, body_replace } = changes;
    let mut edits = Vec::new();
    match body_replace.map(String::from_utf8) {
        Some(Ok(body)) => edits.push(domain::Edit::ReplaceBody(body)),
        Some(Err(error)) => dropped(shared, "replace-body", &error),
        None => {}
    }
    edits.extend(headers_remove.into_iter().take(MOST_CHANGES).map(domain::Edit::RemoveHeader));
    for header in headers_set.into_iter().take(MOST_CHANGES) {
        edits.push(domain::Edit::SetHeader(header.name, text(&header.value)));
    }
    for header in headers_add.into_iter().take(MOST_CHANGES) {
        // Several values of a header mean the same as one with commas (RFC 9110, section 5.3).
        let added = text(&header.value);
        let value = match value_after(&edits, headers, &header.name) {
            Some(value) => format!("{value}, {added}"),
            None => added,
        };
        edits.push(domain::Edit::SetHeader(header.name, value));
    }
    edits
}

/// The value of a header once `edits` are applied.
fn value_after(edits: &[domain::Edit], headers: &[(&str, &[u8])], wanted: &str) -> Option<String> {
    let edited = edits.iter().rev().find_map(|edit| match edit {
        domain::Edit::SetHeader(name, value) if name.eq_ignore_ascii_case(wanted) => {
            Some(Some(value.clone()))
        }
        domain::Edit::RemoveHeader(name) if name.eq_ignore_ascii_case(wanted) => Some(None),
        _ => None,
    });
    edited.unwrap_or_else(|| {
        let values = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        let values: Vec<String> = values.map(|(_, value)| text(value)).collect();
        (!values.is_empty()).then(|| values.join(", "))
    })
}

/// A header's value. What is no text is refused with the edit: its replacement characters may not stand in a header.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn dropped(shared: &Shared, what: &'static str, reason: &dyn Display) {
    shared.figures.dropped(what);
    tracing::debug!(policy = shared.name, "{what} dropped: {reason}");
}

#[cfg(test)]
mod tests {
    use domain::Edit;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::abi::vllm_middleware::bindings::vllm::router_middleware::types::HeaderResult;
    use crate::metrics::{PolicyFigures, PolicyMetrics};

    fn shared() -> Shared {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let reference = domain::PolicyRef::new("guard", "1");
        Shared::new(
            "guard".into(),
            std::sync::Arc::default(),
            PolicyFigures::new(&metrics, &reference, &[]),
        )
    }

    fn header(name: &str, value: &[u8]) -> HeaderResult {
        HeaderResult { name: name.into(), value: value.to_vec() }
    }

    fn set(name: &str, value: &str) -> Edit {
        Edit::SetHeader(name.into(), value.into())
    }

    #[test]
    fn statuses_are_those_that_a_policy_has() {
        let shared = shared();
        for (status, answered) in
            [(400, 400), (429, 429), (503, 503), (500, 503), (599, 503), (200, 403), (600, 403)]
        {
            let advice = advice(Action::Reject(status), &[], &shared);
            assert_eq!(advice.reject.unwrap().allowed_status(), answered, "{status}");
        }
    }

    #[test]
    fn changes_become_edits_in_their_order() {
        let changes = ModifyAction {
            headers_set: vec![header("x-a", b"1")],
            headers_add: vec![
                header("X-A", b"2"),
                header("x-old", b"3"),
                header("x-gone", b"4"),
                header("x-a", b"5"),
                header("x-b", b"\xff"),
            ],
            headers_remove: vec!["X-Gone".into()],
            body_replace: Some(b"{}".to_vec()),
        };
        let headers: [(&str, &[u8]); 3] =
            [("x-old", b"one"), ("x-gone", b"two"), ("x-old", b"three")];
        let expected = [
            Edit::ReplaceBody("{}".into()),
            Edit::RemoveHeader("X-Gone".into()),
            set("x-a", "1"),
            set("X-A", "1, 2"),
            set("x-old", "one, three, 3"),
            set("x-gone", "4"),
            set("x-a", "1, 2, 5"),
            set("x-b", "\u{fffd}"),
        ];
        assert_eq!(edits(changes, &headers, &shared()), expected);
    }

    #[test]
    fn what_is_too_much_is_cut_and_what_is_no_text_is_no_body() {
        let many = |name: &str| vec![header(name, b"v"); 100_000];
        let changes = ModifyAction {
            headers_set: many("x-a"),
            headers_add: many("x-b"),
            headers_remove: vec!["x-c".into(); 100_000],
            body_replace: Some(b"{\xff}".to_vec()),
        };
        let edits = edits(changes, &[], &shared());
        assert_eq!(edits.len(), 3 * MOST_CHANGES);
        assert!(!edits.iter().any(|edit| matches!(edit, Edit::ReplaceBody(_))));
    }

    #[test]
    fn there_is_nothing_to_configure() {
        assert_eq!(configure("{}"), Ok(()));
        assert!(
            configure(r#"{"a":1}"#)
                .is_err_and(|error| error.to_string().contains("has no configuration"))
        );
    }
}
