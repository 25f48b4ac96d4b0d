//! Support for middlewares that were built for vLLM Router, as policies that reject or rewrite
//! requests.
//!
//! Their contract (`wit/vllm-router-middleware-0.1`) has one function. It gets the whole request,
//! and returns whether to continue, a status to reject the request with, or changes of its headers
//! and its body. It has no notion of lanes, so a middleware gives no advice about them.

use std::fmt::Display;

use pointsman_domain as domain;
use wasmtime::Store;
use wasmtime::component::Linker;

use self::bindings::vllm::router_middleware::types::{Action, HeaderParam, ModifyAction, Request};
use crate::contract::host_state::HostState;
use crate::contract::shared::Shared;
use crate::contract::types::PolicyError;
use crate::contract::wasi;
use crate::wasm::caching_compiler::Compiled;

mod bindings;

/// Maximum bytes by which a new body may exceed the old one.
const MAX_BODY_GROWTH: usize = 1 << 20;
/// Maximum length of a new body in bytes, which is also the limit of vLLM Router.
const MAX_BODY_BYTES: usize = 10 << 20;
/// Maximum changes of headers that are converted. More than `permit` allows, so that excess changes
/// are counted there.
const MAX_HEADER_CHANGES: usize = 64;

pub(crate) type Linked = bindings::MiddlewarePre<HostState>;
pub(crate) type Instance = bindings::Middleware;

/// Links a component whose names have been checked. Each component has its own linker, because the
/// versions of WASI that it imports depend on its toolchain.
pub(crate) fn link(compiled: &Compiled) -> wasmtime::Result<Linked> {
    let component = compiled.component();
    let mut linker = Linker::new(component.engine());
    compiled.define_parts(&mut linker)?;
    wasi::define(&mut linker, component)?;
    bindings::MiddlewarePre::new(linker.instantiate_pre(component)?)
}

/// Checks the configuration, which has to be empty.
pub(crate) fn configure(config: &str) -> Result<(), PolicyError> {
    if config == "{}" {
        return Ok(());
    }
    Err(PolicyError::InvalidConfig(
        "a vLLM Router middleware has no configuration; remove `config`".into(),
    ))
}

/// Returns the maximum bytes of a result: a body that is a little longer than the original one.
pub(crate) fn max_output_bytes(request: Option<&dyn domain::RequestView>) -> usize {
    let bytes = request.map_or(0, |request| request.info().body_bytes);
    let body = usize::try_from(bytes).unwrap_or(MAX_BODY_BYTES);
    body.saturating_add(MAX_BODY_GROWTH).min(MAX_BODY_BYTES)
}

/// Returns whether the instance has used half of its memory. In vLLM Router an instance serves one
/// request, so a middleware may never free what it allocates; it is replaced before its memory is
/// exhausted.
pub(crate) fn needs_recycling(state: &HostState) -> bool {
    state.memory.used() > state.memory.max() / 2
}

pub(crate) fn advise(
    instance: &Instance,
    store: &mut Store<HostState>,
    facts: &domain::Facts,
) -> wasmtime::Result<Result<domain::Advice, PolicyError>> {
    let view = &*facts.request;
    let headers = view.headers();
    let lowered_headers: Vec<HeaderParam<'_>> =
        headers.iter().map(|&(name, value)| HeaderParam { name, value }).collect();
    let request = Request {
        method: "POST",
        path: view.info().endpoint.path().unwrap_or("/"),
        query: "",
        headers: &lowered_headers,
        body: view.bytes(0, usize::MAX),
        request_id: view.id(),
    };
    store.data_mut().wasi.begin(facts.now_ms, facts.seed);
    // A middleware makes no host calls: logs that the whole request is its input.
    store.data_mut().input("request", ());
    let action = instance.vllm_router_middleware_on_request().call_handle(&mut *store, request);
    // Before the error is returned: the last output of a guest often explains its failure.
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
                    &format_args!("invalid status {status}: expected 400 to 599"),
                );
            }
            domain::Advice {
                reject: Some(rejection(status, &shared.policy.name)),
                ..domain::Advice::default()
            }
        }
        Action::Modify(changes) => {
            domain::Advice { edits: edits(changes, headers, shared), ..domain::Advice::default() }
        }
    }
}

