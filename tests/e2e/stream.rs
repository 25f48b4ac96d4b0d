//! Streams: every byte is forwarded as it arrives, and no broken stream looks complete.

use pointsman_tests::client::{chat, get, stream};
use pointsman_tests::host::send_signal;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";

fn streaming(more: Value) -> Value {
    let mut body = chat("a", json!({ "stream": true }));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn bytes_are_forwarded_unchanged_for_any_chunk_size() {
    let host = one_lane(&["--flavour", "vllm"]);
    for chunk_size in [Value::Null, json!(1), json!(7), json!(4096)] {
        host.set_script("a", json!({ "chunk-size": chunk_size, "tokens": 9 }));
        let body = streaming(json!({ "stream_options": { "include_usage": true } }));
        let headers = [("content-type", "application/json"), ("x-request-id", "same")];
        let ask = |port| {
            pointsman_tests::client::send(port, "POST", CHAT, &headers, body.to_string().as_bytes())
        };
        let (routed, direct) = (ask(host.port), ask(host.engine_port("a")));
        // The host extends the id of a request for the engine, which repeats it in the response.
        let id = routed.text().split('"').nth(3).unwrap().to_owned();
        assert!(id.starts_with("chatcmpl-same-"), "{id}");
        let routed_text = routed.text().replace(&id, "chatcmpl-same");
        assert_eq!(routed_text, direct.text(), "in chunks of {chunk_size}");
        assert!(routed.text().ends_with("data: [DONE]\n\n"));
        assert_eq!(routed.header("content-type"), direct.header("content-type"));
    }
    host.assert_no_request_lost();
}

/// The engine stalls until the test has seen what was sent, so a host that holds a chunk back would
/// make this test time out.
#[test]
fn chunks_are_forwarded_immediately() {
    let host = one_lane(&["--script", r#"{"stall-after": 3}"#]);
    let mut event_stream = stream(host.port, CHAT, &streaming(json!({})));
    assert!(event_stream.read_until("word2"));
    assert!(!String::from_utf8_lossy(&event_stream.body).contains("word3"));
    drop(event_stream);
    host.assert_no_request_lost();
}

#[test]
fn killed_engine_gives_error_event_without_done() {
    let host = one_lane(&["--script", r#"{"stall-after": 3}"#]);
    let mut event_stream = stream(host.port, CHAT, &streaming(json!({})));
    assert!(event_stream.read_until("word2"));
    let pid = host.engine_pid("a");
    send_signal(pid, Signal::KILL);
    let (response, complete) = event_stream.finish();
    let text = response.text();
    assert!(complete && !text.contains("[DONE]"), "{text}");
    let event = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
    let event: Value = serde_json::from_str(event).unwrap();
    assert_eq!(event["error"]["code"], "engine_error", "{event}");
    wait_until("the lane serves again", || {
        host.lane("a")["starts"] == 2 && host.lane("a")["state"] == "ready"
    });
    assert_ne!(host.engine_pid("a"), pid);
    host.set_script("a", json!({}));
    assert!(stream(host.port, CHAT, &streaming(json!({}))).read_until("[DONE]"));
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn broken_streams_end_with_error_event() {
    let host = host(&(lane("a", &["a"], &[]) + "[lanes.timeouts]\nidle = \"300ms\"\n"));
    for (script, code) in [
        (json!({ "end-after": 2 }), json!("engine_error")),
        (json!({ "stall-after": 2 }), json!("engine_timeout")),
        // The engine's own error event; the host must hold back vLLM's `[DONE]` after it.
        (json!({ "error-after": 2 }), json!(500)),
        (json!({ "error-after": 2, "chunk-size": 5 }), json!(500)),
    ] {
        host.set_script("a", script.clone());
        let (response, complete) = stream(host.port, CHAT, &streaming(json!({}))).finish();
        let text = response.text();
        assert!(complete && text.contains("word1") && !text.contains("[DONE]"), "{script}: {text}");
        let event: Value =
            serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
        assert_eq!(event["error"]["code"], code, "{script}: {event}");
    }
    assert_eq!(host.metric("pointsman_errors_total", ""), 4.0);
    host.assert_no_request_lost();
}

#[test]
fn client_disconnect_frees_slot_and_cancels_engine() {
    let host = one_lane(&["--script", r#"{"token-ms": 20, "tokens": 5000}"#]);
    let engine = host.engine_port("a");
    let busy = || {
        get(engine, "/slots")
            .json()
            .as_array()
            .unwrap()
            .iter()
            .filter(|slot| slot["is_processing"] == true)
            .count()
    };
    // During a stream, and while waiting for a response that is not streamed.
    for body in [streaming(json!({})), chat("a", json!({}))] {
        let client = std::thread::spawn({
            let port = host.port;
            move || {
                let text = body.to_string();
                let head = format!(
                    "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                     content-length: {}\r\n\r\n{text}",
                    text.len()
                );
                let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                std::io::Write::write_all(&mut socket, head.as_bytes()).unwrap();
                wait_until("the engine is busy", || get(engine, "/fake/seen").json()["busy"] == 1);
            }
        });
        client.join().unwrap();
        wait_until("the slot is free", || busy() == 0);
    }
    assert_eq!(get(engine, "/fake/seen").json()["cancelled"], 2);
    assert_eq!(host.metric("pointsman_client_gone_total", ""), 2.0);
    host.assert_no_request_lost();
}

#[test]
fn client_disconnect_removes_request_from_queue() {
    let engine = pointsman_tests::host::fake_lane(
        crate::FAKE_ENGINE,
        "a",
        &["a"],
        "slots = 1",
        &["--script", r#"{"stall-after": 1}"#],
    );
    let host = host(&engine);
    let mut first = stream(host.port, CHAT, &streaming(json!({})));
    assert!(first.read_until("word0"));
    let text = streaming(json!({})).to_string();
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", host.port)).unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{text}",
        text.len()
    );
    std::io::Write::write_all(&mut socket, head.as_bytes()).unwrap();
    wait_until("the request is queued", || host.metric("pointsman_lane_queued", "") == 1.0);
    drop(socket);
    wait_until("the request is no longer queued", || {
        host.metric("pointsman_lane_queued", "") == 0.0
    });
    drop(first);
    host.assert_no_request_lost();
}
