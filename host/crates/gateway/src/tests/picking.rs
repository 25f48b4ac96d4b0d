//! Requests that a proxy sends to the engines.

use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use pointsman_domain::{BuiltIn, LaneState};
use pointsman_fleet::{ProxiedRequest, ProxiedResponse, ProxySide, proxied_body};

use super::TestGateway;
use crate::headers::FromEngine;
use crate::{ListenerSettings, Picker, ProxyLanes, Settings};

const BODY: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":50}"#;

type Serving = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A gateway whose engines a proxy reaches.
struct Proxied {
    gateway: TestGateway,
    picker: Picker,
    /// The engines' hosts and ports, of the lanes `a` and `b`.
    endpoints: [String; 2],
}

impl Proxied {
    async fn new() -> Self {
        let gateway = TestGateway::new(BuiltIn).await;
        let pipeline = gateway.gateway.pipeline();
        let lanes = ProxyLanes::from_spec(&gateway.spec);
        let endpoint = |lane: &str| lanes.endpoint(lane).unwrap().to_owned();
        let endpoints = [endpoint("a"), endpoint("b")];
        let settings = Settings { proxy_lanes: Some(Arc::new(lanes)), ..pipeline.settings.clone() };
        let config = crate::GatewayConfig { settings, recorder: None, listeners: Vec::new() };
        gateway.gateway.reconfigure(config);
        let picker = Picker::new(&gateway.gateway, ListenerSettings::default());
        Self { gateway, picker, endpoints }
    }

    fn begin(&self, path: &str, subset: Option<Vec<String>>) -> (Serving, ProxySide) {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.header("cookie", "a=b").body(Body::from(BODY)).unwrap();
        let (serving, side) = self.picker.begin(request, subset);
        (Box::pin(serving), side)
    }

    /// Begins a request, and returns what the proxy is asked to send.
    async fn sent(&self, subset: Option<Vec<String>>) -> (Serving, ProxiedRequest, Respond) {
        let (mut serving, side) = self.begin("/v1/chat/completions", subset);
        let ProxySide { request, response } = side;
        let sent = tokio::select! {
            sent = request => sent.unwrap(),
            response = &mut serving => panic!("{response:?}"),
        };
        (serving, sent, Respond(response))
    }
}

/// Reports the engine's response.
struct Respond(tokio::sync::oneshot::Sender<ProxiedResponse>);

impl Respond {
    fn with(self, status: u16, body: &'static str, served: Option<&str>) {
        let (sender, received) = proxied_body();
        sender.send(Bytes::from_static(body.as_bytes()));
        sender.end();
        let response = http::Response::builder().status(status);
        let response = response.header("content-type", "application/json");
        let response = response.body(received).unwrap();
        self.0.send(ProxiedResponse { served: served.map(str::to_owned), response }).unwrap();
    }
}

async fn text(response: Response) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

const USED: &str = r#"{"model":"m","usage":{"prompt_tokens":3,"completion_tokens":2}}"#;

#[tokio::test]
async fn proxy_gets_the_endpoints_of_the_plan_and_its_response_is_the_clients() {
    let proxied = Proxied::new().await;
    let (serving, sent, respond) = proxied.sent(None).await;
    let [a, b] = proxied.endpoints.clone();
    assert_eq!((sent.lane.as_str(), &sent.endpoint, sent.fallbacks), ("a", &a, vec![b]));
    let (head, body) = sent.request.into_parts();
    assert_eq!(head.uri.path(), "/v1/chat/completions");
    assert!(head.headers.contains_key("x-request-id") && !head.headers.contains_key("cookie"));
    assert_eq!(body.collect().await.unwrap().to_bytes(), BODY);
    respond.with(200, USED, Some(&a));
    let response = serving.await;
    assert!(response.extensions().get::<FromEngine>().is_some());
    assert_eq!(header(&response, "x-pointsman-lane"), "a");
    assert_eq!(text(response).await, USED);
    let ended = proxied.gateway.metric("pointsman_requests_total");
    assert!(ended.contains("outcome=\"answered\""), "{ended}");
    assert_eq!(proxied.gateway.attempted_lanes(), "", "the host sends nothing itself");
}

#[tokio::test]
async fn endpoint_that_served_has_the_outcome_even_if_its_slots_are_in_use() {
    let proxied = Proxied::new().await;
    let b = proxied.endpoints[1].clone();
    // The lane b has two slots.
    let only_b = || Some(vec![b.clone()]);
    let (first, second) = (proxied.sent(only_b()).await, proxied.sent(only_b()).await);
    assert_eq!((first.1.lane.as_str(), first.1.fallbacks.len()), ("b", 0));
    let (serving, _, respond) = proxied.sent(None).await;
    respond.with(200, USED, Some(&b));
    let response = serving.await;
    assert_eq!(header(&response, "x-pointsman-lane"), "b");
    assert_eq!(header(&response, "x-pointsman-attempts"), "2");
    text(response).await;
    let ended = proxied.gateway.metric("pointsman_requests_total");
    assert!(ended.contains("outcome=\"fell-back\""), "{ended}");
    drop((first, second));
}

#[tokio::test]
async fn error_is_that_of_the_last_attempt_that_was_made() {
    let proxied = Proxied::new().await;
    let a = proxied.endpoints[0].clone();
    let (serving, _, respond) = proxied.sent(None).await;
    respond.with(500, "{}", Some(&a));
    let response = serving.await;
    assert!(response.extensions().get::<FromEngine>().is_none());
    assert_eq!(header(&response, "x-pointsman-code"), "engine_error");
}

#[tokio::test]
async fn only_endpoints_of_the_subset_are_used() {
    let proxied = Proxied::new().await;
    for subset in [vec![], vec!["10.0.0.1:1".to_owned()]] {
        let (serving, side) = proxied.begin("/v1/chat/completions", Some(subset));
        let response = serving.await;
        assert_eq!(response.status(), 503);
        assert_eq!(header(&response, "x-pointsman-code"), "no_lane_available");
        assert!(side.request.await.is_err());
    }
}

#[tokio::test]
async fn paths_that_are_not_endpoints_are_answered_by_the_host() {
    let proxied = Proxied::new().await;
    let (serving, _) = proxied.begin("/v1/other", None);
    assert_eq!(serving.await.status(), 404);
    let request = Request::get("/v1/models").body(Body::empty()).unwrap();
    let (serving, _) = proxied.picker.begin(request, None);
    assert!(text(serving.await).await.contains("\"m\""));
}

#[tokio::test]
async fn request_of_a_proxy_that_is_gone_ends() {
    let proxied = Proxied::new().await;
    let (serving, _, respond) = proxied.sent(None).await;
    drop((serving, respond));
    let ended = proxied.gateway.metric("pointsman_requests_total");
    assert!(ended.contains("outcome=\"client-gone\""), "{ended}");
    let view = proxied.gateway.gateway.pipeline().fleet.view();
    assert!(view.stats().all(|stat| stat.state == LaneState::Ready));
}
