//! Benchmarks of the wire format: parsing and editing a request, and observing a chunk of a stream.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up must fail")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pointsman_domain::{Edit, Endpoint, LaneId, PrefixIndex, RequestView as _};
use pointsman_openai::{Head, Request, StreamRewrite, StreamWatch};

fn body(bytes: usize, text: &str) -> Bytes {
    let text = text.repeat(bytes / text.len() + 1);
    let message =
        serde_json::json!({ "role": "user", "content": text[..text.floor_char_boundary(bytes)] });
    let body = serde_json::json!({
        "model": "a",
        "stream": true,
        "temperature": 0.7,
        "messages": [message],
    });
    body.to_string().into()
}

fn facts(criterion: &mut Criterion) {
    for (name, body) in [
        ("facts of 1 KB", body(1_000, "some words ")),
        ("facts of 100 KB", body(100_000, "some words ")),
        ("facts of 100 KB with many escapes", body(100_000, "a \"line\"\n")),
    ] {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let request = Request::parse(
                    Endpoint::ChatCompletions,
                    black_box(body.clone()),
                    Head::default(),
                );
                request.unwrap().info()
            });
        });
    }
}

fn edits(criterion: &mut Criterion) {
    let body = body(1_000_000, "some words ");
    let request = Request::parse(Endpoint::ChatCompletions, body, Head::default()).unwrap();
    let edits: Vec<Edit> = (0..16)
        .map(|number| Edit::SetField(format!("/field-{number}"), number.to_string()))
        .collect();
    for count in [1, 16] {
        let name = format!("{count} edits of a body of 1 MB");
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| black_box(&request).apply(black_box(&edits[..count])));
        });
    }
    let headers: Vec<Edit> =
        (0..16).map(|number| Edit::SetHeader(format!("x-{number}"), "v".to_owned())).collect();
    criterion.bench_function("16 headers of a request of 1 MB", |bencher| {
        bencher.iter(|| black_box(&request).apply(black_box(&headers)));
    });
}

fn prompt_hashes(criterion: &mut Criterion) {
    let index = PrefixIndex::new(8);
    for (name, bytes) in [("1 KB", 1_000), ("100 KB", 100_000)] {
        let text = body(bytes, "some words, a \"line\"\n");
        let parse =
            || Request::parse(Endpoint::ChatCompletions, text.clone(), Head::default()).unwrap();
        criterion.bench_function(&format!("hashing a prompt of {name}"), |bencher| {
            let hash = |request: Request| request.prompt_hashes(index.hasher()).clone();
            bencher.iter_batched(parse, hash, BatchSize::SmallInput);
        });
        let request = parse();
        let prompt = request.prompt_hashes(index.hasher());
        criterion.bench_function(&format!("noting a prompt of {name} as served"), |bencher| {
            bencher.iter(|| index.served(LaneId(0), black_box(prompt)));
        });
        criterion.bench_function(&format!("looking up a prompt of {name}, one lane"), |bencher| {
            bencher.iter(|| index.cached_tokens(LaneId(0), black_box(prompt)));
        });
    }
}

fn stream(criterion: &mut Criterion) {
    let chunk = Bytes::from_static(
        concat!(
            r#"data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","#,
            r#""created":1795240912,"model":"some-model-name","#,
            r#""system_fingerprint":"fp_0123456789","#,
            r#""choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"#,
            r#""finish_reason":null}]}"#,
            "\n\n",
        )
        .as_bytes(),
    );
    criterion.bench_function("watch a chunk of a stream", |bencher| {
        let mut watch = StreamWatch::default();
        bencher.iter(|| watch.chunk(black_box(chunk.clone())));
    });
    criterion.bench_function("rewrite a chunk of a stream", |bencher| {
        let mut rewrite = StreamRewrite::new(Some("org/name"), true).unwrap();
        bencher.iter(|| rewrite.chunk(black_box(chunk.clone())));
    });
}

criterion_group!(benches, facts, edits, prompt_hashes, stream);
criterion_main!(benches);
