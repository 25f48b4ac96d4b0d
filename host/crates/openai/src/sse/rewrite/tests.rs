use proptest::prelude::*;

use super::*;
use crate::sse::StreamWatch;

fn rewrite(stream: &str, size: usize, model: Option<&str>, hides_usage: bool) -> String {
    let mut rewrite = StreamRewrite::new(model, hides_usage);
    let mut out = Vec::new();
    for piece in stream.as_bytes().chunks(size.max(1)) {
        let piece = Bytes::copy_from_slice(piece);
        out.extend_from_slice(&match &mut rewrite {
            Some(rewrite) => rewrite.chunk(piece),
            None => piece,
        });
    }
    if let Some(rewrite) = &mut rewrite {
        out.extend_from_slice(&rewrite.finish());
    }
    String::from_utf8(out).unwrap()
}

const VLLM: &str = include_str!("../../../../../../tests/captures/vllm-0.32.0/chat-stream.http");
const LLAMA: &str =
    include_str!("../../../../../../tests/captures/llama-server-b115xx/chat-stream.http");

/// Returns the body of a captured stream.
fn body(capture: &str) -> &str {
    let (_, body) = capture.split_once("\r\n\r\n").or(capture.split_once("\n\n")).unwrap();
    body
}

/// Returns what an engine sends without `include_usage`, from what it sends with it.
fn without_usage(stream: &str) -> String {
    let events: Vec<&str> = stream.split_inclusive("\n\n").collect();
    let mut out = String::new();
    for (index, event) in events.iter().enumerate() {
        if event.contains("\"choices\":[],") {
            continue;
        }
        let usage = events.get(index + 1).filter(|event| event.contains("\"choices\":[],"));
        match usage.and_then(|usage| {
            let at = usage.find(",\"timings\"").or(usage.find(",\"system_fingerprint\":\"vllm"))?;
            usage.get(at..)
        }) {
            Some(moved) => {
                out.push_str(event.trim_end().strip_suffix('}').unwrap());
                out.push_str(moved);
            }
            None => out.push_str(event),
        }
    }
    out
}

#[test]
fn the_name_in_the_beginning_of_a_message_is_replaced() {
    let stream = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",",
        "\"content\":[{\"model\":\"engine\"}],\"model\" : \"engine\",\"x\":1.50}}\n\n",
        "event: content_block_delta\ndata: {\"delta\":{\"model\":\"engine\"}}\n\n",
    );
    let expected = stream.replace("\"model\" : \"engine\"", "\"model\" : \"asked\"");
    for size in [1, 7, 4096] {
        assert_eq!(rewrite(stream, size, Some("asked"), false), expected);
        assert_eq!(rewrite(stream, size, Some("engine"), false), stream);
    }
}

#[test]
fn captured_streams_look_as_without_the_usage() {
    for (capture, served, moved) in
        [(VLLM, "orchestrator", "system_fingerprint"), (LLAMA, "super_reader", "timings")]
    {
        let stream = body(capture);
        assert!(stream.contains("\"choices\":[],"));
        let expected = without_usage(stream);
        assert!(!expected.contains("\"usage\"") && expected.contains(moved));
        let renamed =
            |text: &str| text.replace(&format!("\"model\":\"{served}\""), "\"model\":\"org/name\"");
        for size in [1, 2, 7, 100, 4096, stream.len()] {
            let hidden = rewrite(stream, size, Some(served), true);
            assert_eq!(hidden, expected, "in pieces of {size}");
            assert_eq!(rewrite(stream, size, Some("org/name"), true), renamed(&expected));
            assert_eq!(rewrite(stream, size, Some("org/name"), false), renamed(stream));
            assert_eq!(rewrite(stream, size, Some(served), false), stream);
        }
    }
}

