use axum::body::Bytes;
use http::{Method, response};
use pointsman_access::ApiKey;
use pointsman_domain::BuiltIn;

use super::super::tests::TestPolicies;
use super::super::{Access, router};
use super::*;
use crate::tests::TestGateway;
use crate::{AuditLog, ConsoleSettings};

const TOKEN: &str = "t0ken-0123456789";
const OWN: (&str, &str) = ("sec-fetch-site", "same-origin");
const FOREIGN: (&str, &str) = ("sec-fetch-site", "cross-site");

/// A listener with a token, or without one.
struct TestConsole {
    router: Router,
    audit: AuditLog,
    _gateway: TestGateway,
}

impl TestConsole {
    async fn new(token: Option<&str>) -> Self {
        let audit = AuditLog::default();
        let gateway = TestGateway::with(BuiltIn, |parts| parts.audit = audit.clone()).await;
        let keys = token.map_or_else(Keys::default, |token| Keys::new([ApiKey::new(token, "o")]));
        let access = Access::new(keys);
        let router = router(&gateway.gateway, Arc::new(TestPolicies), &access);
        Self { router, audit, _gateway: gateway }
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> (response::Parts, Bytes) {
        let request = headers
            .iter()
            .fold(Request::builder().method(method).uri(path), |all, one| all.header(one.0, one.1));
        let response = self.router.call(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        (head, body.collect().await.unwrap().to_bytes())
    }

    /// Returns the status and the code of the error, if it is one.
    async fn status(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, String) {
        let (head, body) = self.send(method, path, headers, "").await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
        (head.status.as_u16(), code)
    }

    /// Logs in; returns the cookie and the token of the session.
    async fn log_in(&mut self) -> (String, String) {
        let body = r#"{"token": "t0ken-0123456789", "operator": "ann"}"#;
        let (head, _) = self.send(Method::POST, "/console/api/session", &[OWN], body).await;
        assert_eq!(head.status, 204);
        let cookie = head.headers["set-cookie"].to_str().unwrap();
        let (pair, attributes) = cookie.split_once(';').unwrap();
        for part in ["Path=/console/api", "HttpOnly", "SameSite=Strict", "Max-Age=43200"] {
            assert!(attributes.split(';').any(|found| found.trim() == part), "{attributes}");
        }
        assert!(!attributes.contains("Secure"), "the listener has no TLS");
        let pair = pair.to_owned();
        let session = self.session(&[("cookie", &pair)]).await;
        assert_eq!(
            (&session["authenticated"], &session["operator"]),
            (&true.into(), &"ann".into())
        );
        (pair, session["csrf"].as_str().unwrap().to_owned())
    }

    async fn session(&mut self, headers: &[(&str, &str)]) -> serde_json::Value {
        let (head, body) = self.send(Method::GET, "/console/api/session", headers, "").await;
        assert_eq!(head.status, 200);
        serde_json::from_slice(&body).unwrap()
    }
}

#[tokio::test]
async fn page_and_its_files_are_served_with_a_strict_policy() {
    let mut test = TestConsole::new(Some(TOKEN)).await;
    let (head, _) = test.send(Method::GET, "/console", &[], "").await;
    assert_eq!(head.status, 308);
    assert_eq!(head.headers["location"], "console/");
    let (_, page) = test.send(Method::GET, "/console/", &[], "").await;
    let page = String::from_utf8(page.into()).unwrap();
    assert!(!page.contains("<script>") && !page.contains("style=") && !page.contains("onclick"));
    for name in assets::names() {
        let path = format!("/console/{name}");
        let (head, body) = test.send(Method::GET, &path, &[], "").await;
        assert!(head.status.is_success() && !body.is_empty(), "{name}");
        let policy = head.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{name}");
        assert_eq!(head.headers["x-content-type-options"], "nosniff");
        let tag = head.headers["etag"].to_str().unwrap().to_owned();
        let (head, body) = test.send(Method::GET, &path, &[("if-none-match", &tag)], "").await;
        assert_eq!((head.status.as_u16(), body.len()), (304, 0), "{name}");
        let text = String::from_utf8(body.into()).unwrap();
        assert!(!text.contains("innerHTML ="), "{name}");
    }
    let missing = ["/console/x.js", "/console/../admin", "/console/a/b"];
    for path in missing {
        assert_ne!(test.status(Method::GET, path, &[]).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn sessions_are_begun_by_the_token_and_end() {
    let mut test = TestConsole::new(Some(TOKEN)).await;
    let session = test.session(&[]).await;
    assert_eq!(session["authenticated"], false);
    let lanes = "/console/api/lanes";
    let required = (401, "session_required".to_owned());
    assert_eq!(test.status(Method::GET, lanes, &[]).await, required);
    for (body, headers, status) in [
        (r#"{"token": "guess"}"#, &[OWN][..], 401),
        ("{\"token\": \"a\\nb\"}", &[OWN], 401),
        (r#"{"token": "t0ken-0123456789"}"#, &[FOREIGN], 403),
        (r#"{"token": "t0ken-0123456789"}"#, &[("origin", "http://evil.example")], 403),
        ("{}", &[OWN], 400),
    ] {
        let (head, _) = test.send(Method::POST, "/console/api/session", headers, body).await;
        assert_eq!(head.status, status, "{body}");
        assert!(!head.headers.contains_key("set-cookie"));
    }
    let (cookie, csrf) = test.log_in().await;
    let with_cookie = [("cookie", cookie.as_str())];
    let (head, body) = test.send(Method::GET, lanes, &with_cookie, "").await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((head.status.as_u16(), &body["lanes"][0]["name"]), (200, &"a".into()));
    assert_eq!(head.headers["cache-control"], "no-store");
    // The cookie is for the console only, and not for paths of engines.
    assert_eq!(test.status(Method::GET, "/lanes", &with_cookie).await.0, 401);
    let engine = test.status(Method::GET, "/console/api/upstream/a/health", &with_cookie).await;
    assert_eq!(engine.0, 404);
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(test.status(Method::GET, lanes, &[("authorization", &bearer)]).await.0, 200);
    let all = [with_cookie[0], ("x-pointsman-csrf", csrf.as_str()), OWN];
    assert_eq!(test.status(Method::DELETE, "/console/api/session", &all[..1]).await.0, 403);
    assert_eq!(test.status(Method::DELETE, "/console/api/session", &all).await.0, 204);
    assert_eq!(test.status(Method::GET, lanes, &with_cookie).await, required);
}

#[tokio::test]
async fn requests_that_change_something_need_token_and_origin() {
    let mut test = TestConsole::new(Some(TOKEN)).await;
    let (cookie, csrf) = test.log_in().await;
    let (cookie, token) = (("cookie", cookie.as_str()), ("x-pointsman-csrf", csrf.as_str()));
    let (own_origin, other_origin) = (("origin", "http://h:1"), ("origin", "http://h:2"));
    let host = ("host", "h:1");
    for (headers, status) in [
        (&[cookie, token, OWN][..], 200),
        (&[cookie, token, own_origin, host], 200),
        (&[cookie, token, other_origin, host], 403),
        (&[cookie, token, FOREIGN], 403),
        (&[cookie, token], 403),
        (&[cookie, OWN], 403),
        (&[cookie, OWN, ("x-pointsman-csrf", "pm_guess")], 403),
        (&[token, OWN], 401),
    ] {
        let path = "/console/api/policies/one/disable";
        let found = test.status(Method::POST, path, headers).await;
        assert_eq!(found.0, status, "{headers:?}: {}", found.1);
    }
    let actions = test.audit.list();
    let by: Vec<_> = actions.iter().map(|action| action["by"].as_str().unwrap()).collect();
    assert_eq!(by, ["ann", "ann"], "only what was done is noted");
    assert_eq!(actions[0]["action"], "POST /policies/one/disable");
    assert!(actions[0]["via"].as_str().unwrap().starts_with("session "));
}

#[tokio::test]
async fn open_listener_needs_no_session_and_refuses_other_pages() {
    let mut test = TestConsole::new(None).await;
    let session = test.session(&[]).await;
    assert_eq!((&session["authenticated"], &session["needs_token"]), (&true.into(), &false.into()));
    for path in ["/console/api/policies/one/disable", "/policies/one/disable"] {
        for (headers, status) in [(&[][..], 200), (&[OWN], 200), (&[FOREIGN], 403)] {
            assert_eq!(test.status(Method::POST, path, headers).await.0, status, "{path}");
        }
    }
    let program = r#"{"program": "/bin/x"}"#;
    let (head, _) = test.send(Method::POST, "/console/api/upgrade", &[OWN], program).await;
    assert_eq!(head.status, 400, "pages do not name programs");
}

#[tokio::test]
async fn events_begin_with_the_state_and_end_with_the_session() {
    let mut test = TestConsole::new(Some(TOKEN)).await;
    let (cookie, csrf) = test.log_in().await;
    let request = Request::builder().uri("/console/api/events").header("cookie", &cookie);
    let request = request.body(Body::empty()).unwrap();
    let response = test.router.call(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    let data = first.strip_prefix("event: state\ndata: ").unwrap();
    let state: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(state["lanes"][1]["name"], "b");
    assert!(state["requests"].is_array() && state["groups"].is_array());
    let all = [("cookie", cookie.as_str()), ("x-pointsman-csrf", &csrf), OWN];
    assert_eq!(test.status(Method::DELETE, "/console/api/session", &all).await.0, 204);
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&rest).contains("event: state"));
}

#[tokio::test]
async fn playground_sends_requests_of_clients() {
    let mut test = TestConsole::new(Some(TOKEN)).await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}]}"#;
    let path = "/playground/chat/completions";
    let (head, _) = test.send(Method::POST, path, &headers, body).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.headers["x-pointsman-lane"], "a");
    assert_eq!(test.status(Method::POST, "/playground/x", &headers).await.0, 404);
}

#[tokio::test]
async fn console_can_be_turned_off() {
    let gateway = TestGateway::with(BuiltIn, |parts| {
        parts.settings.console = ConsoleSettings { enabled: false, client_listener: false };
    })
    .await;
    let access = Access::new(Keys::default());
    let mut router = router(&gateway.gateway, Arc::new(TestPolicies), &access);
    for (path, status) in [("/console/", 404), ("/console/api/session", 404), ("/lanes", 200)] {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        assert_eq!(router.call(request).await.unwrap().status(), status, "{path}");
    }
}
