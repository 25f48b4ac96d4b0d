//! Compresses responses for clients that ask for it.
//!
//! Never streams: their events would wait for the encoder, and proxies could not pass them on one
//! by one. Never bodies of unknown length either, which may be streams of another form.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body::{Body as _, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::CompressionLevel;
use tower_http::compression::Compression;
use tower_service::Service;

use crate::headers::EngineLength;

/// Minimum size of a body that is compressed; a packet has about as much.
const MIN_SIZE: u64 = 1 << 10;
/// Responses that are compressed at a time, each of which takes up to about a megabyte. Further
/// ones are sent as they are.
const MAX_ENCODERS: usize = 32;
/// The encodings, the preferred one first.
const ENCODINGS: [&str; 4] = ["zstd", "br", "gzip", "deflate"];
/// Beginnings of the content types that are compressed.
const TYPES: [&str; 3] = ["application/json", "application/openmetrics-text", "text/"];

/// The encoders of a listener.
#[derive(Debug, Clone)]
pub(crate) struct Encoders(Arc<Semaphore>);

impl Default for Encoders {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_ENCODERS)))
    }
}

/// The encoding that the client of a request accepts for its response.
pub(crate) struct WantedEncoding {
    accepted: Option<&'static str>,
    is_head: bool,
}

impl WantedEncoding {
    /// Reads the headers of a request.
    pub(crate) fn new(request: &Request) -> Self {
        let is_head = request.method() == Method::HEAD;
        Self { accepted: best_encoding(request.headers()), is_head }
    }

    /// Compresses the response if the client accepts it, and the response is worth it.
    pub(crate) async fn apply(self, encoders: &Encoders, mut response: Response) -> Response {
        if !is_compressible(&response) {
            return response;
        }
        response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
        // The length of an encoded body is not known without encoding it: the headers of HEAD are
        // those of the plain body.
        let Some(encoding) = self.accepted.filter(|_| !self.is_head) else { return response };
        let Ok(permit) = Arc::clone(&encoders.0).try_acquire_owned() else { return response };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        headers.remove(header::CONTENT_LENGTH);
        let (head, body) = response.into_parts();
        let body = Box::pin(encode(encoding, Permitted { body, _permit: permit })).await;
        Response::from_parts(head, body)
    }
}

/// Returns the encoding that a client prefers; `None` for identity.
fn best_encoding(headers: &HeaderMap) -> Option<&'static str> {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let items = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let accepted: Vec<(&str, f32)> = items.filter_map(weighted).collect();
    let weight_of = |name: &str| {
        let weight = |name: &str| {
            let named = accepted.iter().find(|(accepted, _)| accepted.eq_ignore_ascii_case(name));
            named.map(|(_, weight)| *weight)
        };
        weight(name).or_else(|| weight("*")).unwrap_or(0.0)
    };
    let identity = accepted.iter().find(|(name, _)| name.eq_ignore_ascii_case("identity"));
    let least = identity.map_or(0.0, |(_, weight)| *weight);
    let weighted = ENCODINGS.into_iter().map(|name| (name, weight_of(name)));
    let best = weighted.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.filter(|(_, weight)| *weight > 0.0 && *weight >= least).map(|(name, _)| name)
}

/// Reads an element of `Accept-Encoding`. One with an invalid weight counts as not accepted.
fn weighted(item: &str) -> Option<(&str, f32)> {
    let mut parts = item.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?;
    let weight = match parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q="))) {
        Some(weight) => weight.parse().unwrap_or(0.0),
        None => 1.0,
    };
    Some((name, weight))
}

fn is_compressible(response: &Response) -> bool {
    let headers = response.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let announced = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let engine = response.extensions().get().map(|EngineLength(length)| *length);
    let size = announced.or(engine).or_else(|| response.body().size_hint().exact());
    let content_type = text(header::CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let is_fixed = text(header::CACHE_CONTROL).is_some_and(|value| value.contains("no-transform"));
    size.is_some_and(|size| size >= MIN_SIZE)
        && !is_fixed
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.contains_key(header::CONTENT_RANGE)
        && TYPES.iter().any(|beginning| content_type.starts_with(beginning))
        && !content_type.starts_with("text/event-stream")
}

/// Encodes a body while it is sent. The fastest level: the host shares the machine with engines,
/// and an encoder of a higher level takes several megabytes.
pub(crate) async fn encode<B>(encoding: &'static str, body: B) -> Body
where
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
{
    let mut request = http::Request::new(body);
    request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding));
    // tower-http has encoders as services only.
    let service = Compression::new(Echo).quality(CompressionLevel::Fastest);
    let always = |_: http::StatusCode, _: http::Version, _: &HeaderMap, _: &http::Extensions| true;
    let encoded: Result<_, Infallible> = service.compress_when(always).call(request).await;
    Body::new(encoded.unwrap_or_else(|never| match never {}).into_body())
}

