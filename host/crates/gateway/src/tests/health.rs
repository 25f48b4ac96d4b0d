//! `/health` of the host and of its lanes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use pointsman_access::{ApiKey, Keys};
use pointsman_domain::{BuiltIn, LaneState};
use serde_json::{Value, json};

use super::{API_KEY, TestGateway};
use crate::settings::{HealthRule, ListenerSettings};

/// Sends a check to a listener with the rule, and returns status, `Retry-After` and body.
async fn check(
    gateway: &TestGateway,
    health: HealthRule,
    method: Method,
    path: &str,
    key: &str,
) -> (StatusCode, bool, Value) {
    let settings = ListenerSettings { health, ..ListenerSettings::default() };
    let routes = gateway.routes_with(settings);
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {key}"));
    let response = routes.serve(request.body(Body::empty()).unwrap()).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let has_retry_after = head.headers.contains_key("retry-after");
    (head.status, has_retry_after, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn health_follows_the_rule_of_the_listener_and_the_lane_of_the_query() {
    let gateway = TestGateway::with(BuiltIn, |parts| {
        parts.keys = Keys::new([ApiKey::new(API_KEY, "acme")]);
    })
    .await;
    let ok = (StatusCode::OK, false, json!({ "status": "ok" }));
    let rules = [HealthRule::AnyLane, HealthRule::AllLanes];
    for rule in rules {
        for (path, key) in [
            ("/health", ""),
            ("/health?", ""),
            ("/health?lane=a", API_KEY),
            ("/health?lane=c&x=y", API_KEY),
        ] {
            assert_eq!(check(&gateway, rule, Method::GET, path, key).await, ok, "{path}");
            let (status, _, body) = check(&gateway, rule, Method::HEAD, path, key).await;
            assert_eq!((status, body), (StatusCode::OK, Value::Null), "{path}");
        }
        for (path, key, status, code) in [
            ("/health?lane=x%20y", API_KEY, StatusCode::NOT_FOUND, "lane_not_found"),
            ("/health?lane=x%20y", "", StatusCode::UNAUTHORIZED, "invalid_api_key"),
            ("/health?lane=a", "", StatusCode::UNAUTHORIZED, "invalid_api_key"),
        ] {
            let (found, _, body) = check(&gateway, rule, Method::GET, path, key).await;
            assert_eq!((found, &body["error"]["code"]), (status, &json!(code)), "{path} {body}");
        }
    }
    // The engine of lane `c` goes away.
    gateway.stop_engine("c");
    let down = |view: &Arc<pointsman_domain::FleetView>| {
        view.stats().any(|stat| stat.state == LaneState::Down)
    };
    gateway.gateway.pipeline().fleet.wait_for(down).await;
    let [any, all] = rules;
    let get = async |rule, path, key| check(&gateway, rule, Method::GET, path, key).await;
    assert_eq!(get(any, "/health", API_KEY).await, ok);
    assert_eq!(get(any, "/health?lane=a", API_KEY).await, ok);
    for (rule, path) in [(all, "/health"), (any, "/health?lane=c"), (all, "/health?lane=c")] {
        let (status, has_retry_after, body) = get(rule, path, API_KEY).await;
        assert_eq!((status, has_retry_after), (StatusCode::SERVICE_UNAVAILABLE, true), "{path}");
        let reason = body["reason"].as_str().unwrap();
        assert!(reason.contains("c is down") && reason.contains("[engine_unreachable]"), "{body}");
        assert!(!reason.contains("127.0.0.1"), "{body}");
    }
    let (status, _, body) = get(all, "/health", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, json!({ "status": "unavailable" }), "lanes are named with a key only");
    gateway.drain.begin();
    assert_eq!(get(any, "/health?lane=a", API_KEY).await.0, StatusCode::SERVICE_UNAVAILABLE);
}
