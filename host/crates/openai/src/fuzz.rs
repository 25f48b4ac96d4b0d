//! Fuzzing of what clients and engines send.

use bytes::Bytes;
use pointsman_domain::{Edit, Endpoint, RequestView as _};
use pointsman_fuzz::Fuzz;
use serde_json::Value;

use crate::{Head, ModelSplice, Request, StreamEnd, StreamRewrite, StreamWatch};

const CHAT: &str = r#"{"model": "m", "stream": false, "messages": [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": [{"type": "text", "text": "caf\u00e9 \" \\"},
        {"type": "image_url", "image_url": {"url": "data:,"}}]},
    {"role": "assistant", "content": null, "tool_calls": []},
    {"role": "tool", "content": "\ud83d\ude00"}],
    "tools": [{}], "max_tokens": 5, "stream_options": {"include_usage": true}}"#;
const COMPLETION: &str =
    r#"{"model": "m", "prompt": ["once", "upon"], "max_completion_tokens": 1e2, "n": null}"#;

const MESSAGES: &str = r#"{"model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "s"}],
    "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url",
    "url": "u"}}]}, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f",
    "input": {"a": 1.0}}]}, {"role": "user", "content": [{"type": "tool_result",
    "tool_use_id": "t", "content": "\ud83d"}]}],
    "tools": [{"name": "f", "input_schema": {}}], "stream": true}"#;

fn parse(endpoint: Endpoint, body: &Bytes) -> Option<Request> {
    Request::parse(endpoint, body.clone(), Head::default()).ok()
}

/// What was accepted is kept byte by byte, is valid JSON for the engine too, and an edit changes
/// what it says and nothing else.
#[test]
fn request_bodies() {
    Fuzz::new("request_bodies").input(CHAT).input(COMPLETION).input(MESSAGES).run(|input| {
        let body = Bytes::copy_from_slice(input);
        let requests = [Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Messages]
            .map(|endpoint| parse(endpoint, &body));
        for request in requests.iter().flatten() {
            assert_eq!(request.body(), &body);
            assert!(request.text(0, 0, 10).chars().count() <= 10);
            assert!(request.prefix_hashes(16, 4).len() <= 4);
            assert_model_edit_changes_nothing_else(request);
            assert_translation_is_complete(request, input);
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

/// A translated request is one for its endpoint, and whatever the engine sends has a translation.
fn assert_translation_is_complete(request: &Request, input: &[u8]) {
    let Ok(Some(mut translation)) = request.translated() else { return };
    assert!(parse(translation.request.endpoint(), translation.request.body()).is_some());
    assert_eq!(translation.request.streaming(), request.streaming());
    for chunk in input.chunks(7) {
        translation.response.chunk(chunk);
    }
    translation.response.finish(true);
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
        assert_eq!(rewrite(input.chunks(size)), rewrite([input].into_iter()));
        whole.end() == StreamEnd::Complete
    });
}

fn rewrite<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut rewrite =
        StreamRewrite::new(Some("org/other"), true).expect("there is something to do");
    let mut sent = Vec::new();
    for chunk in chunks {
        sent.extend(rewrite.chunk(Bytes::copy_from_slice(chunk)));
    }
    sent.extend(rewrite.finish());
    sent
}

fn splice<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut splice = ModelSplice::new("org/other", b"").expect("nothing has arrived");
    let mut sent = Vec::new();
    for chunk in chunks {
        sent.extend(splice.chunk(Bytes::copy_from_slice(chunk)));
    }
    sent
}

/// Chunk boundaries make no difference, and only the name of the model is replaced.
#[test]
fn response_bodies() {
    let fuzz = Fuzz::new("response_bodies").input(CHAT).input(COMPLETION);
    fuzz.input(r#"{"choices":[{"model":"x"}],"mod\u0065l" : "a\"b","n":1e5}"#).run(|input| {
        let sent = splice([input].into_iter());
        let size = 1 + usize::from(input.first().copied().unwrap_or_default()) % 7;
        assert_eq!(splice(input.chunks(size)), sent);
        let Ok(Value::Object(mut expected)) = serde_json::from_slice(input) else { return false };
        if let Some(model) = expected.get_mut("model").filter(|model| model.is_string()) {
            *model = "org/other".into();
        }
        assert_eq!(serde_json::from_slice::<Value>(&sent).ok(), Some(Value::Object(expected)));
        true
    });
}
