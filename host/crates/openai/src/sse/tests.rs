use proptest::prelude::*;

use super::*;

/// Feeds `stream` in pieces of `size`; returns the forwarded bytes and the observer.
fn watch(stream: &[u8], size: usize) -> (Vec<u8>, StreamWatch) {
    watch_kind(StreamKind::Chunks, stream, size)
}

fn watch_kind(kind: StreamKind, stream: &[u8], size: usize) -> (Vec<u8>, StreamWatch) {
    let mut watch = StreamWatch::new(kind, 1);
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

/// Returns the last chunk of a choice.
fn last(index: u32, reason: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":{index},\"finish_reason\":{reason}}}]}}\n\n")
}

#[test]
fn stream_is_complete_when_all_choices_have_ended() {
    let (first, second) = (last(0, "\"stop\""), last(1, "\"length\""));
    for (stream, choices, is_complete) in [
        (first.clone(), 1, true),
        (first.clone(), 2, false),
        (format!("{first}{first}"), 2, false),
        (format!("{first}{CHUNK}"), 2, false),
        (format!("{first}{second}"), 2, true),
        (format!("{first}{DONE}"), 2, true),
        (last(7, "\"stop\""), 1, false),
        (last(0, "\"\""), 1, false),
        (last(0, "\"null\""), 1, false),
        (last(0, "\"None\""), 1, false),
        (last(0, "null"), 1, false),
        (last(0, "\"stop\"").replace(':', " : "), 1, false),
        (last(0, "\"stop\"").replace("\":", "\" : "), 1, true),
    ] {
        for size in [1, 4096] {
            let mut watch = StreamWatch::new(StreamKind::Chunks, choices);
            for piece in stream.as_bytes().chunks(size) {
                watch.chunk(Bytes::copy_from_slice(piece));
            }
            let end = watch.end_of_body();
            assert_eq!(end == StreamEnd::Complete, is_complete, "{stream} of {choices}: {end:?}");
        }
    }
}

#[test]
fn last_line_needs_no_line_ending() {
    let unfinished = StreamEnd::Unfinished { mid_frame: true };
    for (stream, end) in [
        (format!("{CHUNK}data: [DONE]"), StreamEnd::Complete),
        (format!("{CHUNK}data: [DONE]\n"), StreamEnd::Complete),
        (format!("{CHUNK}{}", LAST.trim_end()), StreamEnd::Complete),
        (format!("{CHUNK}{}", ERROR.trim_end()), StreamEnd::Failed),
        // A line that was cut does not count, even if it says so.
        (format!("{CHUNK}{}", LAST.trim_end().strip_suffix("]}").unwrap()), unfinished),
        (format!("{CHUNK}data: [DON"), unfinished),
        (format!("{CHUNK}{LAST}").replace('\n', "\r"), StreamEnd::Complete),
    ] {
        for size in [1, 7, 4096] {
            let (forwarded, mut watch) = watch(stream.as_bytes(), size);
            assert_eq!(watch.end_of_body(), end, "{stream:?} in pieces of {size}");
            assert_eq!(forwarded, stream.as_bytes());
        }
    }
}

#[test]
fn comments_are_neither_events_nor_content() {
    for size in [1, 3, 4096] {
        let (_, comments) = watch(b": ping\n\n:\r\n\r\n:data: {}\n", size);
        assert!(comments.is_silent() && !comments.has_begun());
        assert_eq!((comments.events(), comments.content_bytes()), (0, 0));
        let (_, event) = watch(format!(": ping\n\n{CHUNK}").as_bytes(), size);
        assert!(!event.is_silent() && event.has_begun());
        assert_eq!((event.events(), event.content_bytes()), (1, CHUNK.trim_end().len() as u64));
    }
    let (_, name) = watch(b"event: message\n", 4096);
    assert!(!name.is_silent() && !name.has_only_comments() && !name.has_begun());
    let (_, comment) = watch(b":\n\n: pi", 4096);
    assert!(!comment.is_silent() && comment.has_only_comments());
}

#[test]
fn only_data_is_progress() {
    for size in [1, 2, 4096] {
        let (_, fields) = watch(b"event: ping\nid: 7\nretry: 1\n\ndatum: 1\ndata\n\n", size);
        assert_eq!(fields.content_bytes(), 0);
        for (line, bytes) in [("data: {}", 8), ("error: {}", 9), ("\u{feff}data: {}", 11)] {
            let (_, data) = watch(format!("{line}\nid: 7\n\n").as_bytes(), size);
            assert_eq!(data.content_bytes(), bytes, "{line}");
        }
    }
}

