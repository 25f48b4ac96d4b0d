use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::HeaderValue;
use pointsman_domain::{Endpoint, RequestView as _};
use pointsman_openai::{BodyKind, Head, Request};
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::error_code::ErrorCode;
use crate::fair_permits::FairPermits;
use crate::settings::SpoolSettings;
use crate::upload::{BodyMemory, MAX_DECODERS, Received, Spool, receive};

const MIB: usize = 1 << 20;

struct Harness {
    uploads: Uploads,
    gauge: Gauge,
    folder: tempfile::TempDir,
}

impl Harness {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let settings =
            SpoolSettings { max_upload: 8 * MIB, memory: MIB, folder: path, max_size: 16 * MIB };
        let gauge = Gauge::default();
        let uploads = Uploads {
            max_body: MIB,
            timeout: Duration::from_secs(30),
            deadline: Duration::from_secs(3_600),
            memory: Arc::new(BodyMemory::new(16 * MIB, MIB, Gauge::default())),
            max_upload: settings.max_upload,
            form_memory: settings.memory,
            spool: Spool::new(&settings, gauge.clone()),
            decoders: Arc::new(FairPermits::new(MAX_DECODERS)),
            stop: CancellationToken::new(),
        };
        Self { uploads, gauge, folder }
    }

    async fn receive_as(
        &self,
        content_type: &str,
        body: Body,
    ) -> Result<(Form, Arc<Reservation>), ErrorCode> {
        let content_type = HeaderValue::from_str(content_type).unwrap();
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]);
        match receive(&self.uploads, BodyKind::Form, &headers, body, None).await {
            Ok((Received::Form(form), reservation)) => Ok((form, reservation)),
            Ok((Received::Json(_), _)) => panic!("not a form"),
            Err(error) => Err(error.code().unwrap()),
        }
    }

    async fn receive(&self, body: Body) -> Result<(Form, Arc<Reservation>), ErrorCode> {
        self.receive_as("multipart/form-data; boundary=\"X-1\"", body).await
    }

    async fn code(&self, body: impl Into<Body>) -> ErrorCode {
        let code = self.receive(body.into()).await.unwrap_err();
        self.assert_unused();
        code
    }

    fn assert_unused(&self) {
        assert_eq!(self.uploads.memory.used.load(Ordering::Relaxed), 0);
        assert_eq!(self.gauge.get(), 0);
    }
}

/// Returns a part with these headers.
fn raw(headers: &str, content: &[u8]) -> Vec<u8> {
    [format!("--X-1\r\n{headers}\r\n\r\n").as_bytes(), content, b"\r\n"].concat()
}

fn field(name: &str, content: &[u8]) -> Vec<u8> {
    raw(&format!("Content-Disposition: form-data; name=\"{name}\""), content)
}

fn file(content: &[u8]) -> Vec<u8> {
    let disposition = "content-disposition: form-data; name=\"file\"; filename=\"a.wav\"";
    raw(&format!("{disposition}\r\nContent-Type: audio/wav"), content)
}

fn whole(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), b"--X-1--\r\n".to_vec()].concat()
}

/// Returns what looks like boundaries and headers, but is the content of a part.
fn hostile(size: usize) -> Vec<u8> {
    let text = b"\r\n--X-\r\n\r\n--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nx\r";
    text.iter().copied().cycle().take(size).collect()
}

/// Returns the body that an engine gets.
fn written(form: Form) -> Vec<u8> {
    let form = Arc::new(form);
    let head = Head { form: Some(Arc::clone(&form)), ..Head::default() };
    let request = Request::parse(Endpoint::Transcriptions, form.json(), head).unwrap();
    assert_eq!(request.model(), "whisper");
    let sent = request.body_for_engine(Some("served"), false, None).form.unwrap();
    let read = |content: FormContent| match content {
        FormContent::Memory(bytes) => bytes.to_vec(),
        FormContent::File(file, range) => {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
            file.read_exact_at(&mut bytes, range.start).unwrap();
            bytes
        }
    };
    let (_, boundary) = sent.content_type.split_once("boundary=").unwrap();
    let body: Vec<u8> = sent.body.into_iter().flat_map(read).collect();
    String::from_utf8(body).unwrap().replace(boundary, "B").into_bytes()
}

