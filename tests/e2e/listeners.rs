//! Listeners: several addresses with their own models, paths, CORS, encodings of bodies, health.

use pointsman_tests::attack::{HostileEngine, Next, external_lane};
use pointsman_tests::client::{Response, chat, get, post, send, stream};
use pointsman_tests::encoding::{deflate, gzip, zstd};
use pointsman_tests::host::{Host, program};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host, lane};

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");
const ORIGIN: &str = "https://chat.example.org";

/// Returns a lane whose engine repeats the request.
fn echo(name: &str) -> String {
    lane(name, &[name], &["--script", r#"{"echo": true}"#])
}

/// Returns the body that the engine has got.
fn echoed(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_str(response.json()["body"].as_str().unwrap()).unwrap()
}

fn lane_of(response: &Response) -> Option<&str> {
    assert_eq!(response.status, 200, "{}", response.text());
    response.header("x-pointsman-lane")
}

#[test]
fn listener_has_default_model_and_names_of_its_own() {
    let listeners = "[[listeners]]\naddress = \"127.0.0.1:0\"\ndefault-model = \"b\"\n\
        models = { \"special\" = \"b\" }\n[[listeners]]\naddress = \"127.0.0.1:0\"\n";
    let host = host(&[listeners, &echo("a"), &echo("b")].concat());
    let [first, second, third] = [0, 1, 2].map(|index| host.listener_port(index));
    assert_eq!(first, host.port);
    // No model, null and an empty one are the same.
    for model in [json!({}), json!({ "model": null }), json!({ "model": "" })] {
        let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
        let response = post(second, CHAT, &body);
        assert_eq!(lane_of(&response), Some("b"), "{body}");
        assert_eq!(echoed(&response)["model"], "b");
        for port in [first, third] {
            let response = post(port, CHAT, &body);
            assert_eq!(response.status, 400, "{body}: {}", response.text());
            assert_eq!(response.json()["error"]["param"], "model");
        }
    }
    assert_eq!(lane_of(&post(second, CHAT, &chat("a", json!({})))), Some("a"));
    assert_eq!(lane_of(&post(second, CHAT, &chat("special", json!({})))), Some("b"));
    for port in [first, third] {
        let response = post(port, CHAT, &chat("special", json!({})));
        assert_eq!((response.status, response.error_code()), (404, json!("model_not_found")));
    }
    let is_listed = |port| get(port, "/v1/models").text().contains("\"special\"");
    assert_eq!([first, second, third].map(is_listed), [false, true, false]);
    host.assert_no_request_lost();
    host.stop();
}

/// A host with one lane is not different from its engine; with several, one has to be named.
#[test]
fn request_without_a_model_is_for_the_only_lane() {
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let one = host(&lane("a", &["a"], &[]));
    let response = post(one.port, CHAT, &body);
    assert_eq!((response.status, response.header("x-pointsman-lane")), (200, Some("a")));
    one.assert_no_request_lost();
    let two = host(&(lane("a", &["a"], &[]) + &lane("b", &["b"], &[])));
    let response = post(two.port, CHAT, &body);
    assert_eq!((response.status, response.error_code()), (400, json!("invalid_request")));
    two.assert_no_request_lost();
}

/// A default model changes nothing else of the body.
#[test]
fn default_model_keeps_the_bytes_of_the_body() {
    let listener = "[server]\ndefault-model = \"a\"\n";
    let host = host(&[listener, &echo("a")].concat());
    let rest = r#""x":1.50,  "messages":[{"content":"caf\u00e9","role":"user"}]"#;
    let body = format!("{{ {rest} }}");
    let response = send(host.port, "POST", CHAT, &[JSON], body.as_bytes());
    let text = response.json()["body"].as_str().unwrap().to_owned();
    assert!(text.contains(rest), "{text}");
    assert_eq!(echoed(&response)["model"], "a");
    host.assert_no_request_lost();
}

/// Clients write base URLs with and without `/v1`, and with slashes too many.
#[test]
fn paths_work_as_clients_write_them() {
    let host = host(&lane("a", &["org/a", "a"], &[]));
    for base in ["/v1", "", "//v1", "/v1/", "/v1/v1", "/v1//"] {
        for (path, body) in [
            ("/chat/completions", chat("a", json!({}))),
            ("/chat/completions/", chat("a", json!({}))),
            ("/completions", json!({ "model": "a", "prompt": "hi" })),
        ] {
            let response = post(host.port, &format!("{base}{path}"), &body);
            assert_eq!(response.status, 200, "{base}{path}: {}", response.text());
        }
        for path in ["/models", "/models/", "/models/a", "/models/org%2Fa", "/models/org/a"] {
            let response = get(host.port, &format!("{base}{path}"));
            assert_eq!(response.status, 200, "{base}{path}: {}", response.text());
        }
    }
    let response = post(host.port, &format!("{CHAT}?api-version=1"), &chat("a", json!({})));
    assert_eq!(response.status, 200);
    for path in ["/v1/../status", "/v2/chat/completions", "/v1/chat%00/completions"] {
        assert_eq!(post(host.port, path, &chat("a", json!({}))).status, 404, "{path}");
    }
    host.assert_no_request_lost();
}

#[test]
fn routes_are_below_the_path_prefix() {
    let host = host(&["[server]\npath-prefix = \"/llm\"\n", &lane("a", &["a"], &[])].concat());
    for path in ["/llm/v1/chat/completions", "/llm/chat/completions", "//llm//v1/chat/completions"]
    {
        assert_eq!(post(host.port, path, &chat("a", json!({}))).status, 200, "{path}");
    }
    for path in [CHAT, "/llmx/v1/chat/completions"] {
        assert_eq!(post(host.port, path, &chat("a", json!({}))).status, 404, "{path}");
    }
    // Orchestrators and load balancers check the health of the address.
    for path in ["/livez", "/readyz", "/health", "/llm/health"] {
        assert_eq!(get(host.port, path).status, 200, "{path}");
    }
}

fn preflight(port: u16, origin: &str) -> Response {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,x-stainless-os"),
    ];
    send(port, "OPTIONS", CHAT, &headers, b"")
}

#[test]
fn browsers_of_configured_origins_are_served() {
    let engine = HostileEngine::answering(
        "200 OK",
        "access-control-allow-origin: *\r\n",
        pointsman_tests::attack::GOOD_BODY,
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.key"), "key-of-a-0123456789\n").unwrap();
    let config = format!(
        "[server]\ncors = {{ origins = [\"{ORIGIN}\"] }}\n[[listeners]]\n\
         address = \"127.0.0.1:0\"\n[[keys]]\ntenant = \"a\"\nfile = \"a.key\"\n{}",
        external_lane("a", &["a"], &engine, "")
    );
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready();
    let allowed = |response: &Response| {
        let origins = response.headers.iter();
        let origins = origins.filter(|(name, _)| name == "access-control-allow-origin");
        origins.map(|(_, value)| value.clone()).collect::<Vec<String>>()
    };
    // A preflight has no key.
    let response = preflight(host.port, ORIGIN);
    assert!((200..300).contains(&response.status), "{}", response.status);
    assert_eq!(allowed(&response), [ORIGIN]);
    let headers = response.header("access-control-allow-headers").unwrap().to_ascii_lowercase();
    assert!(headers == "*" || headers.contains("authorization"), "{headers}");
    assert!(allowed(&preflight(host.port, "https://other.example.org")).is_empty());
    let key = ("authorization", "Bearer key-of-a-0123456789");
    // Answers, and errors too; the engine's header does not come in addition.
    for (status, model, headers) in [
        (200, "a", vec![JSON, key, ("origin", ORIGIN)]),
        (404, "nope", vec![JSON, key, ("origin", ORIGIN)]),
        (401, "a", vec![JSON, ("origin", ORIGIN)]),
    ] {
        let body = chat(model, json!({})).to_string();
        let response = send(host.port, "POST", CHAT, &headers, body.as_bytes());
        assert_eq!(response.status, status, "{}", response.text());
        assert_eq!(allowed(&response), [ORIGIN], "{status}");
        assert!(response.header("vary").unwrap().to_ascii_lowercase().contains("origin"));
        // The other listener allows none.
        let response = send(host.listener_port(1), "POST", CHAT, &headers, body.as_bytes());
        assert_eq!(response.status, status, "{}", response.text());
        assert!(allowed(&response).is_empty(), "{status}");
    }
    host.assert_no_request_lost();
}

#[test]
fn compressed_request_bodies_are_decoded() {
    let host = host(&["[server]\nmax-body = \"4KiB\"\n", &echo("a")].concat());
    let body = chat("a", json!({ "x": 1.5 })).to_string();
    let body = body.as_bytes();
    let encode = |encoding: &str, body: &[u8]| {
        let headers = [JSON, ("content-encoding", encoding)];
        send(host.port, "POST", CHAT, &headers, body)
    };
    for (encoding, bytes) in [
        ("gzip", gzip(body)),
        ("deflate", deflate(body)),
        ("zstd", zstd(body)),
        ("identity", body.to_vec()),
    ] {
        let response = encode(encoding, &bytes);
        assert_eq!(response.status, 200, "{encoding}: {}", response.text());
        assert_eq!(response.json()["body"].as_str().unwrap().as_bytes(), body, "{encoding}");
        let headers = &response.json()["headers"];
        assert_eq!(headers.get("content-encoding"), None, "{encoding}");
        assert_eq!(headers["content-length"], body.len().to_string(), "{encoding}");
    }
    let response = encode("x-unknown", body);
    assert_eq!(response.status, 415, "{}", response.text());
    for (encoding, bytes) in [
        ("gzip", body.to_vec()),
        ("zstd", zstd(body)[..20].to_vec()),
        ("gzip", gzip(body)[..30].to_vec()),
    ] {
        let response = encode(encoding, &bytes);
        assert_eq!(response.status, 400, "{encoding}: {}", response.text());
        assert_ne!(response.error_code(), "invalid_json", "the reason is the encoding");
    }
    // The limit counts what is decoded.
    let large = chat("a", json!({ "x": "y".repeat(8000) })).to_string();
    let response = encode("gzip", &gzip(large.as_bytes()));
    assert_eq!((response.status, response.error_code()), (413, json!("request_too_large")));
    host.assert_no_request_lost();
}

#[test]
fn response_is_compressed_on_request_unless_it_is_a_stream() {
    let host = host(&lane("a", &["a"], &["--script", r#"{"tokens": 2000}"#]));
    let body = chat("a", json!({})).to_string();
    let headers = [JSON, ("accept-encoding", "gzip")];
    let response = send(host.port, "POST", CHAT, &headers, body.as_bytes());
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-encoding"), Some("gzip"));
    assert!(response.body.starts_with(&[0x1f, 0x8b]) && response.body.len() < 10_000);
    let body = chat("a", json!({ "stream": true })).to_string();
    let response = send(host.port, "POST", CHAT, &headers, body.as_bytes());
    assert_eq!(response.header("content-encoding"), None);
    assert!(response.text().ends_with("data: [DONE]\n\n"));
    let plain = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!(plain.header("content-encoding"), None);
    host.assert_no_request_lost();
}

/// Proxies such as nginx buffer a stream unless the response says otherwise.
#[test]
fn streams_are_not_buffered_by_proxies() {
    let host = host(&lane("a", &["a"], &["--flavour", "vllm"]));
    let response = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    let header = |name: &str| {
        let found = response.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(header("x-accel-buffering"), Some("no"));
    assert!(header("cache-control").is_some_and(|value| value.contains("no-cache")));
    assert!(response.finish().1);
    host.assert_no_request_lost();
}

/// An external engine may be behind something that compresses its streams all the same.
#[test]
fn compressed_stream_of_engine_is_complete() {
    use std::io::Write as _;
    let body = gzip(pointsman_tests::attack::GOOD_STREAM.as_bytes());
    let engine = HostileEngine::start(move |request, stream| {
        assert_ne!(request.header("accept-encoding"), Some("gzip"));
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
            content-encoding: gzip\r\nconnection: close\r\n";
        write!(stream, "{head}content-length: {}\r\n\r\n", body.len())?;
        stream.write_all(&body)?;
        Ok(Next::Close)
    });
    let host = host(&external_lane("m", &["m"], &engine, ""));
    // More requests than failures open a breaker.
    for _ in 0..12 {
        let body = chat("m", json!({ "stream": true }));
        let (response, complete) = stream(host.port, CHAT, &body).finish();
        assert!(complete && response.status == 200);
        assert!(!response.text().contains("\"error\""), "{}", response.text());
        assert_eq!(response.header("content-encoding"), None);
        assert!(response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    }
    assert_eq!(host.metric("pointsman_errors_total", ""), 0.0);
    assert_eq!(host.metric("pointsman_lane_breaker_open", ""), 0.0);
    host.assert_no_request_lost();
}

/// A base URL with a path of its own is taken as it is; only one without a path gets `/v1`.
#[test]
fn engine_url_keeps_its_base_path() {
    for (base, path) in [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
    ] {
        let engine = HostileEngine::honest();
        let lane = external_lane("m", &["m"], &engine, "");
        let url = format!("127.0.0.1:{}", engine.port);
        let host = host(&lane.replace(&format!("{url}/v1"), &format!("{url}{base}")));
        assert_eq!(post(host.port, CHAT, &chat("m", json!({}))).status, 200, "{base}");
        assert_eq!(engine.requests()[0].path, path, "{base}");
        host.assert_no_request_lost();
    }
}

#[test]
fn health_of_one_lane_and_of_all_lanes() {
    let config = [
        "[[listeners]]\naddress = \"127.0.0.1:0\"\nhealth = \"all-lanes\"\n",
        &lane("up", &["up"], &[]),
        &lane("loading", &["loading"], &["--load-ms", "600000"]),
    ];
    let host = Host::start(&program(FAKE_ENGINE), &config.concat());
    host.wait_for_lane("up", "ready");
    let strict = host.listener_port(1);
    let ok = get(host.port, "/health");
    assert_eq!((ok.status, ok.json()), (200, json!({ "status": "ok" })));
    assert_eq!(get(strict, "/health").status, 503);
    for port in [host.port, strict] {
        assert_eq!(get(port, "/health?lane=up").status, 200);
        let loading = get(port, "/health?lane=loading");
        assert_eq!(loading.status, 503, "{}", loading.text());
        assert!(loading.header("retry-after").is_some());
        assert_eq!(get(port, "/health?lane=unknown").status, 404);
        assert_eq!(send(port, "HEAD", "/health?lane=up", &[], b"").status, 200);
    }
}