const CHUNK: &str = "data: {\"model\":\"e\",\"choices\":[{\"delta\":{\"model\":\"e\"}}]}\n\n";
const LAST: &str = "data: {\"model\":\"e\",\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str =
    "data: {\"model\":\"e\",\"choices\":[ ],\"usage\":{\"prompt_tokens\":1},\"x\":1}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn events_are_changed_wherever_they_are_cut() {
    let renamed = CHUNK.replacen("\"e\"", "\"a\"", 1);
    let last = LAST.replacen("\"e\"", "\"a\"", 1);
    let with_x = last.replace("]}", "],\"x\":1}");
    let error = "data: {\"error\":{\"message\":\"m\"},\"model\":\"e\"}\n\n";
    for (stream, expected) in [
        (format!("{CHUNK}{LAST}{USAGE}{DONE}"), format!("{renamed}{with_x}{DONE}")),
        (format!("{CHUNK}{LAST}{USAGE}"), format!("{renamed}{with_x}")),
        (format!("{CHUNK}{LAST}{DONE}"), format!("{renamed}{last}{DONE}")),
        (format!("{CHUNK}{LAST}"), format!("{renamed}{last}")),
        (format!("{LAST}{LAST}{USAGE}"), format!("{last}{with_x}")),
        (format!("{USAGE}{DONE}"), DONE.to_owned()),
        (format!("{CHUNK}: ping\n\n:\n{CHUNK}"), format!("{renamed}: ping\n\n:\n{renamed}")),
        (format!("id: 1\nevent: x\n{CHUNK}"), format!("id: 1\nevent: x\n{renamed}")),
        (format!("{CHUNK}{error}"), format!("{renamed}{error}")),
        ("data: {\"choices\":[{\"usage\":null}],\"usage\":null}\n\n".to_owned(), {
            "data: {\"choices\":[{\"usage\":null}]}\n\n".to_owned()
        }),
        ("data: {\"usage\": null , \"n\":1.50}\n\n".to_owned(), {
            "data: {\"n\":1.50}\n\n".to_owned()
        }),
        ("data:{\"usage\":null}\n\n".to_owned(), "data:{}\n\n".to_owned()),
        ("data: {\"n\":1,\ndata: \"model\" :\ndata:\"e\"}\n\n".to_owned(), {
            "data: {\"n\":1,\ndata: \"model\" :\ndata:\"a\"}\n\n".to_owned()
        }),
        ("\u{feff}data: {\"model\":\"e\"}\n\n".to_owned(), {
            "\u{feff}data: {\"model\":\"a\"}\n\n".to_owned()
        }),
        // What is not whole is passed on as it is.
        ("data: {\"model\":\"e\"".to_owned(), "data: {\"model\":\"e\"".to_owned()),
        ("data: {\"model\":\"e\"}".to_owned(), "data: {\"model\":\"a\"}".to_owned()),
        ("data: {\"model\":\"e\",\"del\n\n".to_owned(), {
            "data: {\"model\":\"e\",\"del\n\n".to_owned()
        }),
        ("data: [{\"model\":\"e\"}]\n\n".to_owned(), "data: [{\"model\":\"e\"}]\n\n".to_owned()),
    ] {
        for end in ["\n", "\r\n", "\r"] {
            let (stream, expected) = (stream.replace('\n', end), expected.replace('\n', end));
            for size in 1..=stream.len() {
                let sent = rewrite(&stream, size, Some("a"), true);
                assert_eq!(sent, expected, "{stream:?} in pieces of {size}");
            }
        }
    }
}

/// An event that waits for the usage is not held forever, nor what follows it.
#[test]
fn endless_blank_lines_are_forwarded() {
    let mut rewrite = StreamRewrite::new(Some("m"), true).unwrap();
    rewrite.chunk(LAST.as_bytes().into());
    let lines = Bytes::from(vec![b'\n'; 1 << 20]);
    let passed: usize = (0..8).map(|_| rewrite.chunk(lines.clone()).len()).sum();
    assert!(passed > 6 << 20, "{passed}");
    assert!(rewrite.finish().is_empty());
}

