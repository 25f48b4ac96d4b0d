//! Responses of engines that are odd, broken or dishonest.

use std::io::Write as _;
use std::time::Duration;

use pointsman_tests::attack::{
    GOOD_BODY, GOOD_STREAM, HostileEngine, Next, STREAM_HEAD, answer, chunk, external_lane,
};
use pointsman_tests::client::{chat, open, post, stream};
use pointsman_tests::host::{Host, program};
use pointsman_tests::pause;
use serde_json::{Value, json};

use super::{CHAT, breaker_is_open, host_with, host_with_fallback};
use crate::{FAKE_ENGINE, host};

/// More requests than failures open a breaker.
const MANY: usize = 12;

fn streamed(model: &str) -> Value {
    chat(model, json!({ "stream": true }))
}

/// Returns an engine's response as a client gets it who asked for this model.
fn named(response: &str, model: &str) -> String {
    response.replace("\"model\":\"m\"", &format!("\"model\":{model:?}"))
}

/// An event of a stream with this choice.
fn event(choice: &str) -> String {
    format!(
        "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\
         \"model\":\"m\",\"choices\":[{choice}]}}\n\n"
    )
}

#[test]
fn last_line_without_newline_ends_the_stream() {
    let engine = HostileEngine::streaming(GOOD_STREAM.trim_end());
    let host = host_with(&engine);
    for _ in 0..MANY {
        let (response, complete) = stream(host.port, CHAT, &streamed("a")).finish();
        let text = response.text();
        assert!(complete && text.contains("[DONE]") && !text.contains("\"error\""), "{text}");
    }
    assert!(!breaker_is_open(&host, "a"));
    assert_eq!(host.metric("pointsman_errors_total", ""), 0.0);
    host.assert_no_request_lost();
}

#[test]
fn comments_are_not_an_answer() {
    let pings = HostileEngine::start(|_, stream| {
        stream.write_all(STREAM_HEAD.as_bytes())?;
        // Ends when the host closes the connection.
        loop {
            stream.write_all(&chunk(b": ping\n\n"))?;
            pause(Duration::from_millis(50));
        }
    });
    let limits = "timeouts = { first-byte = \"1s\", idle = \"1s\" }";
    let host = host_with_fallback(&pings, &HostileEngine::honest(), limits);
    let (response, complete) = stream(host.port, CHAT, &streamed("auto")).finish();
    let text = response.text();
    assert!(complete && text.contains("good") && text.contains("[DONE]"), "{text}");
    // Without another lane, the time limit of the first byte holds.
    let alone = stream(host.port, CHAT, &streamed("bad")).finish().0;
    let code = "engine_timeout";
    assert!(alone.status == 504 || alone.text().contains(code), "{}", alone.text());
    assert!(!alone.text().contains("[DONE]"));
    host.assert_no_request_lost();
}

#[test]
fn error_as_first_event_falls_back() {
    let error = "data: {\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"code\":500}}\n\n";
    for body in [error.to_owned(), format!(": a comment\n\n{error}")] {
        let engine = HostileEngine::streaming(format!("{body}data: [DONE]\n\n"));
        let host = host_with_fallback(&engine, &HostileEngine::honest(), "");
        let response = stream(host.port, CHAT, &streamed("auto")).finish().0;
        let text = response.text();
        assert!(text.contains("good") && !text.contains("\"error\""), "{text}");
        assert_eq!(engine.requests().len(), 1);
        host.assert_no_request_lost();
    }
}