/// Creates the rejection. The only status above 499 that a policy may use is 503: others stand for
/// errors of the host itself.
fn rejection(status: u16, name: &str) -> domain::Rejection {
    domain::Rejection {
        status: if (500..=599).contains(&status) { 503 } else { status },
        code: "rejected_by_policy".into(),
        message: format!("policy `{name}` rejected the request"),
        retry_after_s: None,
    }
}

/// Converts the changes. The body comes first, so that it is not dropped if there are too many
/// edits.
fn edits(changes: ModifyAction, headers: &[(&str, &[u8])], shared: &Shared) -> Vec<domain::Edit> {
    let ModifyAction { headers_set, headers_add, headers_remove, body_replace } = changes;
    let mut edits = Vec::new();
    match body_replace.map(String::from_utf8) {
        Some(Ok(body)) => edits.push(domain::Edit::ReplaceBody(body)),
        Some(Err(error)) => dropped(shared, "replace-body", &error),
        None => {}
    }
    edits.extend(
        headers_remove.into_iter().take(MAX_HEADER_CHANGES).map(domain::Edit::RemoveHeader),
    );
    for header in headers_set.into_iter().take(MAX_HEADER_CHANGES) {
        edits.push(domain::Edit::SetHeader(header.name, text(&header.value)));
    }
    for header in headers_add.into_iter().take(MAX_HEADER_CHANGES) {
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

/// Returns the value of a header after `edits`.
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

/// Converts the value of a header. An edit with an invalid value is dropped later: replacement
/// characters are not allowed in headers.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn dropped(shared: &Shared, part: &'static str, reason: &dyn Display) {
    shared.metrics.record_dropped(part);
    tracing::debug!(part, %reason, "dropped advice");
}

#[cfg(test)]
mod tests {
    use domain::Edit;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::contract::vllm_middleware::bindings::vllm::router_middleware::types::HeaderResult;
    use crate::metrics::{PolicyMetrics, VersionMetrics};

    fn shared() -> Shared {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let reference = domain::PolicyRef::new("guard", "1");
        let metrics = VersionMetrics::new(&metrics, &reference, &[]);
        Shared::new(reference, std::sync::Arc::default(), metrics)
    }

    fn header(name: &str, value: &[u8]) -> HeaderResult {
        HeaderResult { name: name.into(), value: value.to_vec() }
    }

    fn set(name: &str, value: &str) -> Edit {
        Edit::SetHeader(name.into(), value.into())
    }

    #[test]
    fn status_is_mapped_to_one_that_policies_may_use() {
        let shared = shared();
        for (status, allowed) in
            [(400, 400), (429, 429), (503, 503), (500, 503), (599, 503), (200, 403), (600, 403)]
        {
            let advice = advice(Action::Reject(status), &[], &shared);
            assert_eq!(advice.reject.unwrap().allowed_status(), allowed, "{status}");
        }
    }

    #[test]
    fn changes_are_converted_in_order() {
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
    fn excess_changes_and_invalid_bodies_are_dropped() {
        let many = |name: &str| vec![header(name, b"v"); 100_000];
        let changes = ModifyAction {
            headers_set: many("x-a"),
            headers_add: many("x-b"),
            headers_remove: vec!["x-c".into(); 100_000],
            body_replace: Some(b"{\xff}".to_vec()),
        };
        let edits = edits(changes, &[], &shared());
        assert_eq!(edits.len(), 3 * MAX_HEADER_CHANGES);
        assert!(!edits.iter().any(|edit| matches!(edit, Edit::ReplaceBody(_))));
    }

    #[test]
    fn configuration_must_be_empty() {
        assert_eq!(configure("{}"), Ok(()));
        assert!(matches!(configure(r#"{"a":1}"#), Err(PolicyError::InvalidConfig(_))));
    }
}
