//! Fuzzing of what clients and engines send.

use bytes::Bytes;
use pointsman_domain::{Edit, Endpoint, RequestView as _};
use pointsman_fuzz::Fuzz;
use serde_json::Value;

use crate::{Head, Request, StreamEnd, StreamWatch};

const CHAT: &str = r#"{"model": "m", "stream": false, "messages": [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": [{"type": "text", "text": "caf\u00e9 \" \\"},
        {"type": "image_url", "image_url": {"url": "data:,"}}]},
    {"role": "assistant", "content": null, "tool_calls": []},
    {"role": "tool", "content": "\ud83d\ude00"}],
    "tools": [{}], "max_tokens": 5, "stream_options": {"include_usage": true}}"#;
const COMPLETION: &str =
    r#"{"model": "m", "prompt": ["once", "upon"], "max_completion_tokens": 1e2, "n": null}"#;

fn parse(endpoint: Endpoint, body: &Bytes) -> Option<Request> {
    Request::parse(endpoint, body.clone(), Head::default()).ok()
}

/// What was accepted is kept byte by byte, is valid JSON for the engine too, and an edit changes
/// what it says and nothing else.
#[test]
fn request_bodies() {
    Fuzz::new("request_bodies").input(CHAT).input(COMPLETION).run(|input| {
        let body = Bytes::copy_from_slice(input);
        let requests = [Endpoint::ChatCompletions, Endpoint::Completions]
            .map(|endpoint| parse(endpoint, &body));
        for request in requests.iter().flatten() {
            assert_eq!(request.body(), &body);
            assert!(request.text(0, 0, 10).chars().count() <= 10);
            assert!(request.prefix_hashes(16, 4).len() <= 4);
            assert_model_edit_changes_nothing_else(request);
            let edits = [
                Edit::KeepLastMessages(1),
                Edit::PrependSystem("s".into()),
                Edit::CapOutputTokens(1),
            ];
            let (edited, _) = request.apply(&edits);
            let again = parse(request.endpoint(), edited.body());
            assert!(again.is_some(), "{}", String::from_utf8_lossy(edited.body()));
        }
        requests.iter().any(Option::is_some)
    });
}

fn assert_model_edit_changes_nothing_else(request: &Request) {
    // serde_json rejects unpaired surrogates, which engines accept.
    let Ok(mut expected) = serde_json::from_slice::<Value>(request.body()) else { return };
    expected["model"] = "other".into();
    let edited = request.body_with_model("other");
    let edited: Value = serde_json::from_slice(&edited).expect("an edited body is JSON");
    assert_eq!(edited, expected);
}

fn watch<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (StreamWatch, Vec<u8>) {
    let mut watch = StreamWatch::default();
    let mut forwarded = Vec::new();
    for chunk in chunks {
        forwarded.extend(watch.chunk(Bytes::copy_from_slice(chunk)));
    }
    watch.end_of_body();
    (watch, forwarded)
}

/// Chunk boundaries make no difference, and bytes are only held back after an error event.
#[test]
fn streams() {
    let fuzz = Fuzz::new("streams").files("tests/captures", "stream.http");
    fuzz.files("tests/captures", "engine-killed.http").run(|input| {
        let (whole, forwarded) = watch([input].into_iter());
        assert!(input.starts_with(&forwarded));
        assert!(forwarded == input || whole.end() == StreamEnd::Failed);
        let size = 1 + usize::from(input.first().copied().unwrap_or_default()) % 7;
        let (parts, forwarded_parts) = watch(input.chunks(size));
        assert_eq!(forwarded_parts, forwarded);
        assert_eq!(
            (parts.end(), parts.events(), parts.usage()),
            (whole.end(), whole.events(), whole.usage())
        );
        whole.end() == StreamEnd::Complete
    });
}
