//! The answers of the fake engine: whole, or token by token, with whatever goes wrong on the way.

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

use super::engine::{Engine, Mood};
use super::queue::Permit;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One thing to do while answering.
pub(super) enum Act {
    /// Wait for a place among those who are served.
    Admit(Boxed<Permit>),
    Send(Bytes),
    Wait(Duration),
    /// So many tokens were made.
    Count(u64),
    /// The answer is complete, for this reason.
    Finish(&'static str),
    Stall,
    Die,
    /// Run out of memory.
    Oom,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    Aborted,
    CoreDead,
}

/// Counts an answer as under way, until it ends or is dropped.
struct Busy {
    engine: Arc<Engine>,
    permit: Option<Permit>,
    finished: bool,
    id: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.permit = None;
        self.engine.busy.fetch_sub(1, Ordering::SeqCst);
        if !self.finished {
            self.engine.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What to send instead of the rest, when that is not to come.
#[derive(Debug, Default)]
pub(super) struct Tails {
    pub(super) aborted: Bytes,
    pub(super) core_dead: Bytes,
}

/// Follows what befalls all answers at once.
struct Watch {
    mood: Mood,
    aborted: u64,
    changed: Boxed<watch::Receiver<Mood>>,
}

fn changed(mut receiver: watch::Receiver<Mood>) -> Boxed<watch::Receiver<Mood>> {
    Box::pin(async move {
        if receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        receiver
    })
}

/// The body of an answer.
pub(super) struct AnswerBody {
    acts: VecDeque<Act>,
    length: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
    busy: Option<Busy>,
    watch: Option<Watch>,
    tails: Tails,
    pub(super) ending: Ending,
}

impl AnswerBody {
    fn of(acts: VecDeque<Act>, length: Option<u64>) -> Self {
        Self {
            acts,
            length,
            sleep: None,
            busy: None,
            watch: None,
            tails: Tails::default(),
            ending: Ending::Whole,
        }
    }

    pub(super) fn whole(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let length = Some(body.len() as u64);
        let acts = if body.is_empty() { VecDeque::new() } else { [Act::Send(body)].into() };
        Self::of(acts, length)
    }

    /// An answer that counts as under way.
    pub(super) fn working(
        engine: &Arc<Engine>,
        id: &str,
        acts: VecDeque<Act>,
        tails: Tails,
    ) -> Self {
        engine.busy.fetch_add(1, Ordering::SeqCst);
        let busy =
            Busy { engine: Arc::clone(engine), permit: None, finished: false, id: id.to_owned() };
        let mut receiver = engine.mood.subscribe();
        let mood = *receiver.borrow_and_update();
        let watch = Some(Watch { mood, aborted: mood.aborted, changed: changed(receiver) });
        Self { busy: Some(busy), watch, tails, ..Self::of(acts, None) }
    }

    /// Wait for its turn, as llama.cpp does before it sends the head.
    pub(super) async fn admitted(mut self) -> Self {
        std::future::poll_fn(|cx| {
            while matches!(self.acts.front(), Some(Act::Admit(_))) {
                if !self.heed(cx) {
                    return Poll::Pending;
                }
                std::task::ready!(self.act(cx));
            }
            Poll::Ready(())
        })
        .await;
        self
    }

    /// Wait until all is there, as the answers in one piece do.
    pub(super) async fn collect(mut self) -> (Bytes, Ending) {
        let mut all = Vec::new();
        while let Some(Ok(frame)) =
            std::future::poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await
        {
            all.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        (all.into(), self.ending)
    }

    /// For benchmarks: the same answer to everybody, in one piece or as a stream of ten chunks.
    pub(super) fn constant(request: &[u8]) -> Response<Self> {
        const TEXT: &str = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"fake\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello there, how can I help you today?\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9,\"total_tokens\":18}}";
        const CHUNK: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
        const LAST: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let streaming = request.windows(13).any(|part| part == b"\"stream\":true");
        if !streaming {
            let mut response = Response::new(Self::whole(TEXT));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        let mut acts: VecDeque<Act> =
            (0..9).map(|_| Act::Send(Bytes::from_static(CHUNK.as_bytes()))).collect();
        acts.push_back(Act::Send(Bytes::from_static(LAST.as_bytes())));
        let mut response = Response::new(Self::of(acts, None));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response
    }

    /// See what befell all answers; whether to go on.
    fn heed(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(watch) = &mut self.watch else { return true };
        while let Poll::Ready(mut receiver) = watch.changed.as_mut().poll(cx) {
            watch.mood = *receiver.borrow_and_update();
            watch.changed = changed(receiver);
        }
        let mood = watch.mood;
        if self.ending != Ending::Whole {
            return true;
        }
        if mood.silent {
            return false;
        }
        let tail = if mood.core_dead {
            self.ending = Ending::CoreDead;
            std::mem::take(&mut self.tails.core_dead)
        } else if mood.aborted > watch.aborted {
            self.ending = Ending::Aborted;
            std::mem::take(&mut self.tails.aborted)
        } else {
            return !mood.stalled && !mood.paused;
        };
        self.sleep = None;
        self.acts = [Act::Send(tail)].into();
        if let Some(busy) = &self.busy {
            let mut counts = busy.engine.counts();
            let count = if mood.core_dead { &mut counts.error } else { &mut counts.abort };
            *count += 1;
        }
        true
    }

    /// Do the next thing, if it is not to send something.
    fn act(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.acts.front_mut() {
            Some(Act::Admit(admitted)) => {
                let permit = std::task::ready!(admitted.as_mut().poll(cx));
                if let Some(busy) = &mut self.busy {
                    busy.engine.counts().served.push(busy.id.clone());
                    busy.permit = Some(permit);
                }
            }
            Some(Act::Wait(time)) => {
                self.sleep = Some(Box::pin(tokio::time::sleep_until(Instant::now() + *time)));
            }
            Some(Act::Count(tokens)) => {
                if let Some(busy) = &self.busy {
                    busy.engine.counts().generation_tokens += *tokens;
                }
            }
            Some(Act::Finish(reason)) => {
                if let Some(busy) = &self.busy {
                    let mut counts = busy.engine.counts();
                    let count =
                        if *reason == "stop" { &mut counts.stop } else { &mut counts.length };
                    *count += 1;
                }
            }
            Some(Act::Oom) => {
                if let Some(busy) = &self.busy {
                    warn_text!(super::loading::out_of_memory_while_serving(&busy.engine.options));
                    busy.engine.kill_core();
                }
                self.acts.push_front(Act::Stall);
                return Poll::Ready(());
            }
            // As a crash does it: no destructor, no last words.
            Some(Act::Die) => {
                let myself = rustix::process::getpid();
                let _never = rustix::process::kill_process(myself, rustix::process::Signal::KILL);
                return Poll::Pending;
            }
            Some(Act::Stall) => return Poll::Pending,
            Some(Act::Send(_)) | None => return Poll::Ready(()),
        }
        self.acts.pop_front();
        Poll::Ready(())
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if !self.heed(cx) {
                return Poll::Pending;
            }
            if let Some(sleep) = &mut self.sleep {
                std::task::ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            match self.acts.front() {
                None => {
                    if let Some(busy) = &mut self.busy {
                        busy.finished = true;
                    }
                    return Poll::Ready(None);
                }
                Some(Act::Send(_)) => {
                    let Some(Act::Send(data)) = self.acts.pop_front() else { continue };
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(_) => std::task::ready!(self.act(cx)),
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map(SizeHint::with_exact).unwrap_or_default()
    }
}