/// Returns `text` in the format of gzip, without compression.
fn gzip(text: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in text {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let length = u16::try_from(text.len()).unwrap();
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    bytes.extend(length.to_le_bytes());
    bytes.extend((!length).to_le_bytes());
    bytes.extend_from_slice(text);
    bytes.extend((!crc).to_le_bytes());
    bytes.extend(u32::from(length).to_le_bytes());
    bytes
}

#[test]
fn compressed_stream_is_not_damaged() {
    let compressed = gzip(GOOD_STREAM.as_bytes());
    let mut bytes =
        STREAM_HEAD.replace("\r\n\r\n", "\r\ncontent-encoding: gzip\r\n\r\n").into_bytes();
    bytes.extend(chunk(&compressed));
    bytes.extend(b"0\r\n\r\n");
    let engine = HostileEngine::sending(bytes);
    let host = host_with(&engine);
    for _ in 0..MANY {
        let (response, complete) = stream(host.port, CHAT, &streamed("a")).finish();
        assert_eq!(response.header("content-encoding"), None);
        assert!(complete && response.text() == named(GOOD_STREAM, "a"), "{}", response.text());
    }
    let request = &engine.requests()[0];
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert!(!breaker_is_open(&host, "a"));
    assert_eq!(host.metric("pointsman_errors_total", ""), 0.0);
    host.assert_no_request_lost();
}

#[test]
fn broken_stream_never_looks_complete() {
    let open = r#"{"index":0,"delta":{"content":"x"},"finish_reason":null}"#;
    let other = r#"{"index":1,"delta":{"content":"x"},"finish_reason":null}"#;
    let stop = r#"{"index":0,"delta":{},"finish_reason":"stop"}"#;
    let empty = r#"{"index":0,"delta":{"content":"x"},"finish_reason":""}"#;
    let cases = [
        ("one choice", vec![open], "text/event-stream", 1),
        ("empty reason", vec![open, empty], "text/event-stream", 1),
        ("second choice is open", vec![open, other, stop], "text/event-stream", 2),
        ("upper case", vec![open], "Text/Event-Stream", 1),
        ("parameter", vec![open], "text/event-stream; charset=utf-8", 1),
    ];
    for (case, choices, kind, n) in cases {
        let body: String = choices.into_iter().map(event).collect();
        let mut bytes = STREAM_HEAD.replace("text/event-stream", kind).into_bytes();
        bytes.extend(chunk(body.as_bytes()));
        bytes.extend(b"0\r\n\r\n");
        let host = host_with(&HostileEngine::sending(bytes));
        let request = chat("a", json!({ "stream": true, "n": n }));
        let text = stream(host.port, CHAT, &request).finish().0.text();
        assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{case}: {text}");
        assert_eq!(host.metric("pointsman_errors_total", ""), 1.0, "{case}");
        host.assert_no_request_lost();
    }
}

/// An error is seen although the event also has a number that does not fit into 32 bits.
#[test]
fn error_event_with_large_usage_is_an_error() {
    let open = event(r#"{"index":0,"delta":{"content":"x"},"finish_reason":null}"#);
    let error = "data: {\"error\":{\"message\":\"x\",\"code\":500},\"usage\":{\"prompt_tokens\":\
                 99999999999,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";
    let host = host_with(&HostileEngine::streaming(format!("{open}{error}")));
    let text = stream(host.port, CHAT, &streamed("a")).finish().0.text();
    assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
    assert_eq!(host.metric("pointsman_errors_total", ""), 1.0);
    host.assert_no_request_lost();
}

#[test]
fn unsupported_request_does_not_open_the_breaker() {
    let unsupported = concat!(
        r#"{"error":{"code":500,"message":"image input is not supported - hint: if this is "#,
        r#"unexpected, you may need to provide the mmproj","type":"server_error"}}"#
    );
    let missing = concat!(
        r#"{"error":{"code":501,"message":"This server does not support this","#,
        r#""type":"not_supported_error"}}"#
    );
    let engine = HostileEngine::start(move |request, stream| {
        let (status, body) = match request.text().contains("image_url") {
            true => ("500 Internal Server Error", unsupported),
            false => ("501 Not Implemented", missing),
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: \
             {length}\r\nconnection: close\r\n\r\n{body}"
        )?;
        Ok(Next::Close)
    });
    let host = host_with(&engine);
    let image = json!([{ "role": "user", "content": [
        { "type": "image_url", "image_url": { "url": "data:image/png;base64,AA==" } },
    ]}]);
    for _ in 0..MANY {
        let response = post(host.port, CHAT, &json!({ "model": "a", "messages": image }));
        assert_eq!(response.status, 400, "{}", response.text());
    }
    for _ in 0..MANY {
        let status = post(host.port, CHAT, &chat("a", json!({}))).status;
        assert!(status == 501 || status == 400, "{status}");
    }
    assert!(!breaker_is_open(&host, "a"));
    assert_eq!(engine.requests().len(), 2 * MANY, "no attempt was repeated");
    host.assert_no_request_lost();
}

#[test]
fn refused_key_of_the_host_is_not_the_clients_error() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let engine = HostileEngine::answering(status, "", r#"{"error":"Unauthorized"}"#);
        let lane = external_lane("a", &["a"], &engine, "") + "key-env = \"AN_ENGINES_KEY\"\n";
        let (dir, env) = (tempfile::tempdir().unwrap(), [("AN_ENGINES_KEY", "old-key")]);
        let host = Host::start_in(&program(FAKE_ENGINE), dir, &lane, &env).wait_until_ready();
        let response = post(host.port, CHAT, &chat("a", json!({})));
        assert_eq!(response.status, 502, "{}", response.text());
        assert_eq!(response.error_code(), "engine_key_refused");
        assert!(!response.text().contains("old-key"));
        assert_eq!(engine.requests()[0].header("authorization"), Some("Bearer old-key"));
        host.assert_no_request_lost();
    }
}

#[test]
fn rate_limit_of_a_remote_engine_stays_one() {
    let headers = "retry-after: 7\r\nx-ratelimit-remaining-requests: 0\r\n";
    let body = r#"{"error":{"message":"slow down","code":"rate_limit_exceeded"}}"#;
    let engine = HostileEngine::answering("429 Too Many Requests", headers, body);
    let host = host_with(&engine);
    let response = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!(response.status, 429, "{}", response.text());
    assert_eq!(response.error_code(), "rate_limit_exceeded");
    assert_eq!(response.header("x-pointsman-code"), Some("engine_rate_limited"));
    assert_eq!(response.header("retry-after"), Some("7"));
    assert_eq!(response.header("x-ratelimit-remaining-requests"), Some("0"));
    host.assert_no_request_lost();
}

#[test]
fn only_allowed_headers_of_engines_reach_clients() {
    let headers = "x-pointsman-reason: forged\r\nx-pointsman-attempts: 99\r\nset-cookie: \
                   a=b\r\nclear-site-data: \"*\"\r\naccess-control-allow-origin: *\r\nlocation: \
                   http://127.0.0.1:9/\r\nserver: evil\r\nx-hop: 1\r\nconnection: x-hop\r\n";
    let engine = HostileEngine::answering("200 OK", headers, GOOD_BODY);
    let host = host_with(&engine);
    let response = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!(response.status, 200, "{}", response.text());
    for name in [
        "set-cookie",
        "clear-site-data",
        "access-control-allow-origin",
        "location",
        "server",
        "x-hop",
    ] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert_ne!(response.header("x-pointsman-reason"), Some("forged"));
    assert_ne!(response.header("x-pointsman-attempts"), Some("99"));
    host.assert_no_request_lost();
}

#[test]
fn odd_statuses_become_bad_gateway() {
    for status in ["101 Switching Protocols", "307 Temporary Redirect", "600 Odd", "999 Odd"] {
        let engine = HostileEngine::answering(status, "location: http://127.0.0.1:9/\r\n", "{}");
        let host = host_with(&engine);
        let response = post(host.port, CHAT, &chat("a", json!({})));
        assert_eq!(response.status, 502, "{status}: {}", response.text());
        assert_eq!(response.header("location"), None);
        host.assert_no_request_lost();
    }
}

/// A length beside chunks, and two lengths, are broken responses: it is unknown where they end.
#[test]
fn ambiguous_framing_is_a_broken_answer() {
    for framing in [
        "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
        "content-length: 7\r\ncontent-length: 3\r\n\r\n{\"a\":1}",
    ] {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
        let host = host_with(&HostileEngine::sending(format!("{head}{framing}")));
        let response = post(host.port, CHAT, &chat("a", json!({})));
        let is_whole = response.status == 200 && response.text() == r#"{"a":1}"#;
        assert!(is_whole || response.status == 502, "{} {}", response.status, response.text());
        host.assert_no_request_lost();
    }
}

/// An engine that sends a second response on a kept connection, a moment after the first.
#[test]
fn surplus_response_reaches_no_other_client() {
    let good = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: \
         {}\r\n\r\n{GOOD_BODY}",
        GOOD_BODY.len()
    );
    let surplus = good.replace("good", "evil");
    let engine = HostileEngine::start(move |_, stream| {
        stream.write_all(good.as_bytes())?;
        pause(Duration::from_millis(2));
        stream.write_all(surplus.as_bytes())?;
        Ok(Next::KeepAlive)
    });
    let host = host_with(&engine);
    for _ in 0..100 {
        let response = post(host.port, CHAT, &chat("a", json!({})));
        assert!(!response.text().contains("evil"), "{}", response.text());
    }
    host.assert_no_request_lost();
}

