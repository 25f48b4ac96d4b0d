use std::sync::atomic::Ordering;

use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, header};

use super::*;
use crate::error_code::ErrorCode;

const MIB: usize = 1 << 20;

fn uploads(max_body: usize, memory: usize) -> Uploads {
    Uploads {
        max_body,
        timeout: Duration::from_secs(30),
        deadline: Duration::from_secs(3_600),
        memory: Arc::new(BodyMemory::new(memory, max_body, Gauge::default())),
        decoders: Arc::new(FairPermits::new(MAX_DECODERS)),
        max_upload: max_body,
        form_memory: MIB,
        spool: Spool::new(&crate::settings::SpoolSettings::default(), Gauge::default()),
        stop: CancellationToken::new(),
    }
}

async fn receive_body(uploads: &Uploads, body: Body) -> Result<Bytes, ErrorCode> {
    receive_from(uploads, body, None).await.map(|(body, _)| body)
}

async fn receive_from(
    uploads: &Uploads,
    body: Body,
    tenant: Option<&str>,
) -> Result<(Bytes, Arc<Reservation>), ErrorCode> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    receive_as_json(uploads, &headers, body, tenant).await
}

async fn receive_as_json(
    uploads: &Uploads,
    headers: &HeaderMap,
    body: Body,
    tenant: Option<&str>,
) -> Result<(Bytes, Arc<Reservation>), ErrorCode> {
    match receive(uploads, BodyKind::Json, headers, body, tenant).await {
        Ok((Received::Json(body), reservation)) => Ok((body, reservation)),
        Ok((Received::Form(_), _)) => panic!("a form"),
        Err(error) => Err(error.code().unwrap()),
    }
}

fn chunks(chunk: usize, pause: Duration) -> impl futures_util::Stream<Item = Bytes> + Send {
    stream::repeat(()).then(move |()| async move {
        tokio::time::sleep(pause).await;
        Bytes::from(vec![b' '; chunk])
    })
}

fn body(chunks: impl futures_util::Stream<Item = Bytes> + Send + 'static) -> Body {
    Body::from_stream(chunks.map(Ok::<_, std::io::Error>))
}

#[tokio::test(start_paused = true)]
async fn body_that_is_too_large_is_rejected_before_it_is_read() {
    let uploads = uploads(10, MIB);
    let error = receive_body(&uploads, Body::from("12345678901")).await.unwrap_err();
    assert_eq!(error, ErrorCode::RequestTooLarge);
    let endless = body(chunks(4, Duration::ZERO));
    assert_eq!(receive_body(&uploads, endless).await, Err(ErrorCode::RequestTooLarge));
    assert_eq!(receive_body(&uploads, Body::from("{}")).await.unwrap(), "{}");
}

#[tokio::test(start_paused = true)]
async fn silent_and_trickling_uploads_time_out() {
    let uploads = uploads(32 * MIB, 64 * MIB);
    let begun = Instant::now();
    // A fast beginning does not help.
    let stalled = chunks(MIB, Duration::ZERO).take(31).chain(stream::pending());
    assert_eq!(receive_body(&uploads, body(stalled)).await, Err(ErrorCode::RequestTimeout));
    assert_eq!(begun.elapsed().as_secs(), 30);
    let trickle = body(chunks(1, Duration::from_secs(1)));
    assert_eq!(receive_body(&uploads, trickle).await, Err(ErrorCode::RequestTimeout));
    assert_eq!(begun.elapsed().as_secs(), 60);
    assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 0);
    // A slow client that keeps the minimum rate.
    let slow = chunks(128 << 10, Duration::from_secs(2)).take(50);
    assert!(receive_body(&uploads, body(slow)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn uploads_end_when_the_host_stops() {
    let uploads = uploads(MIB, MIB);
    let stalled = receive_body(&uploads, body(stream::pending()));
    let (result, ()) = tokio::join!(stalled, async { uploads.stop.cancel() });
    assert_eq!(result, Err(ErrorCode::Stopping));
}

#[tokio::test(start_paused = true)]
async fn deadline_includes_the_body() {
    let uploads = Uploads { deadline: Duration::from_secs(5), ..uploads(MIB, MIB) };
    let begun = Instant::now();
    let result = receive_body(&uploads, body(stream::pending())).await;
    assert_eq!(result, Err(ErrorCode::RequestTimeout));
    assert_eq!(begun.elapsed(), uploads.deadline);
}

#[tokio::test(start_paused = true)]
async fn memory_is_shared_and_given_back() {
    let uploads = uploads(4 * MIB, 8 * MIB);
    let large = || body(chunks(MIB, Duration::ZERO).take(3));
    let first = receive_body(&uploads, large()).await.unwrap();
    let second = receive_body(&uploads, large()).await.unwrap();
    assert_eq!(receive_body(&uploads, large()).await, Err(ErrorCode::HostOverloaded));
    // Large bodies leave a quarter to small ones.
    let small = receive_body(&uploads, Body::from(vec![b' '; MIB])).await.unwrap();
    assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 7 * MIB);
    assert_eq!(uploads.memory.gauge.get(), 7 << 20);
    let slice = first.slice(1..2);
    drop((first, second, small));
    assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 3 * MIB, "a slice keeps the body");
    drop(slice);
    assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 0);
    assert!(receive_body(&uploads, large()).await.is_ok());
}

