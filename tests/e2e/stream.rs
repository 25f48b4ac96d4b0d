//! Streams: every byte as it comes, and no broken one that looks complete.

use pointsman_tests::client::{chat, get, stream};
use pointsman_tests::host::kill;
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
fn bytes_pass_through_whatever_the_chunks() {
    let host = one_lane(&["--flavour", "vllm"]);
    for cut in [Value::Null, json!(1), json!(7), json!(4096)] {
        host.script("a", json!({ "cut": cut, "tokens": 9 }));
        let body = streaming(json!({ "stream_options": { "include_usage": true } }));
        let headers = [("content-type", "application/json"), ("x-request-id", "same")];
        let ask = |port| {
            pointsman_tests::client::send(port, "POST", CHAT, &headers, body.to_string().as_bytes())
        };
        let (routed, direct) = (ask(host.port), ask(host.engine_port("a")));
        assert_eq!(routed.text(), direct.text(), "in pieces of {cut}");
        assert!(routed.text().ends_with("data: [DONE]\n\n"));
        assert_eq!(routed.header("content-type"), direct.header("content-type"));
    }
    host.assert_nothing_lost();
}

/// The engine sends nothing more until the test has seen what was sent: a router that holds a chunk back makes this hang.
#[test]
fn each_chunk_goes_on_as_soon_as_it_comes() {
    let host = one_lane(&["--script", r#"{"stall-after": 3}"#]);
    let mut answer = stream(host.port, CHAT, &streaming(json!({})));
    assert!(answer.until("word2"));
    assert!(!String::from_utf8_lossy(&answer.body).contains("word3"));
    drop(answer);
    host.assert_nothing_lost();
}

#[test]
fn an_engine_killed_in_mid_stream_gives_an_error_event_and_no_done() {
    let host = one_lane(&["--script", r#"{"stall-after": 3}"#]);
    let mut answer = stream(host.port, CHAT, &streaming(json!({})));
    assert!(answer.until("word2"));
    let pid = host.engine_pid("a");
    kill(pid, Signal::KILL);
    let (reply, complete) = answer.finish();
    let text = reply.text();
    assert!(complete && !text.contains("[DONE]"), "{text}");
    let event = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
    let event: Value = serde_json::from_str(event).unwrap();
    assert_eq!(event["error"]["code"], "engine_error", "{event}");
    wait_until("the lane serves again", || {
        host.lane("a")["starts"] == 2 && host.lane("a")["state"] == "ready"
    });
    assert_ne!(host.engine_pid("a"), pid);
    host.script("a", json!({}));
    assert!(stream(host.port, CHAT, &streaming(json!({}))).until("[DONE]"));
    host.assert_nothing_lost();
    host.stop();
}

#[test]
fn streams_that_break_are_closed_with_an_error_event() {
    let host = host(&(lane("a", &["a"], &[]) + "[lanes.timeouts]\nidle = \"300ms\"\n"));
    for (script, code) in [
        (json!({ "end-after": 2 }), json!("engine_error")),
        (json!({ "stall-after": 2 }), json!("engine_error")),
        // The engine's own event, and the `[DONE]` that vLLM sends after it is held back.
        (json!({ "error-after": 2 }), json!(500)),
        (json!({ "error-after": 2, "cut": 5 }), json!(500)),
    ] {
        host.script("a", script.clone());
        let (reply, complete) = stream(host.port, CHAT, &streaming(json!({}))).finish();
        let text = reply.text();
        assert!(complete && text.contains("word1") && !text.contains("[DONE]"), "{script}: {text}");
        let event: Value =
            serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
        assert_eq!(event["error"]["code"], code, "{script}: {event}");
    }
    assert_eq!(host.metric("pointsman_errors_total", ""), 4.0);
    host.assert_nothing_lost();
}

#[test]
fn a_client_that_leaves_frees_the_slot_and_stops_the_engine() {
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
    // In a stream, and while waiting for an answer in one piece.
    for body in [streaming(json!({})), chat("a", json!({}))] {
        let leaves = std::thread::spawn({
            let port = host.port;
            move || {
                let text = body.to_string();
                let head = format!(
                    "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                    text.len()
                );
                let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                std::io::Write::write_all(&mut socket, head.as_bytes()).unwrap();
                wait_until("the engine works", || get(engine, "/fake/seen").json()["busy"] == 1);
            }
        });
        leaves.join().unwrap();
        wait_until("the slot is free", || busy() == 0);
    }
    assert_eq!(get(engine, "/fake/seen").json()["cancelled"], 2);
    assert_eq!(host.metric("pointsman_client_gone_total", ""), 2.0);
    host.assert_nothing_lost();
}

#[test]
fn a_waiter_that_leaves_gives_up_its_place() {
    let engine = pointsman_tests::host::fake_lane(
        crate::FAKE_ENGINE,
        "a",
        &["a"],
        "slots = 1",
        &["--script", r#"{"stall-after": 1}"#],
    );
    let host = host(&engine);
    let mut first = stream(host.port, CHAT, &streaming(json!({})));
    assert!(first.until("word0"));
    let text = streaming(json!({})).to_string();
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", host.port)).unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    std::io::Write::write_all(&mut socket, head.as_bytes()).unwrap();
    wait_until("it waits", || host.metric("pointsman_lane_queued", "") == 1.0);
    drop(socket);
    wait_until("it waits no more", || host.metric("pointsman_lane_queued", "") == 0.0);
    drop(first);
    host.assert_nothing_lost();
}
