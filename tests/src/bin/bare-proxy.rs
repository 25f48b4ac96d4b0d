//! The floor of what a proxy costs: hyper on both sides and nothing else. A request is read as a
//! whole, sent over a pooled connection, and its response is forwarded as it arrives.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pointsman_tests::streams::raise_descriptor_limit;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Forwards all requests to one server.
#[derive(Debug, Parser)]
struct Options {
    /// Port to listen on, on the loopback interface.
    #[arg(long)]
    port: u16,
    /// Port of the server, on the loopback interface.
    #[arg(long)]
    engine: u16,
}

fn main() -> ExitCode {
    raise_descriptor_limit(4_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.context("failed to start the async runtime");
    match result.and_then(|runtime| runtime.block_on(serve(&Options::parse()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: &Options) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let (engine, mut connections) = (options.engine, JoinSet::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let client = client.clone();
        let service = service_fn(move |request| forward(client.clone(), engine, request));
        let server = hyper::server::conn::http1::Builder::new();
        connections.spawn(server.serve_connection(TokioIo::new(stream), service));
        // Forgets the connections that have ended.
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(
    client: Client<HttpConnector, Full<Bytes>>,
    engine: u16,
    request: Request<Incoming>,
) -> Result<Response<Incoming>> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = Uri::try_from(format!("http://127.0.0.1:{engine}{path}"))?;
    head.headers.remove(header::HOST);
    Ok(client.request(Request::from_parts(head, Full::new(body))).await?)
}
