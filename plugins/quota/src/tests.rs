use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};

use super::*;

fn quota(config: &str) -> Quota {
    Quota::configure(config).unwrap()
}

fn host() -> FakeHost {
    FakeHost::new(FakeFleet::new(&["a"])).at(1_000_000_005_000)
}

fn of(tenant: &str) -> FakeRequest {
    anonymous().of_tenant(tenant)
}

fn anonymous() -> FakeRequest {
    FakeRequest::chat(r#"{"model": "a", "messages": []}"#)
}

/// A request for so many tokens in all.
fn large(tenant: &str, tokens: u32) -> FakeRequest {
    let mut request = of(tenant);
    request.context.prompt_tokens = tokens / 2;
    request.context.max_output_tokens = tokens - tokens / 2;
    request
}

/// Status of the answer, 0 for none, and the seconds to come again in.
fn ask(host: &FakeHost, policy: &Quota, request: &FakeRequest) -> (u16, Option<u32>) {
    let advice = host.advise(policy, request).unwrap();
    advice.reject.map_or((0, None), |rejection| (rejection.status, rejection.retry_after_s))
}

#[test]
fn requests_are_limited_by_window_and_by_tenant() {
    let (host, policy) =
        (host(), quota(r#"{"tenants": {"acme": {"requests": 2}}, "default": {"requests": 1}}"#));
    assert_eq!(
        [ask(&host, &policy, &of("acme")), ask(&host, &policy, &of("acme"))],
        [(0, None); 2]
    );
    // A billion seconds and five are 16666666 minutes and 45 s.
    assert_eq!(ask(&host, &policy, &of("acme")), (429, Some(15)));
    assert_eq!(ask(&host, &policy, &of("other")), (0, None));
    assert_eq!(ask(&host, &policy, &of("third")).0, 0, "others do not share");
    assert_eq!(ask(&host, &policy, &of("other")).0, 429);
    assert_eq!(ask(&host, &policy, &anonymous()).0, 0);
    assert_eq!(ask(&host, &policy, &anonymous()).0, 429);
    assert_eq!((host.counted("admitted"), host.counted("refused")), (5, 3));
    host.advance(14_999);
    assert_eq!(ask(&host, &policy, &of("acme")), (429, Some(1)));
    host.advance(1);
    assert_eq!(ask(&host, &policy, &of("acme")), (0, None));
}

#[test]
fn tokens_are_limited_and_what_is_refused_takes_nothing() {
    let (host, policy) =
        (host(), quota(r#"{"tenants": {"acme": {"requests": 3, "tokens": 1000}}}"#));
    assert_eq!(ask(&host, &policy, &large("acme", 600)).0, 0);
    assert_eq!(ask(&host, &policy, &large("acme", 600)).0, 429);
    assert_eq!(ask(&host, &policy, &large("acme", 400)).0, 0, "exactly what is left");
    assert_eq!(ask(&host, &policy, &large("acme", 1)).0, 429);
    assert_eq!(ask(&host, &policy, &large("acme", 1001)), (413, None), "no window has room for it");
    assert_eq!(host.state("requests/16666666/t=acme"), Some(2i64.to_le_bytes().to_vec()));
    assert_eq!(host.state("tokens/16666666/t=acme"), Some(1000i64.to_le_bytes().to_vec()));
}

#[test]
fn output_without_a_limit_is_assumed() {
    let (host, policy) = (host(), quota(r#"{"default": {"tokens": 500}, "output-tokens": 300}"#));
    assert_eq!([ask(&host, &policy, &of("a")).0, ask(&host, &policy, &of("a")).0], [0, 429]);
}

#[test]
fn unknown_tenants_share_or_are_refused_if_the_operator_says_so() {
    let host = host();
    let shared =
        quota(r#"{"tenants": {"acme": {}}, "default": {"requests": 1}, "unknown": "shared"}"#);
    assert_eq!([ask(&host, &shared, &of("a")).0, ask(&host, &shared, &of("b")).0], [0, 429]);
    assert_eq!(ask(&host, &shared, &anonymous()).0, 429);
    assert_eq!(ask(&host, &shared, &of("acme")).0, 0);
    let strict = quota(r#"{"tenants": {"acme": {}}, "unknown": "refuse"}"#);
    assert_eq!([ask(&host, &strict, &of("a")).0, ask(&host, &strict, &anonymous()).0], [403, 403]);
    assert_eq!(ask(&host, &strict, &of("acme")).0, 0);
}

#[test]
fn priorities_are_given_and_the_queue_is_left_alone_without_one() {
    let (host, policy) =
        (host(), quota(r#"{"tenants": {"acme": {"priority": 7}, "slow": {"priority": -3}}}"#));
    let priority =
        |tenant| host.advise(&policy, &of(tenant)).unwrap().queue.map(|queue| queue.priority);
    assert_eq!([priority("acme"), priority("slow"), priority("other")], [Some(7), Some(-3), None]);
}

#[test]
fn a_second_decision_is_no_second_request() {
    let (host, policy) = (host(), quota(r#"{"default": {"requests": 1, "priority": 2}}"#));
    assert_eq!(ask(&host, &policy, &of("a")).0, 0);
    let mut again = of("a");
    again.context.attempt = 1;
    let advice = host.advise(&policy, &again).unwrap();
    assert!(advice.reject.is_none() && advice.queue.unwrap().priority == 2);
}

#[test]
fn without_room_in_the_state_requests_go_through_and_are_counted() {
    let (host, policy) = (host(), quota(r#"{"default": {"requests": 1}}"#));
    host.fill_state();
    assert_eq!([ask(&host, &policy, &of("a")).0, ask(&host, &policy, &of("a")).0], [0, 0]);
    assert_eq!(host.counted("unmetered"), 2);
    assert!(host.lines()[0].1.contains("requests of a are not counted"), "{:?}", host.lines());
}

#[test]
fn names_of_any_length_and_form_have_accounts_of_their_own() {
    let (host, policy) = (host(), quota(r#"{"default": {"requests": 1}}"#));
    let long = "x".repeat(500);
    for name in [long.as_str(), &long[1..], "(none)", "#", "="] {
        assert_eq!(
            [ask(&host, &policy, &of(name)).0, ask(&host, &policy, &of(name)).0],
            [0, 429],
            "{name}"
        );
    }
    assert_eq!(ask(&host, &policy, &anonymous()).0, 0, "a tenant called (none) is not no tenant");
    assert_eq!(host.counted("unmetered"), 0);
}

#[test]
fn wrong_configurations_name_the_key() {
    for (config, part) in [
        (r#"{"tenant": {}}"#, "there is no key `tenant`"),
        (r#"{"tenants": {"acme": {"request": 5}}}"#, "there is no key `tenants.acme.request`"),
        (
            r#"{"tenants": {"acme": {"requests": -1}}}"#,
            "tenants.acme.requests: must be a whole number from 0",
        ),
        (r#"{"tenants": {"acme": 5}}"#, "tenants.acme: must be an object"),
        (
            r#"{"default": {"priority": 11}}"#,
            "default.priority: must be a whole number from -10 to 10",
        ),
        (r#"{"unknown": "deny"}"#, "unknown: must be \"each\", \"shared\" or \"refuse\""),
        (r#"{"window-s": 0}"#, "window-s: must be a whole number from 1 to 86400"),
        (r#"{"tenants": {"a": {}, "a": {}}}"#, "tenants.a: is given twice"),
    ] {
        match Quota::configure(config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