fn expected(content: &[u8]) -> Vec<u8> {
    let disposition = "--B\r\ncontent-disposition: form-data; name=";
    let file =
        format!("{disposition}\"file\"; filename=\"a.wav\"\r\ncontent-type: audio/wav\r\n\r\n");
    let model = format!("\r\n{disposition}\"model\"\r\n\r\nserved\r\n--B--\r\n");
    [file.as_bytes(), content, model.as_bytes()].concat()
}

#[tokio::test(start_paused = true)]
async fn model_is_found_behind_a_file_of_any_size() {
    let harness = Harness::new();
    for size in [0, 1, 1_000, MIB, MIB + 1, 3 * MIB + 77] {
        let content = hostile(size);
        let body = whole(&[file(&content), field("model", b"whisper")]);
        for chunk in [body.len(), 1_000, 17] {
            if size > MIB && chunk == 17 {
                continue;
            }
            let chunks: Vec<_> =
                body.chunks(chunk).map(|part| Ok::<_, std::io::Error>(part.to_vec())).collect();
            let body = Body::from_stream(stream::iter(chunks));
            let (form, reservation) = harness.receive(body).await.unwrap();
            let spooled = if size > MIB { size } else { 0 };
            assert_eq!(harness.gauge.get(), spooled as i64, "{size}");
            assert!(harness.uploads.memory.used.load(Ordering::Relaxed) <= MIB + 10);
            assert_eq!(written(form), expected(&content), "{size} {chunk}");
            drop(reservation);
            harness.assert_unused();
        }
    }
    // The files have no names.
    let spool = harness.folder.path().join("spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn forms_are_decoded() {
    let harness = Harness::new();
    let body = whole(&[file(b"RIFF"), field("model", b"whisper")]);
    let encoded = crate::compression::encode("gzip", Body::from(body)).await;
    let mut headers = HeaderMap::new();
    let content_type = HeaderValue::from_static("multipart/form-data; boundary=X-1");
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let encoded = Body::new(encoded);
    let received = receive(&harness.uploads, BodyKind::Either, &headers, encoded, None).await;
    let (Received::Form(form), _) = received.unwrap() else { panic!("not a form") };
    assert_eq!(written(form), expected(b"RIFF"));
    let bomb = crate::compression::encode("gzip", Body::from(whole(&[file(&vec![0; 9 * MIB])])));
    let bomb = Body::new(bomb.await);
    let error = receive(&harness.uploads, BodyKind::Form, &headers, bomb, None).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::RequestTooLarge));
    harness.assert_unused();
}