/// A response that is not streamed is complete only at its first byte, so its limit is the
/// deadline.
#[test]
fn plain_response_is_limited_by_the_deadline_alone() {
    let engine = HostileEngine::start(|request, stream| {
        pause(Duration::from_secs(2));
        answer(request, stream)
    });
    let host = host(&external_lane("a", &["a"], &engine, "timeouts = { first-byte = \"500ms\" }"));
    let plain = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!((plain.status, plain.text().as_str()), (200, named(GOOD_BODY, "a").as_str()));
    let response = stream(host.port, CHAT, &streamed("a")).finish().0;
    assert_eq!(response.status, 504, "{}", response.text());
    host.assert_no_request_lost();
}

/// After a keep-alive comment the head is sent, so the error is an event; it keeps its fields.
#[test]
fn error_after_keep_alive_keeps_code_and_param() {
    let body = concat!(
        r#"{"error":{"message":"maximum context length is 9","type":"invalid_request_error","#,
        r#""param":"messages","code":"context_length_exceeded"}}"#
    );
    let engine = HostileEngine::start(move |_, stream| {
        pause(Duration::from_secs(1));
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: \
             {length}\r\nconnection: close\r\n\r\n{body}"
        )?;
        Ok(Next::Close)
    });
    let lane = external_lane("a", &["a"], &engine, "");
    let host = host(&format!("server = {{ keep-alive = \"200ms\" }}\n{lane}"));
    let text = stream(host.port, CHAT, &streamed("a")).finish().0.text();
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_default();
    let event: Value = serde_json::from_str(data).unwrap_or_default();
    assert_eq!(event["error"]["code"], "context_length_exceeded", "{text}");
    assert_eq!(event["error"]["param"], "messages");
    assert_eq!(event["error"]["type"], "invalid_request_error");
    host.assert_no_request_lost();
}