#[test]
fn nothing_is_appended_to_a_response_that_is_over() {
    for (stream, is_over, is_muted) in [
        (format!("{CHUNK}{LAST}"), false, false),
        (format!("{CHUNK}{DONE}"), true, false),
        (format!("{CHUNK}{}", ERROR.trim_end()), false, false),
        (format!("{CHUNK}{}\n", ERROR.trim_end()), true, false),
        (format!("{CHUNK}{ERROR}"), true, true),
    ] {
        let (_, watch) = watch(stream.as_bytes(), 7);
        assert_eq!((watch.is_over(), watch.is_muted()), (is_over, is_muted), "{stream}");
    }
    let (_, watch) = watch_kind(StreamKind::Events, COMPLETED.as_bytes(), 7);
    assert!(watch.is_over());
}

#[test]
fn errors_are_recognised_in_all_forms() {
    for (event, is_error) in [
        (ERROR, true),
        ("data:{\"error\" : \"text\"}\n\n", true),
        ("data: {\"usage\":{\"prompt_tokens\":99999999999},\"error\":{\"code\":1}}\n\n", true),
        ("data: {\"usage\":{\"prompt_tokens\":-1},\"error\":{}}\n\n", true),
        ("data: {\"error\":{},\"error\":null}\n\n", true),
        ("event: error\ndata: {\"message\":\"m\"}\n\n", true),
        ("error: {\"message\":\"m\"}\n\n", true),
        ("data: {\"error\":null}\n\n", false),
        ("event: error\n\ndata: {}\n\n", false),
        ("data: {\"choices\":[{\"error\":1}]}\n\n", false),
    ] {
        let (_, watch) = watch(event.as_bytes(), 5);
        assert_eq!(watch.end() == StreamEnd::Failed, is_error, "{event}");
        assert_eq!(watch.error().is_some(), is_error, "{event}");
    }
}

