//! The bodies of responses: complete, or token by token with injected faults.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::engine::{Engine, ServingState};
use super::queue::QueuePermit;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A step of sending a completion.
pub(super) enum Step {
    /// Wait for a permit of the queue.
    Admit(Boxed<QueuePermit>),
    Send(Bytes),
    Wait(Duration),
    /// Count a prompt that has been read: its tokens, and those that were cached.
    CountPrompt(u64, u64),
    /// Count this many generated tokens.
    Count(u64),
    /// Count a batch of tokens that was computed.
    CountBatch,
    /// Use a processor for this time.
    Compute(Duration),
    /// Count a finished completion with this finish reason.
    Finish(&'static str),
    Stall,
    Die,
    /// Run out of memory.
    Oom,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    Complete,
    Aborted,
    CoreDead,
}

/// Counts a completion as in-flight until it ends or is dropped.
struct InFlightGuard {
    engine: Arc<Engine>,
    permit: Option<QueuePermit>,
    finished: bool,
    id: String,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.permit = None;
        self.engine.busy.fetch_sub(1, Ordering::SeqCst);
        if !self.finished {
            self.engine.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The data to send instead of the remaining steps.
#[derive(Debug, Default)]
pub(super) struct Tails {
    pub(super) aborted: Bytes,
    pub(super) core_dead: Bytes,
}

/// Follows the state of the engine.
struct StateWatcher {
    state: ServingState,
    aborted: u64,
    changed: Boxed<watch::Receiver<ServingState>>,
}

fn changed(mut receiver: watch::Receiver<ServingState>) -> Boxed<watch::Receiver<ServingState>> {
    Box::pin(async move {
        if receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        receiver
    })
}

/// The body of a response.
pub(super) struct ResponseBody {
    steps: VecDeque<Step>,
    length: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
    busy: Option<InFlightGuard>,
    watch: Option<StateWatcher>,
    tails: Tails,
    pub(super) ending: BodyEnd,
}

impl ResponseBody {
    fn from_steps(steps: VecDeque<Step>, length: Option<u64>) -> Self {
        Self {
            steps,
            length,
            sleep: None,
            busy: None,
            watch: None,
            tails: Tails::default(),
            ending: BodyEnd::Complete,
        }
    }

    pub(super) fn whole(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let length = Some(body.len() as u64);
        let steps = if body.is_empty() { VecDeque::new() } else { [Step::Send(body)].into() };
        Self::from_steps(steps, length)
    }

    /// Makes the body of a completion, which counts as in-flight.
    pub(super) fn in_flight(
        engine: &Arc<Engine>,
        id: &str,
        steps: VecDeque<Step>,
        tails: Tails,
    ) -> Self {
        engine.busy.fetch_add(1, Ordering::SeqCst);
        let busy = InFlightGuard {
            engine: Arc::clone(engine),
            permit: None,
            finished: false,
            id: id.to_owned(),
        };
        let mut receiver = engine.state.subscribe();
        let state = *receiver.borrow_and_update();
        let watch =
            Some(StateWatcher { state, aborted: state.aborted, changed: changed(receiver) });
        Self { busy: Some(busy), watch, tails, ..Self::from_steps(steps, None) }
    }

    /// Waits for the permit of the queue, as llama.cpp does before it sends the head.
    pub(super) async fn admitted(mut self) -> Self {
        std::future::poll_fn(|cx| {
            while matches!(self.steps.front(), Some(Step::Admit(_))) {
                if !self.check_state(cx) {
                    return Poll::Pending;
                }
                std::task::ready!(self.run_step(cx));
            }
            Poll::Ready(())
        })
        .await;
        self
    }

    /// Runs all steps and returns the whole body, for responses that are not streamed.
    pub(super) async fn collect(mut self) -> (Bytes, BodyEnd) {
        let mut all = Vec::new();
        while let Some(Ok(frame)) =
            std::future::poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await
        {
            all.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        (all.into(), self.ending)
    }

    /// Returns a constant response for benchmarks, complete or as a stream of ten chunks.
    pub(super) fn constant(request: &[u8]) -> Response<Self> {
        const TEXT: &str = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\
            \"model\":\"fake\",\"choices\":[{\"index\":0,\
            \"message\":{\"role\":\"assistant\",\"content\":\"Hello there,\
             how can I help you today?\"},\"finish_reason\":\"stop\"}],\
            \"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9,\"total_tokens\":18}}";
        const CHUNK: &str = "data: \
            {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\
            \"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\
            \"logprobs\":null,\"finish_reason\":null}]}\n\n";
        const LAST: &str = "data: \
            {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\
            \"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{},\
            \"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let streaming = request.windows(13).any(|part| part == b"\"stream\":true");
        if !streaming {
            let mut response = Response::new(Self::whole(TEXT));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        let mut steps: VecDeque<Step> =
            (0..9).map(|_| Step::Send(Bytes::from_static(CHUNK.as_bytes()))).collect();
        steps.push_back(Step::Send(Bytes::from_static(LAST.as_bytes())));
        let mut response = Response::new(Self::from_steps(steps, None));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response
    }

    /// Follows changes of the engine's state; returns whether to continue.
    fn check_state(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(watch) = &mut self.watch else { return true };
        while let Poll::Ready(mut receiver) = watch.changed.as_mut().poll(cx) {
            watch.state = *receiver.borrow_and_update();
            watch.changed = changed(receiver);
        }
        let state = watch.state;
        if self.ending != BodyEnd::Complete {
            return true;
        }
        if state.silent {
            return false;
        }
        let tail = if state.core_dead {
            self.ending = BodyEnd::CoreDead;
            std::mem::take(&mut self.tails.core_dead)
        } else if state.aborted > watch.aborted {
            self.ending = BodyEnd::Aborted;
            std::mem::take(&mut self.tails.aborted)
        } else {
            return !state.stalled && !state.paused;
        };
        self.sleep = None;
        self.steps = [Step::Send(tail)].into();
        if let Some(busy) = &self.busy {
            let mut counts = busy.engine.counts();
            let count = if state.core_dead { &mut counts.error } else { &mut counts.abort };
            *count += 1;
        }
        true
    }

    /// Runs the next step, unless it sends data.
    fn run_step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.steps.front_mut() {
            Some(Step::Admit(admitted)) => {
                let permit = std::task::ready!(admitted.as_mut().poll(cx));
                if let Some(busy) = &mut self.busy {
                    busy.engine.counts().served.push(busy.id.clone());
                    busy.permit = Some(permit);
                }
            }
            Some(Step::Wait(time)) => {
                self.sleep = Some(Box::pin(tokio::time::sleep_until(Instant::now() + *time)));
            }
            Some(Step::Count(tokens)) => {
                if let Some(busy) = &self.busy {
                    busy.engine.counts().generation_tokens += *tokens;
                }
            }
            Some(Step::CountPrompt(tokens, cached)) => {
                if let Some(busy) = &self.busy {
                    let mut counts = busy.engine.counts();
                    counts.prompt_tokens += *tokens;
                    counts.cached_tokens += *cached;
                }
            }
            Some(Step::CountBatch) => {
                if let Some(busy) = &self.busy {
                    busy.engine.counts().batches += 1;
                }
            }
            Some(Step::Compute(time)) => compute(*time),
            Some(Step::Finish(reason)) => {
                if let Some(busy) = &self.busy {
                    let mut counts = busy.engine.counts();
                    let count =
                        if *reason == "stop" { &mut counts.stop } else { &mut counts.length };
                    *count += 1;
                }
            }
            Some(Step::Oom) => {
                if let Some(busy) = &self.busy {
                    warn_text!(super::loading::out_of_memory_while_serving(&busy.engine.options));
                    busy.engine.kill_core();
                }
                self.steps.push_front(Step::Stall);
                return Poll::Ready(());
            }
            // As in a crash: without destructors or output.
            Some(Step::Die) => {
                let pid = rustix::process::getpid();
                // SIGKILL to the own process cannot fail.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                return Poll::Pending;
            }
            Some(Step::Stall) => return Poll::Pending,
            Some(Step::Send(_)) | None => return Poll::Ready(()),
        }
        self.steps.pop_front();
        Poll::Ready(())
    }
}

/// Uses about half of a processor for this time, in the background.
#[expect(clippy::disallowed_methods, reason = "the engine computes for a given time")]
fn compute(time: Duration) {
    let end = std::time::Instant::now() + time;
    std::thread::spawn(move || {
        while std::time::Instant::now() < end {
            let pause = std::time::Instant::now() + Duration::from_millis(10);
            while std::time::Instant::now() < pause {
                std::hint::spin_loop();
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    });
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if !self.check_state(cx) {
                return Poll::Pending;
            }
            if let Some(sleep) = &mut self.sleep {
                std::task::ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            match self.steps.front() {
                None => {
                    if let Some(busy) = &mut self.busy {
                        busy.finished = true;
                    }
                    return Poll::Ready(None);
                }
                Some(Step::Send(_)) => {
                    let Some(Step::Send(data)) = self.steps.pop_front() else { continue };
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(_) => std::task::ready!(self.run_step(cx)),
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map(SizeHint::with_exact).unwrap_or_default()
    }
}
