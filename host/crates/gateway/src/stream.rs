//! The answer on its way back: bytes go on as they come, the lease is held to the last of them, and the outcome is
//! recorded at the end.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;
use pointsman_domain::AttemptResult;
use pointsman_fleet::{EngineBody, EngineError, Lease};
use pointsman_openai::{BodyTail, ErrorBody, StreamEnd, StreamWatch, error_event};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::Gateway;
use crate::account::Accepted;
use crate::attempt::{self, Answer, HOP_BY_HOP};
use crate::serve::Decided;

/// Names the lane that answers.
pub(crate) const LANE: HeaderName = HeaderName::from_static("x-pointsman-lane");
/// Names the policies that decided, with their versions.
pub(crate) const POLICY: HeaderName = HeaderName::from_static("x-pointsman-policy");
/// The policies' reason.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-pointsman-reason");
/// How often a lane was tried, where it was more than once.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-pointsman-attempts");

/// The response for the client.
pub(crate) fn back(
    gateway: &Gateway,
    answer: Answer,
    decided: &Decided,
    accepted: Accepted,
) -> Response {
    let mut headers = answer.headers.clone();
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::SERVER);
    if answer.is_stream() {
        // An error event may have to be added.
        headers.remove(header::CONTENT_LENGTH);
    }
    for (name, value) in
        [(LANE, Some(&answer.lane)), (POLICY, Some(&decided.by)), (REASON, decided.why.as_ref())]
    {
        if let Some(value) = value.and_then(|value| visible(value)) {
            headers.insert(name, value);
        }
    }
    if accepted.tried() > 1 {
        headers.insert(ATTEMPTS, accepted.tried().into());
    }
    let status = answer.status;
    let mut response = Response::new(Body::new(AnswerBody::new(gateway, answer, accepted)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// `text` as the value of a header: what is not visible ASCII becomes a question mark, and very long text is cut.
pub(crate) fn visible(text: &str) -> Option<HeaderValue> {
    const LONGEST: usize = 512;
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    HeaderValue::from_str(&text.chars().take(LONGEST).map(shown).collect::<String>()).ok()
}

/// The body of an answer.
///
/// ```text
///   first ──> rest ──frame──> rest                     StreamWatch looks at what passes, without holding it up
///               │ ├──end────> ended: answered          a stream that stops without an end gets an error event
///               │ └──error──> ended: failed            a stream gets an error event, other bodies are broken off
///               └──cut──────> ended: failed            the drain time of the host is over
///   dropped before the end: the client left            the lease and with it the engine's work end at once
/// ```
pub(crate) struct AnswerBody {
    first: Option<Bytes>,
    rest: Option<EngineBody>,
    watch: Option<StreamWatch>,
    /// The end of an answer that is no stream, if anybody wants to know how many tokens it has.
    tail: Option<BodyTail>,
    status: StatusCode,
    lane: String,
    lease: Option<Lease>,
    accepted: Accepted,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = EngineError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let this = &mut *self;
        loop {
            if let Some(first) = this.first.take() {
                let data = this.observe(first);
                // Of a body of known length hyper does not ask for the end, because it can count.
                if this.watch.is_none() && this.rest.as_ref().is_some_and(EngineBody::is_end_stream)
                {
                    this.complete();
                }
                if let Some(data) = data {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                continue;
            }
            let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
            match Pin::new(rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.first = Some(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(error))) => return this.broken(error),
                Poll::Ready(None) => return this.ended(),
                Poll::Pending => {
                    std::task::ready!(this.cut.as_mut().poll(cx));
                    return this.broken(EngineError::Aborted);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match (&self.watch, &self.rest) {
            (None, Some(rest)) => {
                let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
                rest.size_hint()
                    .exact()
                    .map(|rest| http_body::SizeHint::with_exact(rest + first))
                    .unwrap_or_default()
            }
            _ => http_body::SizeHint::default(),
        }
    }
}

impl AnswerBody {
    /// The body of an answer that begins now.
    pub(crate) fn new(gateway: &Gateway, answer: Answer, mut accepted: Accepted) -> Self {
        accepted.first_byte(answer.status);
        let watch = answer.is_stream().then(StreamWatch::default);
        let tail = (watch.is_none() && accepted.is_learned_from()).then(BodyTail::default);
        let Answer { lane, lease, status, first, rest, .. } = answer;
        let cut = Box::pin(gateway.cut.clone().cancelled_owned());
        Self {
            first,
            rest: Some(rest),
            watch,
            tail,
            status,
            lane,
            lease: Some(lease),
            accepted,
            cut,
        }
    }

    /// What of `data` goes on to the client.
    fn observe(&mut self, data: Bytes) -> Option<Bytes> {
        let data = match &mut self.watch {
            Some(watch) => watch.chunk(data),
            None => data,
        };
        if let Some(tail) = &mut self.tail {
            tail.chunk(&data);
        }
        (!data.is_empty()).then_some(data)
    }

    /// The engine's answer is over.
    fn ended(&mut self) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let end = self.watch.as_ref().map_or(StreamEnd::Complete, StreamWatch::end);
        match end {
            StreamEnd::Complete => {
                self.complete();
                Poll::Ready(None)
            }
            // The engine has told the client itself.
            StreamEnd::Failed => {
                tracing::warn!(
                    lane = self.lane,
                    "the engine reported an error in the middle of a stream"
                );
                self.close(AttemptResult::ServerError, true, false);
                Poll::Ready(None)
            }
            StreamEnd::Unfinished { .. } => self.broken(EngineError::Unfinished),
        }
    }

    /// The answer breaks off here.
    fn broken(&mut self, error: EngineError) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        tracing::warn!(lane = self.lane, "an answer broke off: {error}");
        let event = self.watch.as_ref().map(|watch| {
            let mid_frame = matches!(watch.end(), StreamEnd::Unfinished { mid_frame: true });
            error_event(&ErrorBody::engine_failed(&self.lane, &error.to_string()), mid_frame)
        });
        let blame = !matches!(error, EngineError::Aborted | EngineError::Evicted);
        self.close(attempt::result(&error), blame, error.is_severed());
        Poll::Ready(Some(event.map(Frame::data).ok_or(error)))
    }

    /// All of the engine's answer was sent on.
    fn complete(&mut self) {
        let end = if self.status.is_success() {
            AttemptResult::Ok
        } else if self.status.is_client_error() {
            AttemptResult::Other
        } else {
            AttemptResult::ServerError
        };
        self.close(end, end == AttemptResult::ServerError, false);
    }

    fn close(&mut self, end: AttemptResult, blame: bool, severed: bool) {
        self.rest = None;
        self.tell_usage();
        if let Some(lease) = self.lease.take() {
            // What comes with a client's own mistake is no failure of the engine.
            lease.finish(blame && !self.status.is_client_error(), severed);
        }
        match end {
            AttemptResult::Ok => self.accepted.answered(),
            end => self.accepted.failed(end),
        }
    }

    fn tell_usage(&mut self) {
        if self.accepted.is_learned_from() {
            let usage = match (&self.watch, &self.tail) {
                (Some(watch), _) => watch.usage(),
                (None, tail) => tail.as_ref().and_then(BodyTail::usage),
            };
            self.accepted.used(usage.unwrap_or_default());
        }
    }
}

impl Drop for AnswerBody {
    /// Many clients leave as soon as they have what they want, which may be all of it.
    fn drop(&mut self) {
        self.tell_usage();
    }
}