#[test]
fn large_counts_of_tokens_saturate() {
    let usage = "data: {\"usage\":{\"prompt_tokens\":99999999999,\"completion_tokens\":1}}\n\n";
    let expected = Usage { prompt_tokens: u32::MAX, cached_tokens: None, completion_tokens: 1 };
    assert_eq!(watch(usage.as_bytes(), 5).1.usage(), Some(expected));
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

/// The events of a message: its beginning, a piece of text, and its end.
fn message(start_usage: &str, end_usage: &str) -> [String; 4] {
    let event =
        |kind: &str, more: &str| format!("event: {kind}\ndata: {{\"type\":\"{kind}\",{more}}}\n\n");
    let delta = r#""delta":{"type":"text_delta","text":"\"message_stop\" \"error\""}"#;
    let start = format!("\"message\":{{\"model\":\"m\",\"usage\":{start_usage}}}");
    let end = format!("\"delta\":{{\"stop_reason\":\"end_turn\"}},\"usage\":{end_usage}");
    [
        event("message_start", &start),
        event("content_block_delta", delta),
        event("message_delta", &end),
        event("message_stop", "\"x\":1"),
    ]
}

#[test]
fn message_stop_ends_a_stream_of_messages() {
    let [start, delta, end, stop] = message("{\"input_tokens\":3}", "{\"output_tokens\":5}");
    let error = r#"data: {"type":"error","error":{"type":"overloaded_error","message":"m"}}"#;
    let llama = r#"data: {"error":{"code":500,"message":"m","type":"server_error"}}"#;
    let unfinished = StreamEnd::Unfinished { mid_frame: false };
    for (stream, end) in [
        (format!("{start}{delta}{end}{stop}"), StreamEnd::Complete),
        (format!("{start}{delta}{end}{stop}{DONE}"), StreamEnd::Complete),
        (format!("{start}{delta}{end}"), unfinished),
        (format!("{start}{delta}"), unfinished),
        (format!("{start}event: error\n{error}\n\n"), StreamEnd::Failed),
        (format!("{start}{llama}\n\n{stop}"), StreamEnd::Failed),
    ] {
        for size in [1, 4096] {
            let (_, watch) = watch_kind(StreamKind::Messages, stream.as_bytes(), size);
            assert_eq!(watch.end(), end, "{stream}");
        }
    }
}

#[test]
fn usage_of_messages_is_in_two_events() {
    for (start, end, expected) in [
        (r#"{"input_tokens":3,"output_tokens":0}"#, r#"{"output_tokens":5}"#, (3, None, 5)),
        (
            r#"{"input_tokens":3,"cache_read_input_tokens":4,"cache_creation_input_tokens":2}"#,
            r#"{"output_tokens":5}"#,
            (9, Some(4), 5),
        ),
        (
            r#"{"input_tokens":0,"output_tokens":0}"#,
            r#"{"input_tokens":2,"cache_read_input_tokens":7,"output_tokens":5}"#,
            (9, Some(7), 5),
        ),
    ] {
        let stream = message(start, end).concat();
        let (_, watch) = watch_kind(StreamKind::Messages, stream.as_bytes(), 5);
        let (prompt_tokens, cached_tokens, completion_tokens) = expected;
        let usage = Usage { prompt_tokens, cached_tokens, completion_tokens };
        assert_eq!(watch.usage(), Some(usage), "{start} {end}");
        assert_eq!((watch.events(), watch.content_events()), (4, 1));
    }
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

const PARTS: [&str; 9] =
    [CHUNK, LAST, USAGE, DONE, ": ping\n\n", "data: x\r\n", "\n", "junk", "\r"];

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
        let observed = |watch: &StreamWatch| {
            (watch.end(), watch.events(), watch.usage(), watch.content_bytes(), watch.is_silent())
        };
        prop_assert_eq!(observed(&pieces), observed(&whole));
    }

    /// What is forwarded of a stream with an error event does not depend on chunk boundaries.
    #[test]
    fn error_ends_a_stream_for_any_chunk_size(
        before in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 0..6),
        after in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 0..6),
        error in prop::sample::select(vec![ERROR.to_owned(), ERROR.replace('\n', "\r\n")]),
        size in 1usize..200,
    ) {
        let stream = format!("{}\n\n{error}{}", before.concat(), after.concat());
        let (forwarded, pieces) = watch(stream.as_bytes(), size);
        let (whole, _) = watch(stream.as_bytes(), stream.len());
        prop_assert_eq!(pieces.end(), StreamEnd::Failed);
        prop_assert_eq!(forwarded, whole);
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

/// Returns the end of a stream of one kind, and its usage.
fn end_of(kind: StreamKind, choices: u32, stream: &str) -> (StreamEnd, Option<u32>) {
    let mut watch = StreamWatch::new(kind, choices);
    watch.chunk(stream.to_owned().into());
    (watch.end_of_body(), watch.usage().map(|usage| usage.completion_tokens))
}

#[test]
fn streams_of_audio_and_images_end_with_an_event() {
    let delta = "data: {\"type\":\"transcript.text.delta\",\"delta\":\"transcript.text.done\"}\n\n";
    let done = "data: {\"type\":\"transcript.text.done\",\"text\":\"a\",\
                \"usage\":{\"type\":\"tokens\",\"input_tokens\":3,\"output_tokens\":4}}\n\n";
    let unfinished = StreamEnd::Unfinished { mid_frame: false };
    let kind = StreamKind::Transcripts;
    assert_eq!(end_of(kind, 1, delta), (unfinished, None));
    assert_eq!(end_of(kind, 1, &[delta, done].concat()), (StreamEnd::Complete, Some(4)));
    // vLLM: the first piece of the audio is not the last one.
    let chunk = "data: {\"object\":\"transcription.chunk\",\"choices\":[{\"delta\":{\"content\":\
                 \"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    assert_eq!(end_of(kind, 1, chunk).0, unfinished);
    assert_eq!(end_of(kind, 1, &[chunk, "data: [DONE]\n\n"].concat()).0, StreamEnd::Complete);
    let error = "data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n";
    assert_eq!(end_of(kind, 1, &[chunk, error, "data: [DONE]\n\n"].concat()).0, StreamEnd::Failed);
    let speech = "data: {\"type\":\"speech.audio.delta\",\"audio\":\"AAAA\"}\n\n";
    let done = "data: {\"type\":\"speech.audio.done\",\"usage\":{\"output_tokens\":9}}\n\n";
    assert_eq!(end_of(StreamKind::Speech, 1, speech).0, unfinished);
    let speech = [speech, done].concat();
    assert_eq!(end_of(StreamKind::Speech, 1, &speech), (StreamEnd::Complete, Some(9)));
    let error = "data: {\"type\":\"error\",\"error\":{\"message\":\"m\"}}\n\n";
    assert_eq!(end_of(StreamKind::Speech, 1, error).0, StreamEnd::Failed);
}

#[test]
fn images_are_complete_though_they_are_longer_than_a_line_that_is_parsed() {
    let long = "A".repeat(MAX_LINE_BYTES + 10);
    let partial = "event: image_generation.partial_image\n\
                   data: {\"type\":\"image_generation.partial_image\",\"b64_json\":\"AAAA\"}\n\n";
    let named = format!("event: image_generation.completed\ndata: {{\"b64_json\":\"{long}\"}}\n\n");
    let typed = format!("data: {{\"type\":\"image_edit.completed\",\"b64_json\":\"{long}\"}}\n\n");
    let short = "data: {\"type\":\"image_edit.completed\",\"b64_json\":\"AA\"}\n\n";
    let unfinished = StreamEnd::Unfinished { mid_frame: false };
    assert_eq!(end_of(StreamKind::Images, 1, partial).0, unfinished);
    for last in [named.as_str(), &typed, short] {
        let stream = [partial, last].concat();
        assert_eq!(end_of(StreamKind::Images, 1, &stream).0, StreamEnd::Complete);
        assert_eq!(end_of(StreamKind::Images, 2, &stream).0, unfinished);
        let stream = [partial, last, last].concat();
        assert_eq!(end_of(StreamKind::Images, 2, &stream).0, StreamEnd::Complete);
    }
}
