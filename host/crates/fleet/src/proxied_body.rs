//! The body of an engine's response that a proxy receives in the host's place, and passes on in
//! chunks.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::mpsc;

/// Parts that are in memory until the reader takes them.
const MAX_PARTS: usize = 8;
/// The parts of a chunk that is the last one.
const CHUNK_AND_END: usize = 2;

/// A part of a body.
#[derive(Debug)]
enum Part {
    Data(Bytes),
    End,
}

/// Passes on what the proxy receives of a body. Dropped before [`ProxiedSender::end`], the body
/// ends with an error.
#[derive(Debug)]
pub struct ProxiedSender(mpsc::Sender<Part>);

impl ProxiedSender {
    /// Waits until the body has space for a chunk and its end, or is not read any more.
    pub async fn ready(&self) {
        self.0.reserve_many(CHUNK_AND_END).await.ok();
    }

    /// Passes on a chunk, after [`ProxiedSender::ready`].
    pub fn send(&self, data: Bytes) {
        // Fails only if the body is not read any more.
        self.0.try_send(Part::Data(data)).ok();
    }

    /// Ends the body, after [`ProxiedSender::ready`].
    pub fn end(self) {
        self.0.try_send(Part::End).ok();
    }
}

/// The body of a response that a proxy receives.
#[derive(Debug)]
pub struct ProxiedBody {
    /// `None` after the end.
    parts: Option<mpsc::Receiver<Part>>,
}

/// The proxy has ended the exchange in the middle of a body.
#[derive(Debug, thiserror::Error)]
#[error("the proxy ended the exchange before the response was complete")]
pub struct ProxyGone;

/// Creates a body and what fills it.
pub fn proxied_body() -> (ProxiedSender, ProxiedBody) {
    let (sender, parts) = mpsc::channel(MAX_PARTS);
    (ProxiedSender(sender), ProxiedBody { parts: Some(parts) })
}

impl Body for ProxiedBody {
    type Data = Bytes;
    type Error = ProxyGone;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ProxyGone>>> {
        let Some(parts) = &mut self.parts else { return Poll::Ready(None) };
        let part = ready!(parts.poll_recv(cx));
        if !matches!(part, Some(Part::Data(_))) {
            self.parts = None;
        }
        Poll::Ready(match part {
            Some(Part::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Part::End) => None,
            None => Some(Err(ProxyGone)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_none()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn body_ends_only_if_it_is_complete() {
        let (sender, body) = proxied_body();
        sender.send(Bytes::from_static(b"a"));
        sender.send(Bytes::from_static(b"b"));
        sender.end();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ab");
        let (sender, mut body) = proxied_body();
        sender.send(Bytes::from_static(b"a"));
        drop(sender);
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }
}
