use http::{Method, StatusCode};
use pointsman_domain::BuiltIn;
use tower_service::Service as _;

use super::*;
use crate::error_code::ErrorCode;
use crate::tests::TestGateway;

/// Two policies, of which only `one` accepts commands.
pub(super) struct TestPolicies;

impl PolicyAdmin for TestPolicies {
    fn list(&self) -> Value {
        json!([{ "name": "one" }, { "name": "two" }])
    }

    fn show(&self, name: &str) -> Option<Value> {
        ["one", "two"].contains(&name).then(|| json!({ "name": name }))
    }

    fn command(&self, name: &str, command: PolicyCommand, _: &str) -> Result<Value, AdminError> {
        match (name, command) {
            ("one", PolicyCommand::Enable) => panic!("internal error"),
            ("one", command) => Ok(json!(format!("{command:?}"))),
            ("two", _) => Err(AdminError::new(ErrorCode::NoEarlierVersion, "no earlier version")),
            _ => Err(not_found(self, name)),
        }
    }

    fn reload(&self) -> Value {
        json!({ "policies": ["reloaded"] })
    }

    fn upgrade(
        &self,
        program: Option<PathBuf>,
        timeout: Option<Duration>,
    ) -> Result<Value, AdminError> {
        Ok(json!({ "program": program, "timeout_s": timeout.map(|timeout| timeout.as_secs()) }))
    }

    fn plan(&self, text: Option<String>) -> Value {
        json!({ "text": text })
    }
}

impl StateAdmin for TestPolicies {
    fn states(&self) -> Result<Value, AdminError> {
        Ok(json!(["one"]))
    }

    fn state(&self, policy: &str, key: Option<&str>) -> Result<Value, AdminError> {
        match key {
            Some("x") => Err(AdminError::new(ErrorCode::StateKeyNotFound, "unknown key `x`")),
            key => Ok(json!([policy, key])),
        }
    }

    fn clear_state(&self, policy: &str, key: Option<&str>) -> Result<usize, AdminError> {
        Ok(policy.len() + key.map_or(0, str::len))
    }
}

async fn send(
    keys: &Keys,
    method: &Method,
    path: &str,
    header: Option<&str>,
    body: &'static str,
) -> (StatusCode, Value) {
    let test = TestGateway::new(BuiltIn).await;
    let access = Access::new(keys.clone());
    let mut router = router(&test.gateway, Arc::new(TestPolicies), &access);
    let mut request = Request::builder().method(method).uri(path);
    if let Some(header) = header {
        request = request.header("authorization", header);
    }
    let response = router.call(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    assert!(head.headers.contains_key("x-request-id") || head.status.is_success());
    let body = body.collect().await.unwrap().to_bytes();
    (
        head.status,
        serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into()),
    )
}

#[tokio::test]
async fn queries_and_commands_reach_policies() {
    let one = |command: &str| json!(command);
    let open = Keys::default();
    for (method, path, body, expected) in [
        (
            Method::GET,
            "/policies",
            "",
            json!({ "policies": [{ "name": "one" }, { "name": "two" }] }),
        ),
        (Method::GET, "/policies/two", "", json!({ "name": "two" })),
        (Method::POST, "/policies/one/rollback", "", one("RollBack { to: None }")),
        (
            Method::POST,
            "/policies/one/rollback",
            "{\"version\": \"ab\"}",
            one("RollBack { to: Some(\"ab\") }"),
        ),
        (Method::POST, "/policies/one/promote", " {} ", one("Promote { version: None }")),
        (Method::POST, "/policies/one/disable", "{\"version\": null}", one("Disable")),
        (Method::POST, "/reload", "", json!({ "policies": ["reloaded"] })),
        (Method::POST, "/upgrade", "", json!({ "program": null, "timeout_s": null })),
        (
            Method::POST,
            "/upgrade",
            "{\"program\": \"/p\", \"timeout_s\": 9999}",
            json!({ "program": "/p", "timeout_s": 3600 }),
        ),
        (Method::POST, "/reload?dry-run=true", "", json!({ "text": null })),
        (Method::POST, "/reload?check=true", "x = 1", json!({ "text": "x = 1" })),
        (Method::GET, "/state", "", json!({ "states": ["one"] })),
        (Method::GET, "/state/p%2Fq", "", json!(["p/q", null])),
        (Method::GET, "/state/p?key=a%20b", "", json!(["p", "a b"])),
        (Method::POST, "/state/one/clear?key=ab", "", json!({ "cleared": 5 })),
    ] {
        assert_eq!(
            send(&open, &method, path, None, body).await,
            (StatusCode::OK, expected),
            "{method} {path}"
        );
    }
    let (status, reply) = send(&open, &Method::GET, "/status", None, "").await;
    assert_eq!((status, &reply["lanes"][0]["name"]), (StatusCode::OK, &json!("a")));
    let (status, reply) = send(&open, &Method::GET, "/metrics", None, "").await;
    assert!(status.is_success() && reply.as_str().unwrap().contains("pointsman_accepted_total"));
}