/// Receives a body with this `Content-Encoding`.
async fn receive_encoded(
    uploads: &Uploads,
    encoding: &'static str,
    body: Body,
) -> Result<Bytes, ErrorCode> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    receive_as_json(uploads, &headers, body, None).await.map(|(body, _)| body)
}

async fn encoded(encoding: &'static str, body: impl Into<Body>) -> Bytes {
    let body = crate::compression::encode(encoding, body.into()).await;
    body.collect().await.unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn encoded_bodies_are_decoded() {
    let uploads = uploads(MIB, 8 * MIB);
    let text: String = (0..20_000).map(|number| format!("{number} ")).collect();
    for name in ["gzip", "deflate", "br", "zstd"] {
        let sent = encoded(name, text.clone()).await;
        let body = receive_encoded(&uploads, name, Body::from(sent.clone())).await.unwrap();
        assert_eq!(body, text, "{name}");
        assert_eq!(uploads.memory.used.load(Ordering::Relaxed), text.len(), "{name}");
        drop(body);
        let cut = Body::from(sent.slice(..sent.len() - 1));
        let code = receive_encoded(&uploads, name, cut).await;
        assert_eq!(code, Err(ErrorCode::InvalidEncoding), "{name}");
        let plain = receive_encoded(&uploads, name, Body::from("{}")).await;
        assert_eq!(plain, Err(ErrorCode::InvalidEncoding), "{name}");
        assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 0, "{name}");
    }
    let plain = receive_encoded(&uploads, "identity", Body::from("{}")).await;
    assert_eq!(plain.unwrap(), "{}");
    for name in ["compress", "gzip, br"] {
        let code = receive_encoded(&uploads, name, Body::from("{}")).await;
        assert_eq!(code, Err(ErrorCode::UnsupportedEncoding), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn bomb_is_refused_at_the_limit() {
    let uploads = uploads(4 * MIB, 8 * MIB);
    let zeros = || body(stream::repeat(Bytes::from_static(&[0; 1 << 16])).take(1 << 10));
    for name in ["gzip", "deflate", "br", "zstd"] {
        let bomb = encoded(name, zeros()).await;
        assert!(bomb.len() < MIB, "{name}: {}", bomb.len());
        let code = receive_encoded(&uploads, name, Body::from(bomb)).await;
        assert_eq!(code, Err(ErrorCode::RequestTooLarge), "{name}");
        assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn encoded_uploads_time_out_by_the_bytes_that_arrive() {
    let uploads = uploads(MIB, 8 * MIB);
    let begun = Instant::now();
    let sent = encoded("br", "{}".repeat(1000)).await;
    let stalled = stream::iter([sent.slice(..10)]).chain(stream::pending());
    let code = receive_encoded(&uploads, "br", body(stalled)).await;
    assert_eq!(code, Err(ErrorCode::RequestTimeout));
    assert_eq!(begun.elapsed().as_secs(), 30);
    let broken = stream::iter([Ok(sent.slice(..10)), Err(std::io::Error::other("reset"))]);
    let code = receive_encoded(&uploads, "br", Body::from_stream(broken)).await;
    assert_eq!(code, Err(ErrorCode::IncompleteBody));
}

#[tokio::test(start_paused = true)]
async fn memory_is_held_by_the_request() {
    let uploads = uploads(MIB, MIB);
    let (body, reservation) = receive_from(&uploads, Body::from("{}"), None).await.unwrap();
    drop(body);
    assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 2, "the body was edited");
    drop(reservation);
    assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn large_bodies_of_one_tenant_get_half() {
    let uploads = uploads(4 * MIB, 16 * MIB);
    let large = || body(chunks(MIB, Duration::ZERO).take(3));
    let receive = |tenant| receive_from(&uploads, large(), Some(tenant));
    let first = (receive("a").await.unwrap(), receive("a").await.unwrap());
    assert_eq!(receive("a").await.unwrap_err(), ErrorCode::HostOverloaded);
    // The rejected body does not count, small ones are not limited, nor are other tenants.
    assert_eq!(uploads.memory.used.load(Ordering::Relaxed), 6 * MIB);
    let small = receive_from(&uploads, Body::from(vec![b' '; MIB]), Some("a")).await.unwrap();
    let other = receive("b").await.unwrap();
    drop((first, small, other));
    assert!(uploads.memory.large_by_tenant().is_empty());
    assert!(receive("a").await.is_ok());
}