/// Returns the body of the request as the response.
#[derive(Clone, Copy)]
struct Echo;

impl<B> Service<http::Request<B>> for Echo {
    type Response = http::Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<http::Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        ready(Ok(http::Response::new(request.into_body())))
    }
}

/// The body that an encoder reads, with the permit of the encoder.
struct Permitted {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Permitted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use pointsman_fleet::{ContentEncoding, decode};

    use super::*;

    #[test]
    fn best_encoding_has_the_highest_weight() {
        for (accepted, expected) in [
            ("gzip, deflate, br, zstd", Some("zstd")),
            ("gzip, deflate", Some("gzip")),
            ("GZIP;q=0.5, br;q=0.9", Some("br")),
            ("gzip; q=0.5, identity", None),
            ("identity;q=0.5, gzip", Some("gzip")),
            ("*", Some("zstd")),
            ("*;q=0.1, zstd;q=0", Some("br")),
            ("*;q=0", None),
            ("identity;q=0", None),
            ("gzip;q=0", None),
            ("gzip;q=x", None),
            ("compress, ,;q=1", None),
            ("", None),
        ] {
            let headers =
                HeaderMap::from_iter([(header::ACCEPT_ENCODING, accepted.parse().unwrap())]);
            assert_eq!(best_encoding(&headers), expected, "{accepted}");
        }
    }

    /// Requests a body of this type and size.
    async fn request(
        encoders: &Encoders,
        method: Method,
        (content_type, body): (&'static str, Body),
    ) -> Response {
        let request = http::Request::builder().method(method).uri("/");
        let request = request.header("accept-encoding", "br;q=0.9, gzip").body(Body::empty());
        let wanted = WantedEncoding::new(&request.unwrap());
        let mut response = Response::new(body);
        let content_type = HeaderValue::from_static(content_type);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        wanted.apply(encoders, response).await
    }

    fn header_of<'a>(response: &'a Response, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn large_texts_are_compressed() {
        let text = "{}".repeat(5000);
        let encoders = Encoders::default();
        let json = || ("application/json", Body::from(text.clone()));
        let response = request(&encoders, Method::GET, json()).await;
        assert_eq!(header_of(&response, "content-encoding"), "gzip");
        assert_eq!(header_of(&response, "vary"), "accept-encoding");
        assert_eq!(header_of(&response, "content-length"), "");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.len() < 200, "{}", body.len());
        let decoded = decode(Some(ContentEncoding::Gzip), Body::from(body)).await;
        assert_eq!(decoded.collect().await.unwrap().to_bytes(), text);
        let head = request(&encoders, Method::HEAD, json()).await;
        assert_eq!(header_of(&head, "content-encoding"), "");
        assert_eq!(header_of(&head, "vary"), "accept-encoding");
        assert_eq!(head.body().size_hint().exact(), Some(text.len() as u64));
        assert_eq!(encoders.0.available_permits(), MAX_ENCODERS);
    }

    #[tokio::test]
    async fn other_bodies_are_not_compressed() {
        let text = "{}".repeat(5000);
        let encoders = Encoders::default();
        let unknown = futures_util::stream::iter([Ok::<_, Infallible>(text.clone())]);
        for (content_type, body, vary) in [
            ("text/event-stream; charset=utf-8", Body::from(text.clone()), ""),
            ("application/json", Body::from("{}"), ""),
            ("application/json", Body::from_stream(unknown), ""),
            ("image/png", Body::from(text.clone()), ""),
        ] {
            let response = request(&encoders, Method::GET, (content_type, body)).await;
            assert_eq!(header_of(&response, "content-encoding"), "", "{content_type}");
            assert_eq!(header_of(&response, "vary"), vary, "{content_type}");
        }
        let _taken = encoders.0.try_acquire_many(MAX_ENCODERS as u32).unwrap();
        let json = ("application/json", Body::from(text));
        let response = request(&encoders, Method::GET, json).await;
        assert_eq!(header_of(&response, "content-encoding"), "");
        assert_eq!(header_of(&response, "vary"), "accept-encoding");
    }
}
