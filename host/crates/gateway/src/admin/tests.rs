use http::{Method, StatusCode};
use pointsman_domain::BuiltIn;
use tower_service::Service as _;

use super::*;
use crate::tests::World;

/// Two policies, one of which can be rolled back.
struct Fake;

impl PolicyAdmin for Fake {
    fn list(&self) -> Value {
        json!([{ "name": "one" }, { "name": "two" }])
    }

    fn show(&self, name: &str) -> Option<Value> {
        ["one", "two"].contains(&name).then(|| json!({ "name": name }))
    }

    fn command(&self, name: &str, command: PolicyCommand) -> Result<Value, AdminError> {
        match (name, command) {
            ("one", PolicyCommand::Enable) => panic!("a fault of ours"),
            ("one", command) => Ok(json!(format!("{command:?}"))),
            ("two", _) => {
                Err(AdminError::Refused("there is no earlier version of `two`".to_owned()))
            }
            _ => Err(no_such(self, name.to_owned())),
        }
    }

    fn reload(&self) -> Value {
        json!(["reloaded"])
    }
}

async fn ask(
    keys: &Keys,
    method: &Method,
    path: &str,
    header: Option<&str>,
    body: &'static str,
) -> (StatusCode, Value) {
    let world = World::new(BuiltIn).await;
    let mut router = router(Arc::clone(&world.gateway), Arc::new(Fake), keys.clone());
    let mut request = Request::builder().method(method).uri(path);
    if let Some(header) = header {
        request = request.header("authorization", header);
    }
    let answer = router.call(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    assert!(head.headers.contains_key("x-request-id") || head.status.is_success());
    let body = body.collect().await.unwrap().to_bytes();
    (
        head.status,
        serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into()),
    )
}

#[tokio::test]
async fn questions_and_orders_reach_the_policies() {
    let one = |command: &str| json!(command);
    let open = Keys::default();
    for (method, path, body, answer) in [
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
    ] {
        assert_eq!(
            ask(&open, &method, path, None, body).await,
            (StatusCode::OK, answer),
            "{method} {path}"
        );
    }
    let (status, answer) = ask(&open, &Method::GET, "/status", None, "").await;
    assert_eq!((status, &answer["lanes"][0]["name"]), (StatusCode::OK, &json!("a")));
    let (status, answer) = ask(&open, &Method::GET, "/metrics", None, "").await;
    assert!(status.is_success() && answer.as_str().unwrap().contains("pointsman_accepted_total"));
}

#[tokio::test]
async fn what_cannot_be_done_is_answered_with_a_sentence() {
    let open = Keys::default();
    for (method, path, body, status, code, part) in [
        (
            Method::GET,
            "/policies/x",
            "",
            404,
            "policy_not_found",
            "no policy `x`; there are `one`, `two`",
        ),
        (Method::POST, "/policies/x/disable", "", 404, "policy_not_found", "no policy `x`"),
        (Method::POST, "/policies/two/rollback", "", 409, "refused", "no earlier version of `two`"),
        (
            Method::POST,
            "/policies/one/explode",
            "",
            404,
            "not_found",
            "rollback, promote, disable and enable",
        ),
        (Method::POST, "/policies/one/promote", "[1]", 400, "", "has to be empty or"),
        (Method::POST, "/policies/one/promote", "{\"version\": 1}", 400, "", "has to be empty or"),
        (Method::POST, "/policies/one/promote", "{\"to\": \"x\"}", 400, "", "has to be empty or"),
        (Method::POST, "/policies/one/disable", "{\"version\": \"x\"}", 400, "", "takes none"),
        (Method::POST, "/policies/one/enable", "", 500, "internal_error", "the log says why"),
        (Method::POST, "/policies", "", 405, "method_not_allowed", "use GET, HEAD"),
        (Method::GET, "/reload", "", 405, "method_not_allowed", "use POST"),
        (Method::POST, "/v1/chat/completions", "{}", 404, "not_found", "/v1/chat/completions"),
    ] {
        let (given, answer) = ask(&open, &method, path, None, body).await;
        let error = &answer["error"];
        assert_eq!(
            (given.as_u16(), error["code"].as_str().unwrap_or("")),
            (status, code),
            "{path}: {answer}"
        );
        assert!(error["message"].as_str().unwrap().contains(part), "{path}: {answer}");
    }
}

#[tokio::test]
async fn with_a_token_nothing_goes_without_it() {
    let keys = Keys::new([("t0ken".to_owned(), "operator".to_owned())]);
    for (method, path) in [
        (Method::GET, "/policies"),
        (Method::GET, "/policies/one"),
        (Method::POST, "/policies/one/disable"),
        (Method::POST, "/reload"),
        (Method::GET, "/status"),
        (Method::GET, "/metrics"),
        (Method::GET, "/nothing"),
    ] {
        for header in [None, Some("Bearer wrong"), Some("t0ken"), Some("Basic t0ken")] {
            let (status, answer) = ask(&keys, &method, path, header, "").await;
            assert_eq!(
                status,
                StatusCode::UNAUTHORIZED,
                "{method} {path} with {header:?}: {answer}"
            );
        }
        let (status, _) = ask(&keys, &method, path, Some("Bearer t0ken"), "").await;
        assert_eq!(status == StatusCode::NOT_FOUND, path == "/nothing", "{method} {path}");
        assert_ne!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

#[tokio::test]
async fn clients_find_nothing_of_it() {
    let world = World::new(BuiltIn).await;
    let mut router = crate::routes::router(Arc::clone(&world.gateway));
    for path in ["/policies", "/policies/one", "/policies/one/disable", "/reload"] {
        let request = Request::post(path).body(Body::empty()).unwrap();
        assert_eq!(router.call(request).await.unwrap().status(), StatusCode::NOT_FOUND, "{path}");
    }
}