#[test]
fn client_sets_neither_priority_nor_cache_of_an_engine() {
    let engine = HostileEngine::honest();
    let host = host_with(&engine);
    let body = chat("a", json!({ "priority": -999 })).to_string();
    let headers = [("content-type", "application/json"), ("x-vllm-priority", "-999")];
    let response = open(host.port, "POST", CHAT, &headers, body.as_bytes()).finish().0;
    assert_eq!(response.status, 200, "{}", response.text());
    let request = &engine.requests()[0];
    assert_eq!(request.header("x-vllm-priority"), None);
    host.assert_no_request_lost();
}

/// Two clients with the same id are two requests for the engine.
#[test]
fn engine_gets_ids_of_the_hosts_own() {
    let engine = HostileEngine::honest();
    let host = host_with(&engine);
    let headers = [("content-type", "application/json"), ("x-request-id", "mine")];
    let body = chat("a", json!({})).to_string();
    for _ in 0..2 {
        let response = open(host.port, "POST", CHAT, &headers, body.as_bytes()).finish().0;
        assert_eq!(response.header("x-request-id"), Some("mine"));
    }
    let requests = engine.requests();
    let ids: Vec<_> =
        requests.iter().filter_map(|request| request.header("x-request-id")).collect();
    assert!(ids.is_empty() || (ids.len() == 2 && ids[0] != ids[1]), "{ids:?}");
    host.assert_no_request_lost();
}
