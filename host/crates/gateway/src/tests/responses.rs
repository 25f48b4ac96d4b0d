//! Responses that the host keeps: turns of conversations, their owners, and the background.

use std::time::Duration;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use pointsman_access::{ApiKey, Keys};
use pointsman_domain::BuiltIn;
use serde_json::{Value, json};

use super::{Reply, TestGateway, json as reply_json, stream};

const HI: &str = r#"{"id":"c","created":5,"choices":[{"index":0,"finish_reason":"stop",
    "message":{"role":"assistant","content":"hi"}}],
    "usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;

async fn gateway() -> TestGateway {
    TestGateway::with(BuiltIn, |parts| {
        parts.keys = Keys::new([
            ApiKey::new("k1", "acme"),
            ApiKey::new("k2", "acme"),
            ApiKey::new("k3", "other"),
        ]);
        parts.settings.responses.max_background = 1;
    })
    .await
}

async fn call(gateway: &TestGateway, key: &str, method: Method, path: &str, body: &str) -> Answer {
    send(gateway, request(key).method(method).uri(path), body).await
}

fn request(key: &str) -> http::request::Builder {
    Request::builder()
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {key}"))
}

async fn send(gateway: &TestGateway, request: http::request::Builder, body: &str) -> Answer {
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = gateway.routes().serve(request).await;
    let (status, lane) = (
        response.status().as_u16(),
        response.headers().get("x-pointsman-lane").map(|lane| lane.to_str().unwrap().to_owned()),
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, lane, text: String::from_utf8(body.to_vec()).unwrap() }
}

struct Answer {
    status: u16,
    lane: Option<String>,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn id(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()["id"].as_str().unwrap().to_owned()
    }

    fn code(&self) -> (u16, Value) {
        (self.status, self.json()["error"]["code"].clone())
    }
}

async fn post(gateway: &TestGateway, key: &str, body: Value) -> Answer {
    call(gateway, key, Method::POST, "/v1/responses", &body.to_string()).await
}

async fn get(gateway: &TestGateway, key: &str, path: &str) -> Answer {
    call(gateway, key, Method::GET, &format!("/v1/responses/{path}"), "").await
}

fn last_messages(gateway: &TestGateway) -> Value {
    gateway.engines.received.lock().unwrap().last().unwrap().1["messages"].clone()
}