#[tokio::test]
async fn errors_have_codes_and_messages() {
    let open = Keys::default();
    for (method, path, body, status, code, part) in [
        (
            Method::GET,
            "/policies/x",
            "",
            404,
            "policy_not_found",
            "unknown policy `x`: expected `one` or `two`",
        ),
        (Method::GET, "/state/p?key=x", "", 404, "state_key_not_found", "`x`"),
        (Method::GET, "/usage?hosts=all", "", 409, "usage_not_shared", "[shared-state]"),
        (Method::GET, "/usage?hosts=some", "", 400, "invalid_request", "hosts"),
        (Method::GET, "/usage?by=host", "", 400, "invalid_request", "host"),
        (Method::POST, "/state/p/clear?kye=x", "", 400, "invalid_request", "kye"),
        (Method::POST, "/policies/x/disable", "", 404, "policy_not_found", "policy `x`"),
        (Method::POST, "/policies/two/rollback", "", 409, "no_earlier_version", ""),
        (
            Method::POST,
            "/policies/one/explode",
            "",
            404,
            "not_found",
            "rollback, promote, disable or enable",
        ),
        (Method::POST, "/policies/one/promote", "[1]", 400, "invalid_request", "version"),
        (
            Method::POST,
            "/policies/one/promote",
            "{\"version\": 1}",
            400,
            "invalid_request",
            "version",
        ),
        (
            Method::POST,
            "/policies/one/promote",
            "{\"to\": \"x\"}",
            400,
            "invalid_request",
            "version",
        ),
        (
            Method::POST,
            "/policies/one/disable",
            "{\"version\": \"x\"}",
            400,
            "invalid_request",
            "`disable`",
        ),
        (Method::POST, "/policies/one/enable", "", 500, "internal_error", "host log (request "),
        (Method::POST, "/policies", "", 405, "method_not_allowed", "use GET, HEAD"),
        (Method::POST, "/upgrade", "{\"programm\": \"/p\"}", 400, "invalid_request", "timeout_s"),
        (Method::GET, "/reload", "", 405, "method_not_allowed", "use POST"),
        (Method::POST, "/reload?dryrun=true", "", 400, "invalid_request", "dryrun"),
        (Method::POST, "/v1/chat/completions", "{}", 404, "not_found", "/v1/chat/completions"),
    ] {
        let (actual, reply) = send(&open, &method, path, None, body).await;
        let error = &reply["error"];
        assert_eq!(
            (actual.as_u16(), error["code"].as_str().unwrap_or("")),
            (status, code),
            "{path}: {reply}"
        );
        assert!(error["message"].as_str().unwrap().contains(part), "{path}: {reply}");
    }
}

#[tokio::test]
async fn port_does_not_choose_programs() {
    let keys = Keys::new([pointsman_access::ApiKey::new("t0ken", "operator")]);
    let upgrade = |body| send(&keys, &Method::POST, "/upgrade", Some("Bearer t0ken"), body);
    assert_eq!(upgrade("{\"timeout_s\": 5}").await.1["timeout_s"], 5);
    let (status, reply) = upgrade("{\"program\": \"/p\"}").await;
    assert_eq!((status.as_u16(), &reply["error"]["code"]), (400, &json!("invalid_request")));
}

#[tokio::test]
async fn port_requires_token_for_every_path() {
    let keys = Keys::new([pointsman_access::ApiKey::new("t0ken", "operator")]);
    for (method, path) in [
        (Method::GET, "/policies"),
        (Method::GET, "/policies/one"),
        (Method::POST, "/policies/one/disable"),
        (Method::POST, "/reload"),
        (Method::POST, "/upgrade"),
        (Method::GET, "/lanes"),
        (Method::GET, "/requests"),
        (Method::GET, "/status"),
        (Method::GET, "/metrics"),
        (Method::GET, "/nothing"),
    ] {
        for header in [None, Some("Bearer wrong"), Some("t0ken"), Some("Basic t0ken")] {
            let (status, reply) = send(&keys, &method, path, header, "").await;
            assert_eq!(
                status,
                StatusCode::UNAUTHORIZED,
                "{method} {path} with {header:?}: {reply}"
            );
        }
        let (status, _) = send(&keys, &method, path, Some("Bearer t0ken"), "").await;
        assert_eq!(status == StatusCode::NOT_FOUND, path == "/nothing", "{method} {path}");
        assert_ne!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

#[tokio::test]
async fn client_listener_has_no_admin_routes() {
    let test = TestGateway::new(BuiltIn).await;
    let routes = test.routes();
    for path in ["/policies", "/policies/one", "/policies/one/disable", "/reload"] {
        let request = Request::post(path).body(Body::empty()).unwrap();
        assert_eq!(routes.serve(request).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
}
