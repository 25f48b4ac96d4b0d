//! Decodes bodies: those of requests, and those of engines behind proxies that compress although
//! the host asks for identity.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use tower_http::decompression::{Decompression, DecompressionBody};
use tower_service::Service;

/// Bytes that are decoded before other tasks get their turn: about a millisecond.
const MAX_UNYIELDED: usize = 128 << 10;

/// The cause of an error of a body.
type BoxError = Box<dyn Error + Send + Sync>;

/// An encoding of bodies that the host can decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentEncoding {
    /// `gzip` (RFC 1952).
    Gzip,
    /// `deflate`, in the zlib format (RFC 1950).
    Deflate,
    /// `br` (RFC 7932).
    Brotli,
    /// `zstd` (RFC 8878).
    Zstd,
}

/// The body has an encoding that the host cannot decode, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsupportedEncoding;

impl ContentEncoding {
    /// The names of all encodings, for `Accept-Encoding`.
    pub const NAMES: &str = "gzip, deflate, br, zstd";

    /// Returns the encoding of a message's body; `None` for identity.
    ///
    /// # Errors
    /// If the host cannot decode the body.
    pub fn of_message(headers: &HeaderMap) -> Result<Option<Self>, UnsupportedEncoding> {
        let mut found = None;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            let names = value.to_str().map_err(|_| UnsupportedEncoding)?;
            for name in names.split(',').map(str::trim) {
                if name.is_empty() || name.eq_ignore_ascii_case("identity") {
                    continue;
                }
                let encoding = Self::from_name(name).ok_or(UnsupportedEncoding)?;
                if found.replace(encoding).is_some() {
                    return Err(UnsupportedEncoding);
                }
            }
        }
        Ok(found)
    }

    fn from_name(name: &str) -> Option<Self> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("deflate") => Some(Self::Deflate),
            () if is("br") => Some(Self::Brotli),
            () if is("zstd") => Some(Self::Zstd),
            () => None,
        }
    }

    /// Returns the name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// A body that is decoded while it is read. A body without an encoding is passed on as it is.
pub struct DecodedBody<B: Body>(Decoding<B>);

enum Decoding<B: Body> {
    Plain(B),
    Encoded {
        // Boxed, because nearly all bodies are plain, and are moved a few times.
        body: Box<DecompressionBody<B>>,
        /// Bytes since the reader last had to wait.
        unyielded: usize,
    },
}

impl<B: Body> fmt::Debug for DecodedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_encoded = matches!(self.0, Decoding::Encoded { .. });
        f.debug_struct("DecodedBody").field("is_encoded", &is_encoded).finish_non_exhaustive()
    }
}

impl<B> Body for DecodedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (body, unyielded) = match &mut self.0 {
            Decoding::Plain(body) => {
                let frame = Pin::new(body).poll_frame(cx);
                return frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)));
            }
            Decoding::Encoded { body, unyielded } => (body, unyielded),
        };
        // A few bytes may decode to very many, and a reader that never waits holds up its thread,
        // and all time limits that it has.
        if *unyielded >= MAX_UNYIELDED {
            *unyielded = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = Pin::new(body).poll_frame(cx);
        *unyielded = match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                unyielded.saturating_add(frame.data_ref().map_or(0, Bytes::len))
            }
            Poll::Ready(_) | Poll::Pending => 0,
        };
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Decoding::Plain(body) => body.is_end_stream(),
            Decoding::Encoded { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Decoding::Plain(body) => body.size_hint(),
            Decoding::Encoded { body, .. } => body.size_hint(),
        }
    }
}

/// Decodes a body while it is read.
pub async fn decode<B: Body>(encoding: Option<ContentEncoding>, body: B) -> DecodedBody<B> {
    DecodedBody(match encoding {
        None => Decoding::Plain(body),
        Some(encoding) => {
            Decoding::Encoded { body: Box::pin(decompressed(encoding, body)).await, unyielded: 0 }
        }
    })
}

async fn decompressed<B: Body>(encoding: ContentEncoding, body: B) -> Box<DecompressionBody<B>> {
    let mut request = Request::new(body);
    let name = HeaderValue::from_static(encoding.name());
    request.headers_mut().insert(header::CONTENT_ENCODING, name);
    // tower-http has decoders as services only.
    let decoded: Result<_, Infallible> = Decompression::new(Echo).call(request).await;
    Box::new(decoded.unwrap_or_else(|never| match never {}).into_body())
}