#[tokio::test(start_paused = true)]
async fn malformed_forms_are_rejected() {
    let harness = Harness::new();
    let model = field("model", b"whisper");
    let disposition = "content-disposition: form-data; name=\"a\"";
    for (name, body) in [
        ("empty", Vec::new()),
        ("no end", file(b"RIFF")),
        ("no end of a field", [model.clone(), b"--X-1".to_vec()].concat()),
        ("other boundary", b"--Y\r\n\r\n\r\n--Y--\r\n".to_vec()),
        ("no name", whole(&[raw("content-type: audio/wav", b"")])),
        ("escaped name", whole(&[field("a%0D%0Ab", b"")])),
        ("quoted name", whole(&[field("a\\\"b", b"")])),
        (
            "encoded",
            whole(&[raw(&format!("{disposition}\r\ncontent-transfer-encoding: base64"), b"")]),
        ),
        ("long name", whole(&[field(&"n".repeat(300), b"")])),
        ("header without a colon", whole(&[raw(&format!("{disposition}\r\nx"), b"")])),
        ("long header", whole(&[raw(&format!("{disposition}\r\nx: {}", "y".repeat(9_000)), b"")])),
        ("endless header", raw(&format!("{disposition}\r\nx: {}", "y".repeat(MIB)), b"")),
        ("endless preamble", vec![b'-'; MIB]),
        ("endless padding", [b"--X-1".to_vec(), vec![b' '; MIB]].concat()),
    ] {
        assert_eq!(harness.code(body).await, ErrorCode::InvalidForm, "{name}");
    }
    let many = whole(&vec![field("a", b"x"); 10_000]);
    assert_eq!(harness.code(many).await, ErrorCode::TooManyItems);
    let twice = whole(&[model.clone(), field("model", b"other")]);
    assert_eq!(harness.code(twice).await, ErrorCode::InvalidRequest);
    let large = whole(&[file(&vec![0; 8 * MIB])]);
    assert_eq!(harness.code(large).await, ErrorCode::RequestTooLarge);
    for content_type in ["multipart/form-data", "multipart/form-data; boundary="] {
        let error = harness.receive_as(content_type, Body::from(whole(&[]))).await.unwrap_err();
        assert_eq!(error, ErrorCode::InvalidForm);
    }
    let error = harness.receive_as("application/json", Body::from("{}")).await.unwrap_err();
    assert_eq!(error, ErrorCode::UnsupportedMediaType);
}

#[tokio::test(start_paused = true)]
async fn uploads_that_stop_hold_nothing() {
    let harness = Harness::new();
    let begun = Bytes::from(file(&vec![1; 3 * MIB]));
    let stalled = stream::iter([Ok::<_, std::io::Error>(begun.clone())]).chain(stream::pending());
    assert_eq!(harness.code(Body::from_stream(stalled)).await, ErrorCode::RequestTimeout);
    let broken = stream::iter([Ok(begun), Err(std::io::Error::other("reset"))]);
    assert_eq!(harness.code(Body::from_stream(broken)).await, ErrorCode::IncompleteBody);
}

#[tokio::test(start_paused = true)]
async fn spool_that_is_full_or_cannot_be_written_is_an_error() {
    let harness = Harness::new();
    let upload = || Body::from(whole(&[file(&vec![1; 7 * MIB]), field("model", b"whisper")]));
    let first = harness.receive(upload()).await.unwrap();
    // Three quarters of the space are for large files, as of the memory.
    assert_eq!(harness.receive(upload()).await.unwrap_err(), ErrorCode::HostOverloaded);
    drop(first);
    assert!(harness.receive(upload()).await.is_ok());
    let spool = harness.folder.path().join("spool");
    std::fs::remove_dir(&spool).unwrap();
    std::fs::write(&spool, "a file").unwrap();
    assert_eq!(harness.receive(upload()).await.unwrap_err(), ErrorCode::InsufficientStorage);
    harness.assert_unused();
    // What fits into memory needs no file.
    let small = Body::from(whole(&[file(b"RIFF")]));
    assert!(harness.receive(small).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn names_of_files_are_found_in_either_form() {
    let harness = Harness::new();
    for (parameters, name) in [
        ("filename=\"na\u{ef}ve.wav\"", "na\u{ef}ve.wav"),
        ("filename*=utf-8''na%C3%AFve.wav", "na\u{ef}ve.wav"),
        ("filename=\"a.wav\"; filename*=utf-8''b.wav", "a.wav"),
        ("filename=\"\"", ""),
    ] {
        let head = format!("Content-Disposition: form-data; name=\"file\"; {parameters}");
        let body = whole(&[raw(&head, b"x"), field("model", b"whisper")]);
        let (form, _) = harness.receive(Body::from(body)).await.unwrap();
        let written = String::from_utf8(written(form)).unwrap();
        assert!(written.contains(&format!("name=\"file\"; filename=\"{name}\"")), "{written}");
        assert!(!written.contains("filename*"));
    }
}