#[tokio::test]
async fn next_turn_has_the_conversation_and_goes_to_its_lane() {
    let gateway = gateway().await;
    gateway.script("a", &[reply_json(500, "{}"), reply_json(200, HI)]);
    gateway.script("b", &[reply_json(200, HI), reply_json(200, HI)]);
    let metadata = json!({ "a": "b" });
    let first = json!({ "model": "m", "input": "one", "metadata": metadata });
    let first = post(&gateway, "k1", first).await;
    assert_eq!(first.lane.as_deref(), Some("b"));
    let response = first.json();
    assert_eq!(response["metadata"], metadata);
    assert_eq!((&response["store"], &response["status"]), (&json!(true), &json!("completed")));
    // The lane `a` would be preferred.
    let second = json!({
        "model": "m", "previous_response_id": first.id(),
        "input": [{ "role": "user", "content": "two" }],
    });
    let second = post(&gateway, "k1", second).await;
    assert_eq!(second.lane.as_deref(), Some("b"));
    assert_eq!(second.json()["previous_response_id"], first.id());
    let expected = json!([
        { "role": "user", "content": "one" },
        { "role": "assistant", "content": "hi" },
        { "role": "user", "content": "two" },
    ]);
    assert_eq!(last_messages(&gateway), expected);
    let third = json!({ "model": "m", "previous_response_id": second.id(), "input": "three" });
    gateway.script("b", &[reply_json(200, HI)]);
    post(&gateway, "k1", third).await.id();
    assert_eq!(last_messages(&gateway).as_array().unwrap().len(), 5);
    // Only what this turn has added.
    let items = get(&gateway, "k1", &format!("{}/input_items", second.id())).await.json();
    assert_eq!(items["data"][0]["content"], json!([{ "type": "input_text", "text": "two" }]));
    assert_eq!(items["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn response_belongs_to_its_tenant_and_key() {
    let gateway = gateway().await;
    gateway.script("a", &[reply_json(200, HI)]);
    let id = post(&gateway, "k1", json!({ "model": "m", "input": "one" })).await.id();
    let path = format!("/v1/responses/{id}");
    assert_eq!(get(&gateway, "k1", &id).await.json()["output"][0]["content"][0]["text"], "hi");
    let unknown = get(&gateway, "k1", "resp_0123456789abcdef0123456789abcdef").await;
    for key in ["k2", "k3"] {
        let foreign = get(&gateway, key, &id).await;
        assert_eq!(foreign.code(), (404, json!("not_found")));
        assert_eq!(foreign.text.len() - id.len(), unknown.text.len() - 37);
        let deleted = call(&gateway, key, Method::DELETE, &path, "").await;
        assert_eq!(deleted.code(), (404, json!("not_found")));
        let next = json!({ "model": "m", "input": "x", "previous_response_id": id });
        let next = post(&gateway, key, next).await;
        assert_eq!(next.code(), (404, json!("previous_response_not_found")));
    }
    assert_eq!(get(&gateway, "none", &id).await.code(), (401, json!("invalid_api_key")));
    let deleted = call(&gateway, "k1", Method::DELETE, &path, "").await.json();
    assert_eq!(deleted["deleted"], true);
    assert_eq!(get(&gateway, "k1", &id).await.status, 404);
}

#[tokio::test]
async fn response_that_is_not_to_be_stored_is_not() {
    let gateway = gateway().await;
    gateway.script("a", &[reply_json(200, HI)]);
    let body = json!({ "model": "m", "input": "one", "store": false });
    let response = post(&gateway, "k1", body).await;
    assert_eq!(response.json()["store"], false);
    assert_eq!(get(&gateway, "k1", &response.id()).await.status, 404);
}

#[tokio::test]
async fn invalid_turns_are_refused() {
    let gateway = gateway().await;
    for (more, param) in [
        (json!({ "conversation": "conv_1" }), "conversation"),
        (json!({ "previous_response_id": 5 }), "previous_response_id"),
        (json!({ "store": "yes" }), "store"),
        (json!({ "background": true, "store": false }), "background"),
        (json!({ "background": true, "stream": true }), "stream"),
        (json!({ "tools": [{ "type": "web_search" }] }), "tools"),
        (json!({ "input": 5 }), "input"),
    ] {
        let mut body = json!({ "model": "m", "input": "x" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let refused = post(&gateway, "k1", body).await;
        assert_eq!(refused.status, 400, "{more} {}", refused.text);
        assert_eq!(refused.json()["error"]["param"], param);
    }
    assert_eq!(gateway.attempted_lanes(), "");
    let reference = json!([{ "type": "item_reference", "id": "msg_1" }]);
    let body = json!({ "model": "m", "input": reference });
    assert_eq!(post(&gateway, "k1", body).await.code(), (404, json!("not_found")));
    let unknown = json!({ "model": "none", "input": "x", "background": true });
    assert_eq!(post(&gateway, "k1", unknown).await.code(), (404, json!("model_not_found")));
}

#[tokio::test]
async fn items_can_be_referred_to() {
    let gateway = gateway().await;
    gateway.script("a", &[reply_json(200, HI), reply_json(200, HI)]);
    let first = post(&gateway, "k1", json!({ "model": "m", "input": "one" })).await.json();
    let item = &first["output"][0]["id"];
    let input = json!([{ "type": "item_reference", "id": item }, { "role": "user",
        "content": "two" }]);
    post(&gateway, "k1", json!({ "model": "m", "input": input })).await.id();
    let expected = json!([
        { "role": "assistant", "content": "hi" },
        { "role": "user", "content": "two" },
    ]);
    assert_eq!(last_messages(&gateway), expected);
}

#[tokio::test]
async fn stream_is_stored_when_it_is_complete() {
    const CHUNKS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"he\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"y\"},\"finish_reason\":\"stop\"}]}\n\n\
        data: [DONE]\n\n";
    const BROKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"he\"}}]}\n\n";
    let gateway = gateway().await;
    gateway.script("a", &[stream(CHUNKS, false), stream(BROKEN, false)]);
    let body = json!({ "model": "m", "input": "one", "stream": true });
    let whole = post(&gateway, "k1", body.clone()).await;
    let events: Vec<Value> = events(&whole.text);
    let ids: Vec<&str> =
        events.iter().filter_map(|event| event["response"]["id"].as_str()).collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(events.last().unwrap()["type"], "response.completed");
    let stored = get(&gateway, "k1", ids[0]).await.json();
    assert_eq!(stored, events.last().unwrap()["response"]);
    assert_eq!(stored["output"][0]["content"][0]["text"], "hey");
    let broken = self::events(&post(&gateway, "k1", body).await.text);
    let error = broken.last().unwrap();
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("engine_error")));
    assert_eq!(error["sequence_number"], broken.len() - 1);
    let id = broken[0]["response"]["id"].as_str().unwrap();
    assert_eq!(get(&gateway, "k1", id).await.status, 404);
}

fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

async fn wait_for(gateway: &TestGateway, id: &str, status: &str) -> Value {
    loop {
        let response = get(gateway, "k1", id).await.json();
        if response["status"] == status {
            return response;
        }
        assert_eq!(response["status"], "in_progress", "{response}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn background_responses_are_executed_without_the_client() {
    let gateway = gateway().await;
    let hangs = Reply { hangs: true, ..reply_json(200, HI) };
    gateway.script("a", &[reply_json(200, HI), hangs]);
    let body = json!({ "model": "m", "input": "one", "background": true });
    let queued = post(&gateway, "k1", body.clone()).await;
    assert_eq!(queued.json()["status"], "queued");
    let done = wait_for(&gateway, &queued.id(), "completed").await;
    assert_eq!(done["output"][0]["content"][0]["text"], "hi");
    assert_eq!(done["background"], true);
    // This one does not end.
    let queued = post(&gateway, "k1", body.clone()).await;
    assert_eq!(
        post(&gateway, "k2", body.clone()).await.code(),
        (429, json!("too_many_background"))
    );
    let path = format!("/v1/responses/{}/cancel", queued.id());
    assert_eq!(call(&gateway, "k3", Method::POST, &path, "").await.status, 404);
    let next = json!({ "model": "m", "input": "x", "previous_response_id": queued.id() });
    assert_eq!(post(&gateway, "k1", next).await.status, 400);
    let cancelled = call(&gateway, "k1", Method::POST, &path, "").await.json();
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(call(&gateway, "k1", Method::POST, &path, "").await.json(), cancelled);
    wait_for(&gateway, &queued.id(), "cancelled").await;
    // An error of all engines.
    gateway.script("a", &[reply_json(500, "{}"); 3]);
    gateway.script("b", &[reply_json(500, "{}"); 3]);
    let queued = post(&gateway, "k1", body).await;
    let failed = wait_for(&gateway, &queued.id(), "failed").await;
    assert_eq!(failed["error"]["code"], "server_error");
}

#[tokio::test]
async fn input_items_are_listed_in_pages() {
    let gateway = gateway().await;
    gateway.script("a", &[reply_json(200, HI)]);
    let items: Vec<Value> =
        (0..5).map(|at| json!({ "role": "user", "content": format!("{at}") })).collect();
    let id = post(&gateway, "k1", json!({ "model": "m", "input": items })).await.id();
    let list = async |query: &str| get(&gateway, "k1", &format!("{id}/input_items{query}")).await;
    let texts = |page: &Value| -> Vec<String> {
        let items = page["data"].as_array().unwrap().iter();
        items.map(|item| item["content"][0]["text"].as_str().unwrap().to_owned()).collect()
    };
    let page = list("?limit=2").await.json();
    assert_eq!((texts(&page), &page["has_more"]), (vec!["4".into(), "3".into()], &json!(true)));
    let last = page["last_id"].as_str().unwrap();
    let page = list(&format!("?limit=4&after={last}")).await.json();
    assert_eq!((texts(&page).len(), &page["has_more"]), (3, &json!(false)));
    assert_eq!(texts(&list("?order=asc").await.json())[0], "0");
    for query in ["?limit=0", "?limit=x", "?order=up"] {
        assert_eq!(list(query).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn retries_get_the_stored_response_of_their_original() {
    let gateway = gateway().await;
    // One reply for each original: a second execution would get none.
    gateway.script("a", &[reply_json(200, HI), reply_json(200, HI)]);
    for is_background in [false, true] {
        let body = json!({ "model": "m", "input": "x", "background": is_background }).to_string();
        let once = async || {
            let request = request("k1").method(Method::POST).uri("/v1/responses");
            let request = request.header("idempotency-key", format!("key-{is_background}"));
            send(&gateway, request, &body).await
        };
        let (first, retry) = (once().await, once().await);
        assert_eq!(first.json(), retry.json());
        let stored = wait_for(&gateway, &first.id(), "completed").await;
        assert_eq!(stored["id"], retry.id());
    }
    assert_eq!(gateway.engines.received.lock().unwrap().len(), 2);
}