#[test]
fn usage_with_very_many_members_is_merged_in_time() {
    let members = |letter: char| -> String {
        (0..60_000).map(|index| format!(",\"{letter}{index}\":0")).collect()
    };
    let last =
        format!("data: {{\"choices\":[{{\"finish_reason\":\"stop\"}}]{}}}\n\n", members('a'));
    let usage = format!("data: {{\"choices\":[],\"usage\":{{}}{}}}\n\n", members('b'));
    let mut rewrite = StreamRewrite::new(None, true).unwrap();
    let start = std::time::Instant::now();
    rewrite.chunk(last.into());
    let merged = rewrite.chunk(usage.into());
    assert!(merged.ends_with(b",\"b59999\":0}\n\n"), "{}", merged.len());
    // Each member compared with each other one takes ten times as long.
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn long_event_is_forwarded_as_it_is() {
    let long = format!("data: {{\"model\":\"e\",\"x\":\"{}\"}}\n\n", "x".repeat(MAX_EVENT_BYTES));
    let stream = format!("{CHUNK}{long}{CHUNK}");
    let renamed = CHUNK.replacen("\"e\"", "\"a\"", 1);
    for size in [1000, 65_536] {
        let mut rewrite = StreamRewrite::new(Some("a"), true).unwrap();
        let mut sent = Vec::new();
        for piece in stream.as_bytes().chunks(size) {
            sent.extend_from_slice(&rewrite.chunk(Bytes::copy_from_slice(piece)));
            assert!(rewrite.held.len() <= MAX_EVENT_BYTES);
        }
        assert!(sent == format!("{renamed}{long}{renamed}").into_bytes());
    }
}

const PARTS: [&str; 12] = [
    CHUNK,
    LAST,
    USAGE,
    DONE,
    ": ping\n\n",
    "data: x\r\n",
    "\n",
    "junk",
    "\r",
    "data: {\"n\" : 1E5,\"n\":0.10 }\r\n\r\n",
    "data: {\"model\" : \"e\\u0065\" }\r\r",
    "data: {\"a\":[],\ndata: \"model\":\"e\"}\n\n",
];

/// Returns the stream with the names replaced in the text, which has no other such members.
fn expected(stream: &str) -> String {
    let nested = "{\"delta\":{\"model\":\"e\"}}";
    let text = stream.replace(nested, "NESTED");
    let text = text.replace("\"model\":\"e\"", "\"model\":\"a\"");
    text.replace("\"model\" : \"e\\u0065\"", "\"model\" : \"a\"").replace("NESTED", nested)
}

proptest! {
    /// Only names are changed, and chunk boundaries make no difference.
    #[test]
    fn chunk_boundaries_make_no_difference(
        parts in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 0..12),
        size in 1_usize..200,
        hides_usage: bool,
    ) {
        let stream = parts.concat();
        let sent = rewrite(&stream, size, Some("a"), hides_usage);
        prop_assert_eq!(&sent, &rewrite(&stream, stream.len(), Some("a"), hides_usage));
        if !hides_usage {
            prop_assert_eq!(expected(&sent), expected(&stream));
        }
    }

    /// Events that are passed on without being read are those that reading would not change:
    /// without the space, all are read.
    #[test]
    fn plain_events_are_those_that_reading_does_not_change(
        parts in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 0..12),
        size in 1_usize..200,
    ) {
        let without_space = |stream: &str| stream.replace("data: {", "data:{");
        let stream = parts.concat();
        let sent = without_space(&rewrite(&stream, size, None, true));
        prop_assert_eq!(sent, rewrite(&without_space(&stream), size, None, true));
    }

    /// The stream that a client gets ends as the engine's does.
    #[test]
    fn ends_of_streams_stay(
        parts in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 0..12),
        size in 1_usize..200,
    ) {
        let stream = parts.concat();
        let end = |stream: &str| {
            let mut watch = StreamWatch::default();
            watch.chunk(Bytes::copy_from_slice(stream.as_bytes()));
            watch.end_of_body()
        };
        prop_assert_eq!(end(&rewrite(&stream, size, Some("a"), true)), end(&stream));
    }

    #[test]
    fn arbitrary_bytes_are_forwarded(bytes: Vec<u8>, size in 1_usize..20) {
        let mut rewrite = StreamRewrite::new(Some("a"), true).unwrap();
        let mut sent = Vec::new();
        for piece in bytes.chunks(size) {
            sent.extend_from_slice(&rewrite.chunk(Bytes::copy_from_slice(piece)));
        }
        sent.extend_from_slice(&rewrite.finish());
        prop_assert_eq!(sent, bytes);
    }
}
