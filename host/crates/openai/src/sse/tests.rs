use proptest::prelude::*;

use super::*;

/// Feeds `stream` in pieces of `size`; returns the forwarded bytes and the observer.
fn watch(stream: &[u8], size: usize) -> (Vec<u8>, StreamWatch) {
    watch_kind(StreamKind::Chunks, stream, size)
}

fn watch_kind(kind: StreamKind, stream: &[u8], size: usize) -> (Vec<u8>, StreamWatch) {
    let mut watch = StreamWatch::new(kind);
    let mut forwarded = Vec::new();
    for piece in stream.chunks(size.max(1)) {
        forwarded.extend_from_slice(&watch.chunk(Bytes::copy_from_slice(piece)));
    }
    (forwarded, watch)
}

const CHUNK: &str = concat!(
    r#"data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}"#,
    "\n\n",
);
const LAST: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = concat!(
    r#"data: {"choices":[],"usage":{"prompt_tokens":3,"total_tokens":8,"completion_tokens":5,"#,
    r#""prompt_tokens_details":{"cached_tokens":2}}}"#,
    "\n\n",
);
const ERROR: &str = concat!(
    r#"data: {"error":{"message":"EngineCore died","type":"InternalServerError","code":500}}"#,
    "\n\n",
);
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn stream_ends_are_distinguished() {
    let unfinished = |mid_frame| StreamEnd::Unfinished { mid_frame };
    for (stream, end) in [
        (format!("{CHUNK}{LAST}{USAGE}{DONE}"), StreamEnd::Complete),
        (format!("{CHUNK}{DONE}").replace('\n', "\r\n"), StreamEnd::Complete),
        (format!("{CHUNK}{LAST}"), StreamEnd::Complete),
        (CHUNK.to_owned(), unfinished(false)),
        (format!("{CHUNK}data: {{\"cho"), unfinished(true)),
        (format!("{CHUNK}data: {{}}\n"), unfinished(true)),
        (format!("{CHUNK}{ERROR}"), StreamEnd::Failed),
        (format!("{CHUNK}{ERROR}{DONE}"), StreamEnd::Failed),
        (": keep-alive\n\n".to_owned(), unfinished(false)),
        (String::new(), unfinished(false)),
    ] {
        for size in [1, 7, 4096] {
            assert_eq!(
                watch(stream.as_bytes(), size).1.end(),
                end,
                "{stream:?} in pieces of {size}"
            );
        }
    }
}

/// The event that ends a stream of the endpoint for responses.
const COMPLETED: &str = concat!(
    r#"data: {"type":"response.completed","response":{"error":null,"usage":"#,
    r#"{"input_tokens":3,"output_tokens":5,"input_tokens_details":{"cached_tokens":2}}}}"#,
    "\n\n",
);

