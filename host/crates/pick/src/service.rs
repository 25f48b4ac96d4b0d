//! The gRPC service: external processing, and health.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use futures_util::stream::{Chain, Iter};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;

use crate::backend::Backend;
use crate::lingering::Lingering;
use crate::metrics::{OpenStream, PickMetrics};
use crate::stream::ExchangeStream;

/// The health services that the protocol names, beside the server as a whole.
const READY_SERVICES: [&str; 3] = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"];
const LIVE_SERVICE: &str = "liveness";

/// Answers that are in memory until the proxy takes them.
const MAX_ANSWERS: usize = 4;
/// Flow-control window of a stream in bytes: for a chunk of a body in flight and the next one.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow-control window of a connection in bytes.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Interval of pings by which a proxy that is gone is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Bytes of a message beside its body.
const MESSAGE_OVERHEAD: usize = 256 << 10;

/// Limits of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of requests at a time, on all connections.
    pub max_streams: u32,
    /// Maximum size of a body in bytes that the proxy sends as a whole.
    pub max_body: usize,
}

/// The phases of a shutdown.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// Cancelled when another process serves the same socket: no connection is accepted from then
    /// on, those that are open get no new streams, and the service ends with the last stream.
    pub retiring: CancellationToken,
    /// Cancelled when the service is not ready any more.
    pub stopping: CancellationToken,
    /// Cancelled when it ends.
    pub closing: CancellationToken,
}

/// Serves a proxy until the shutdown ends, or another process serves it.
///
/// # Errors
/// If the service cannot be started.
pub async fn serve(
    listener: TcpListener,
    (backend, metrics): (Arc<impl Backend>, PickMetrics),
    limits: Limits,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    for service in READY_SERVICES.into_iter().chain([LIVE_SERVICE]) {
        reporter.set_service_status(service, ServingStatus::Serving).await;
    }
    let permits = Arc::new(Semaphore::new(limits.max_streams as usize));
    let processor = ExternalProcessorServer::new(Processor { backend, metrics, permits })
        .max_decoding_message_size(limits.max_body.saturating_add(MESSAGE_OVERHEAD));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let incoming = incoming.map_ok(Lingering::from);
    let Shutdown { retiring, stopping, closing } = shutdown;
    let serving = Server::builder()
        .max_concurrent_streams(limits.max_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .add_service(health)
        .add_service(processor)
        .serve_with_incoming_shutdown(incoming, retiring.cancelled_owned());
    let mut serving = std::pin::pin!(serving);
    let not_ready = async {
        stopping.cancelled().await;
        for service in READY_SERVICES {
            reporter.set_service_status(service, ServingStatus::NotServing).await;
        }
        closing.cancelled().await;
    };
    tokio::select! {
        served = &mut serving => served,
        () = not_ready => Ok(()),
    }
}

struct Processor<B> {
    backend: Arc<B>,
    metrics: PickMetrics,
    permits: Arc<Semaphore>,
}

#[tonic::async_trait]
impl<B: Backend> ExternalProcessor for Processor<B> {
    type ProcessStream = AllAnswers;

    /// Responds with the first answer: until the head of the response has arrived, the proxy may
    /// send the request to another picker, if this one dies.
    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<AllAnswers>, Status> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let permit = permit.map_err(|_| {
            self.metrics.refused_stream();
            Status::resource_exhausted("too many requests")
        })?;
        let (sender, answers) = mpsc::channel(MAX_ANSWERS);
        let metrics = self.metrics.clone();
        let open = metrics.open_stream();
        let stream = ExchangeStream::new(request.into_inner(), sender, metrics);
        let backend = Arc::clone(&self.backend);
        let run = Box::pin(stream.run(backend));
        let mut answers = Answers { run: Some(run), answers, _open: open, _permit: permit };
        let first = answers.next().await.transpose()?;
        Ok(Response::new(stream::iter(first.map(Ok)).chain(answers)))
    }
}

/// The first answer, if there is one, and those after it.
type AllAnswers = Chain<Iter<std::option::IntoIter<Answer>>, Answers>;
type Answer = Result<ProcessingResponse, Status>;
type Run = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// The answers of one stream. They are made while they are read; dropped, the request ends.
pub(crate) struct Answers {
    /// `None` after the end.
    run: Option<Run>,
    answers: mpsc::Receiver<ProcessingResponse>,
    _open: OpenStream,
    _permit: OwnedSemaphorePermit,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("has_ended", &self.run.is_none()).finish_non_exhaustive()
    }
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // Before and after the run, which may have been waiting for space.
        if let Poll::Ready(Some(answer)) = this.answers.poll_recv(cx) {
            return Poll::Ready(Some(Ok(answer)));
        }
        let Some(run) = &mut this.run else { return Poll::Ready(None) };
        let ended = run.as_mut().poll(cx);
        if let Poll::Ready(Some(answer)) = this.answers.poll_recv(cx) {
            if let Poll::Ready(ended) = ended {
                this.end(ended);
            }
            return Poll::Ready(Some(Ok(answer)));
        }
        match ended {
            Poll::Ready(Err(status)) => {
                this.run = None;
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(Ok(())) => {
                this.run = None;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Answers {
    /// Notes how the run has ended, for after the answers that are left.
    fn end(&mut self, ended: Result<(), Status>) {
        self.run = Some(Box::pin(std::future::ready(ended)));
    }
}
