use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};

use super::*;

fn quota(config: &str) -> Quota {
    Quota::configure(config).unwrap()
}

fn host() -> FakeHost {
    FakeHost::new(FakeFleet::new(&["a"])).at(1_000_000_005_000)
}

fn request_from(tenant: &str) -> FakeRequest {
    anonymous().with_tenant(tenant)
}

fn anonymous() -> FakeRequest {
    FakeRequest::chat(r#"{"model": "a", "messages": []}"#)
}

/// Creates a request for `tokens` tokens in total.
fn request_with_tokens(tenant: &str, tokens: u32) -> FakeRequest {
    let mut request = request_from(tenant);
    request.context.prompt_tokens = tokens / 2;
    request.context.max_output_tokens = tokens - tokens / 2;
    request
}

/// Returns the status of the rejection, 0 for none, and its `Retry-After`.
fn reject_status(host: &FakeHost, policy: &Quota, request: &FakeRequest) -> (u16, Option<u32>) {
    let advice = host.advise(policy, request).unwrap();
    advice.reject.map_or((0, None), |rejection| (rejection.status, rejection.retry_after_s))
}

#[test]
fn requests_are_limited_per_window_and_tenant() {
    let (host, policy) =
        (host(), quota(r#"{"tenants": {"acme": {"requests": 2}}, "default": {"requests": 1}}"#));
    assert_eq!(
        [
            reject_status(&host, &policy, &request_from("acme")),
            reject_status(&host, &policy, &request_from("acme"))
        ],
        [(0, None); 2]
    );
    // 1,000,000,005 s are 16,666,666 minutes and 45 s.
    assert_eq!(reject_status(&host, &policy, &request_from("acme")), (429, Some(15)));
    assert_eq!(reject_status(&host, &policy, &request_from("other")), (0, None));
    assert_eq!(
        reject_status(&host, &policy, &request_from("third")).0,
        0,
        "default limits are not shared"
    );
    assert_eq!(reject_status(&host, &policy, &request_from("other")).0, 429);
    assert_eq!(reject_status(&host, &policy, &anonymous()).0, 0);
    assert_eq!(reject_status(&host, &policy, &anonymous()).0, 429);
    assert_eq!((host.counter("admitted"), host.counter("rejected")), (5, 3));
    host.advance(14_999);
    assert_eq!(reject_status(&host, &policy, &request_from("acme")), (429, Some(1)));
    host.advance(1);
    assert_eq!(reject_status(&host, &policy, &request_from("acme")), (0, None));
}

#[test]
fn tokens_are_limited_and_rejected_requests_use_no_quota() {
    let (host, policy) =
        (host(), quota(r#"{"tenants": {"acme": {"requests": 3, "tokens": 1000}}}"#));
    assert_eq!(reject_status(&host, &policy, &request_with_tokens("acme", 600)).0, 0);
    assert_eq!(reject_status(&host, &policy, &request_with_tokens("acme", 600)).0, 429);
    assert_eq!(
        reject_status(&host, &policy, &request_with_tokens("acme", 400)).0,
        0,
        "exactly the remaining quota"
    );
    assert_eq!(reject_status(&host, &policy, &request_with_tokens("acme", 1)).0, 429);
    assert_eq!(
        reject_status(&host, &policy, &request_with_tokens("acme", 1001)),
        (413, None),
        "does not fit into any window"
    );
    assert_eq!(host.state("requests/16666666/t=acme"), Some(2i64.to_le_bytes().to_vec()));
    assert_eq!(host.state("tokens/16666666/t=acme"), Some(1000i64.to_le_bytes().to_vec()));
}

#[test]
fn missing_output_limit_is_replaced_by_the_default() {
    let (host, policy) = (host(), quota(r#"{"default": {"tokens": 500}, "output-tokens": 300}"#));
    assert_eq!(
        [
            reject_status(&host, &policy, &request_from("a")).0,
            reject_status(&host, &policy, &request_from("a")).0
        ],
        [0, 429]
    );
}

#[test]
fn unknown_tenants_share_or_are_rejected_as_configured() {
    let host = host();
    let shared =
        quota(r#"{"tenants": {"acme": {}}, "default": {"requests": 1}, "unknown": "shared"}"#);
    assert_eq!(
        [
            reject_status(&host, &shared, &request_from("a")).0,
            reject_status(&host, &shared, &request_from("b")).0
        ],
        [0, 429]
    );
    assert_eq!(reject_status(&host, &shared, &anonymous()).0, 429);
    assert_eq!(reject_status(&host, &shared, &request_from("acme")).0, 0);
    let strict = quota(r#"{"tenants": {"acme": {}}, "unknown": "reject"}"#);
    assert_eq!(
        [
            reject_status(&host, &strict, &request_from("a")).0,
            reject_status(&host, &strict, &anonymous()).0
        ],
        [403, 403]
    );
    assert_eq!(reject_status(&host, &strict, &request_from("acme")).0, 0);
}

#[test]
fn queue_advice_is_given_only_with_a_priority() {
    let (host, policy) =
        (host(), quota(r#"{"tenants": {"acme": {"priority": 7}, "slow": {"priority": -3}}}"#));
    let priority = |tenant| {
        host.advise(&policy, &request_from(tenant)).unwrap().queue.map(|queue| queue.priority)
    };
    assert_eq!([priority("acme"), priority("slow"), priority("other")], [Some(7), Some(-3), None]);
}

#[test]
fn retries_are_not_counted() {
    let (host, policy) = (host(), quota(r#"{"default": {"requests": 1, "priority": 2}}"#));
    assert_eq!(reject_status(&host, &policy, &request_from("a")).0, 0);
    let mut retry = request_from("a");
    retry.context.attempt = 1;
    let advice = host.advise(&policy, &retry).unwrap();
    assert!(advice.reject.is_none() && advice.queue.unwrap().priority == 2);
}

#[test]
fn requests_are_admitted_and_counted_as_unmetered_if_the_state_is_full() {
    let (host, policy) = (host(), quota(r#"{"default": {"requests": 1}}"#));
    host.fill_state();
    assert_eq!(
        [
            reject_status(&host, &policy, &request_from("a")).0,
            reject_status(&host, &policy, &request_from("a")).0
        ],
        [0, 0]
    );
    assert_eq!(host.counter("unmetered"), 2);
    assert!(
        host.log_lines()[0].1.contains("failed to count requests: account=a"),
        "{:?}",
        host.log_lines()
    );
}

#[test]
fn tenant_names_of_any_form_have_separate_accounts() {
    let (host, policy) = (host(), quota(r#"{"default": {"requests": 1}}"#));
    let long = "x".repeat(500);
    for name in [long.as_str(), &long[1..], "(none)", "#", "="] {
        assert_eq!(
            [
                reject_status(&host, &policy, &request_from(name)).0,
                reject_status(&host, &policy, &request_from(name)).0
            ],
            [0, 429],
            "{name}"
        );
    }
    assert_eq!(
        reject_status(&host, &policy, &anonymous()).0,
        0,
        "a tenant named (none) is separate from requests without a tenant"
    );
    assert_eq!(host.counter("unmetered"), 0);
}

#[test]
fn invalid_configuration_names_the_key() {
    for (config, part) in [
        (r#"{"tenant": {}}"#, "tenant: unknown key"),
        (r#"{"tenants": {"acme": {"request": 5}}}"#, "tenants.acme.request: unknown key"),
        (
            r#"{"tenants": {"acme": {"requests": -1}}}"#,
            "tenants.acme.requests: expected an integer from 0",
        ),
        (r#"{"tenants": {"acme": 5}}"#, "tenants.acme: expected an object"),
        (
            r#"{"default": {"priority": 11}}"#,
            "default.priority: expected an integer from -10 to 10",
        ),
        (r#"{"unknown": "deny"}"#, "unknown: expected \"each\", \"shared\" or \"reject\""),
        (r#"{"window-s": 0}"#, "window-s: expected an integer from 1 to 86400"),
        (r#"{"tenants": {"a": {}, "a": {}}}"#, "tenants.a: duplicate key"),
    ] {
        match Quota::configure(config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}