#[test]
fn typed_events_end_a_stream_of_responses() {
    let delta = |text: &str| {
        format!("data: {{\"type\":\"response.output_text.delta\",\"delta\":{text}}}\n\n")
    };
    let quoted = delta(r#""\"response.completed\" \"error\"""#);
    let nested = "data: {\"type\":\"x\",\"item\":\"response.completed\"}\n\n".to_owned();
    let failed = "data: {\"type\":\"response.failed\",\"response\":{}}\n\n".to_owned();
    let error = "data: {\"type\":\"error\",\"message\":\"m\"}\n\n".to_owned();
    let incomplete = COMPLETED.replace("completed", "incomplete");
    let unfinished = StreamEnd::Unfinished { mid_frame: false };
    for (stream, end) in [
        (format!("{quoted}{COMPLETED}"), StreamEnd::Complete),
        (format!("{quoted}{incomplete}"), StreamEnd::Complete),
        (format!("{quoted}{nested}"), unfinished),
        (format!("{quoted}{failed}"), StreamEnd::Failed),
        (format!("{quoted}{error}"), StreamEnd::Failed),
    ] {
        for size in [1, 4096] {
            let (_, watch) = watch_kind(StreamKind::Events, stream.as_bytes(), size);
            assert_eq!(watch.end(), end, "{stream}");
        }
    }
    let (_, watch) = watch_kind(StreamKind::Events, COMPLETED.as_bytes(), 4096);
    let usage = Usage { prompt_tokens: 3, cached_tokens: Some(2), completion_tokens: 5 };
    assert_eq!((watch.usage(), watch.events()), (Some(usage), 1));
}

#[test]
fn llama_cpp_reports_usage_in_its_timings() {
    // The end of a stream of build b11549 whose client has not asked for the usage.
    let last = concat!(
        r#"data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1,"#,
        r#""object":"chat.completion.chunk","timings":{"cache_n":32,"prompt_n":1,"#,
        r#""prompt_ms":30.378,"predicted_n":5,"predicted_ms":30.724}}"#,
        "\n\n",
    );
    let timings = Usage { prompt_tokens: 33, cached_tokens: Some(32), completion_tokens: 5 };
    assert_eq!(watch(format!("{last}{DONE}").as_bytes(), 7).1.usage(), Some(timings));
    let (_, watched) = watch(format!("{last}{USAGE}{DONE}").as_bytes(), 4096);
    assert_eq!(watched.usage().map(|usage| usage.prompt_tokens), Some(3), "usage is preferred");
    let partial = LAST.replace("]}", "],\"timings\":{\"prompt_n\":1}}");
    assert_eq!(watch(partial.as_bytes(), 4096).1.usage(), None);
}

#[test]
fn keys_inside_text_or_nested_objects_are_ignored() {
    let stream = concat!(
        r#"data: {"choices":[{"delta":{"content":"\"error\":[DONE] \"usage\": "}}],"#,
        r#""x":{"error":1}}"#,
        "\n\n",
    );
    let (_, watch) = watch(stream.as_bytes(), 4096);
    assert_eq!(watch.end(), StreamEnd::Unfinished { mid_frame: false });
    assert_eq!((watch.events(), watch.usage()), (1, None));
}

#[test]
fn usage_and_events_are_counted() {
    let (_, watch) = watch(format!("{CHUNK}{CHUNK}{LAST}{USAGE}{DONE}").as_bytes(), 5);
    assert_eq!(
        watch.usage(),
        Some(Usage { prompt_tokens: 3, cached_tokens: Some(2), completion_tokens: 5 })
    );
    assert_eq!(watch.events(), 4);
}

#[test]
fn bytes_after_an_error_event_are_held_back() {
    let stream = format!("{CHUNK}{ERROR}{DONE}");
    for size in 1..stream.len() {
        let (forwarded, _) = watch(stream.as_bytes(), size);
        assert_eq!(
            String::from_utf8(forwarded).unwrap(),
            format!("{CHUNK}{ERROR}"),
            "in pieces of {size}"
        );
    }
}

const PARTS: [&str; 8] = [CHUNK, LAST, USAGE, DONE, ": ping\n\n", "data: x\r\n", "\n", "junk"];

proptest! {
    /// Without an error event every byte is forwarded, and chunk boundaries do not change what is
    /// observed.
    #[test]
    fn bytes_are_forwarded_for_any_chunk_size(
        parts in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 0..12),
        size in 1usize..200,
    ) {
        let stream = parts.concat();
        let (forwarded, pieces) = watch(stream.as_bytes(), size);
        let (_, whole) = watch(stream.as_bytes(), stream.len().max(1));
        prop_assert_eq!(forwarded, stream.as_bytes());
        let observed = |watch: &StreamWatch| (watch.end(), watch.events(), watch.usage());
        prop_assert_eq!(observed(&pieces), observed(&whole));
    }

    #[test]
    fn arbitrary_bytes_are_forwarded_without_an_error_event(
        bytes: Vec<u8>,
        size in 1usize..20,
    ) {
        let (forwarded, watch) = watch(&bytes, size);
        prop_assert!(watch.end() == StreamEnd::Failed || forwarded == bytes);
    }
}
