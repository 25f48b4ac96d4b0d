//! Parsing a large body takes little more memory than the body, whatever is in it.
//! Each case runs in the process of this one test, which measures the peak of the process.

#![cfg(test)]

use std::fs;

use bytes::Bytes;
use pointsman_domain::{Endpoint, RequestView as _};
use pointsman_openai::{Head, Request};

/// Half the default of `server.max-body`, because the test is slow otherwise.
const BODY: usize = 16 << 20;

/// Returns a field of `/proc/self/status` in bytes.
fn status(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kilobytes: usize = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}

/// Returns a body of that size that has `element` as often as possible.
fn body(begin: &str, element: &str, end: &str) -> Bytes {
    let mut body = String::with_capacity(BODY);
    body.push_str(begin);
    body.push_str(element);
    while body.len() + element.len() + end.len() < BODY {
        body.push(',');
        body.push_str(element);
    }
    body.push_str(end);
    body.into()
}

#[test]
fn peak_of_parsing_is_at_most_twice_the_body() {
    use Endpoint::{ChatCompletions, Completions};
    let chat = r#"{"model":"m","messages":["#;
    let text = format!(r#"{{"role":"user","content":"{}"}}"#, "some \\n words ".repeat(1 << 20));
    for (endpoint, begin, element, end, is_valid) in [
        (Completions, r#"{"model":"m","prompt":["#, r#""""#, "]}", false),
        (Completions, r#"{"model":"m","prompt":["#, "1", "]}", true),
        (Completions, r#"{"model":"m","prompt":[["#, "1", "]]}", true),
        (Completions, r#"{"model":"m","prompt":["#, "[]", "]}", false),
        (ChatCompletions, chat, r#"{"role":"a"}"#, "]}", false),
        (ChatCompletions, chat, r#"{"role":"a","content":""}"#, "]}", false),
        (
            ChatCompletions,
            r#"{"model":"m","messages":[{"role":"a","content":["#,
            "{}",
            "]}]}",
            false,
        ),
        (ChatCompletions, r#"{"model":"m","messages":[],"x":["#, "[]", "]}", true),
        (ChatCompletions, r#"{"model":"m","messages":[],"x":{"#, r#""":0"#, "}}", false),
        (ChatCompletions, r#"{"model":"m","messages":[],"#, r#""":0"#, "}", false),
        (ChatCompletions, chat, &*text, "]}", true),
    ] {
        let body = body(begin, element, end);
        let size = body.len();
        // Resets the peak.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS:");
        let request = Request::parse(endpoint, body, Head::default());
        let peak = status("VmHWM:").saturating_sub(before);
        assert!(peak <= size, "{begin}{element:.20}: {} MiB", peak >> 20);
        assert_eq!(request.is_ok(), is_valid, "{begin}{element:.20}");
        let Ok(request) = request else { continue };
        assert!(request.info().prompt_tokens > 0 || request.info().messages == 0);
    }
}