/// Returns the body of the request as the response.
struct Echo;

impl<B> Service<Request<B>> for Echo {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let mut response = Response::new(body);
        *response.headers_mut() = head.headers;
        ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http_body_util::{BodyExt as _, Full};
    use tower_http::compression::Compression;

    use super::*;

    const ALL: [ContentEncoding; 4] = [
        ContentEncoding::Gzip,
        ContentEncoding::Deflate,
        ContentEncoding::Brotli,
        ContentEncoding::Zstd,
    ];

    async fn encode(encoding: ContentEncoding, text: &str) -> Bytes {
        let request = Request::builder().header("accept-encoding", encoding.name());
        let request = request.body(Full::new(Bytes::copy_from_slice(text.as_bytes()))).unwrap();
        let response = Compression::new(Echo).call(request).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    }

    async fn decoded(encoding: ContentEncoding, body: Bytes) -> Result<Bytes, BoxError> {
        let body = decode(Some(encoding), Full::new(body)).await;
        Ok(body.collect().await?.to_bytes())
    }

    #[tokio::test]
    async fn bodies_are_decoded_whole_or_not_at_all() {
        let text: String = (0..20_000).map(|number| format!("{number} ")).collect();
        for encoding in ALL {
            let encoded = encode(encoding, &text).await;
            assert!(encoded.len() < text.len() / 2, "{encoding:?}");
            assert_eq!(decoded(encoding, encoded.clone()).await.unwrap(), text, "{encoding:?}");
            for end in [1, 10, encoded.len() / 2, encoded.len() - 1] {
                let cut = decoded(encoding, encoded.slice(..end)).await;
                assert!(cut.is_err(), "{encoding:?} {end}");
            }
            assert!(decoded(encoding, Bytes::from_static(b"{\"a\":1}")).await.is_err());
        }
        let plain = decode(None, Full::new(Bytes::from_static(b"{}"))).await;
        assert_eq!(plain.size_hint().exact(), Some(2));
        assert_eq!(plain.collect().await.unwrap().to_bytes(), "{}");
    }

    /// A body whose end never arrives.
    struct Unfinished(VecDeque<Bytes>);

    impl Body for Unfinished {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0
                .pop_front()
                .map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
        }
    }

    #[tokio::test]
    async fn flushed_event_does_not_wait_for_the_next_one() {
        let event: &[u8] = b"\
            \x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x4a\x49\x2c\x49\xb4\x52\xa8\x56\x4a\xce\
            \xc8\xcf\x4c\x4e\x2d\x56\xb2\x8a\xae\x56\xca\xcc\x4b\x49\xad\x50\xb2\x32\xd0\x51\
            \x4a\x49\xcd\x29\x49\x54\xb2\x02\x4a\xe7\xe7\x95\xa4\xe6\x95\x28\x59\x29\x25\x2a\
            \xd5\xd6\xc6\xd6\x72\x71\x01\x00\x00\x00\xff\xff";
        let (first, second) = event.split_at(20);
        let parts = [first, second].map(Bytes::from_static);
        let mut body = decode(Some(ContentEncoding::Gzip), Unfinished(parts.into())).await;
        let mut text = Vec::new();
        while !text.ends_with(b"\n\n") {
            text.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        assert!(text.starts_with(b"data: {"));
    }

    #[test]
    fn one_known_encoding_is_supported() {
        for (values, expected) in [
            (&[][..], Ok(None)),
            (&["identity"], Ok(None)),
            (&["gzip"], Ok(Some(ContentEncoding::Gzip))),
            (&["X-Gzip"], Ok(Some(ContentEncoding::Gzip))),
            (&["identity, deflate"], Ok(Some(ContentEncoding::Deflate))),
            (&["BR"], Ok(Some(ContentEncoding::Brotli))),
            (&["zstd", "identity"], Ok(Some(ContentEncoding::Zstd))),
            (&["gzip, gzip"], Err(UnsupportedEncoding)),
            (&["gzip", "br"], Err(UnsupportedEncoding)),
            (&["compress"], Err(UnsupportedEncoding)),
            (&["gz\u{e9}p"], Err(UnsupportedEncoding)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                headers.append(header::CONTENT_ENCODING, value);
            }
            assert_eq!(ContentEncoding::of_message(&headers), expected, "{values:?}");
        }
    }
}
