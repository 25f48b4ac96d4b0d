use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::mpsc;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pointsman_config::Telemetry;

use super::*;
use crate::telemetry::otel;

const WAIT: Duration = Duration::from_secs(60);

type Received = (String, Bytes);

/// Receives an export, and answers with this status, of HTTP and of gRPC.
async fn answer(
    request: Request<Incoming>,
    sender: mpsc::Sender<Received>,
    (status, grpc): (u16, &'static str),
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    // The test may have ended.
    sender.send((path, body)).ok();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(grpc));
    let body = Full::new(Bytes::new()).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

/// Starts a collector. Returns its address, and the paths and bodies that it receives.
fn collector(
    protocol: OtlpProtocol,
    status: (u16, &'static str),
) -> (String, mpsc::Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    let serve = async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let stream = TokioIo::new(listener.accept().await.unwrap().0);
            let sender = sender.clone();
            let service = service_fn(move |request| answer(request, sender.clone(), status));
            // Ends when the exporter closes its connection.
            match protocol {
                OtlpProtocol::Http => {
                    http1::Builder::new().serve_connection(stream, service).await.ok();
                }
                OtlpProtocol::Grpc => {
                    let builder = http2::Builder::new(TokioExecutor::new());
                    builder.serve_connection(stream, service).await.ok();
                }
            }
        }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve);
    });
    (address, received)
}

/// Starts an exporter of one metric.
fn exporter(address: &str, protocol: OtlpProtocol) -> (Exporter, ExportMetrics) {
    let settings = Telemetry {
        endpoint: ServiceUrl::parse(address).ok(),
        protocol: Some(protocol),
        timeout: WAIT,
        traces: true,
        sample: None,
        follow_parent: None,
        metrics_interval: Duration::from_millis(1),
        service_name: None,
    };
    let export = otel::resolve(&settings, |_| None, |_| ()).unwrap();
    let metrics = ExportMetrics::default();
    let exporter = Exporter::start(export, metrics.clone()).unwrap();
    exporter.set_metrics_source(Box::new(|| Some("# TYPE a gauge\na 1\n".to_owned())));
    (exporter, metrics)
}

#[test]
fn both_protocols_have_their_paths_and_frames() {
    for (protocol, path) in [
        (OtlpProtocol::Http, "/v1/metrics"),
        (OtlpProtocol::Grpc, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"),
    ] {
        let (address, received) = collector(protocol, (200, "0"));
        let (exporter, metrics) = exporter(&address, protocol);
        let (found, body) = received.recv_timeout(WAIT).unwrap();
        assert_eq!(found, path);
        let message = match protocol {
            OtlpProtocol::Http => body,
            OtlpProtocol::Grpc => {
                let length = u32::from_be_bytes(body[1..5].try_into().unwrap());
                assert_eq!((body[0], length as usize), (0, body.len() - 5));
                body.slice(5..)
            }
        };
        // Field 1 of the request: the metrics of one resource.
        assert_eq!(message[0], 0x0a);
        exporter.stop(WAIT);
        assert!(metrics.count(Signal::Metrics, true) >= 1);
        assert_eq!(metrics.count(Signal::Metrics, false), 0);
    }
}

#[test]
fn refused_exports_are_counted_and_not_repeated_without_need() {
    for (protocol, status, grpc) in
        [(OtlpProtocol::Http, 400, "0"), (OtlpProtocol::Grpc, 200, "16")]
    {
        let (address, received) = collector(protocol, (status, grpc));
        let (exporter, metrics) = exporter(&address, protocol);
        received.recv_timeout(WAIT).unwrap();
        exporter.stop(WAIT);
        assert_eq!(metrics.count(Signal::Metrics, true), 0);
        assert!(metrics.count(Signal::Metrics, false) >= 1);
    }
}

#[test]
fn an_absent_collector_does_not_keep_the_host_from_stopping() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (exporter, metrics) = exporter(&format!("http://127.0.0.1:{port}"), OtlpProtocol::Grpc);
    exporter.stop(WAIT);
    assert!(metrics.count(Signal::Metrics, false) >= 1);
}
