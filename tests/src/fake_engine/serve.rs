//! The HTTP server of the fake engine: its socket, its connections, and its shutdown.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::process::Child;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::engine::{Engine, ServingState};
use super::options::Options;
use super::responses::{Reply, RequestInfo, ok, vllm_error};
use super::{llama, loading, vllm};

/// The listener, on a TCP port or a Unix socket.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

type Connections = JoinSet<Result<(), hyper::Error>>;

/// Binds the port without listening, so that connections are refused until the engine has loaded.
pub(super) fn bind(options: &Options) -> Result<Option<TcpSocket>> {
    if options.uds.is_some() {
        return Ok(None);
    }
    let host = if options.host == "localhost" { "127.0.0.1" } else { &options.host };
    let address = std::net::SocketAddr::new(host.parse().context("--host")?, options.port);
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address).context("failed to bind the port")?;
    Ok(Some(socket))
}

/// Starts listening.
pub(super) fn listen(options: &Options, socket: Option<TcpSocket>) -> Result<Listener> {
    if let Some(socket) = socket {
        let listener = socket.listen(1024).context("failed to bind the port")?;
        say!("listening on {}", listener.local_addr()?);
        return Ok(Listener::Tcp(listener));
    }
    let path = options.uds.as_deref().unwrap_or(Path::new("engine.sock"));
    // The socket of an earlier engine may be left.
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).context("failed to bind the socket")?;
    say!("listening on {}", path.display());
    Ok(Listener::Unix(listener))
}

/// Returns the next connection; never returns without a listener.
async fn accept(listener: Option<&Listener>) -> Result<Box<dyn Connection>> {
    match listener {
        Some(Listener::Tcp(listener)) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Some(Listener::Unix(listener)) => Ok(Box::new(listener.accept().await?.0)),
        None => std::future::pending().await,
    }
}

/// Waits until the core process has exited; never returns without a core process.
async fn core_ended(core: Option<&mut Child>) {
    match core {
        Some(core) => {
            // Its exit status does not matter.
            core.wait().await.ok();
        }
        None => std::future::pending().await,
    }
}

async fn core_dead(state: &mut watch::Receiver<ServingState>) {
    if state.wait_for(|state| state.core_dead).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until no completion is in flight, or until the deadline.
async fn idle(engine: &Engine, until: Option<Instant>) {
    while engine.busy.load(Ordering::SeqCst) > 0 && until.is_none_or(|until| Instant::now() < until)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Serves until SIGTERM or the death of the core; returns the exit code.
pub(super) async fn serve(
    engine: &Arc<Engine>,
    listener: Listener,
    mut terminate: Signal,
    mut core: Option<&mut Child>,
) -> Result<u8> {
    let options = &engine.options;
    let pid = std::process::id();
    let loading = async { if options.vllm() { None } else { loading::load(options).await } };
    tokio::pin!(loading);
    let mut connections = Connections::new();
    let mut state = engine.state.subscribe();
    let mut listener = Some(listener);
    let (mut loaded, mut dead_at, mut stopping, mut deadline) = (false, None, false, None);
    loop {
        tokio::select! {
            connection = accept(listener.as_ref()) => spawn_connection(&mut connections, engine,
                connection?),
            Some(_) = connections.join_next() => {}
            code = &mut loading, if !loaded => match code {
                Some(code) => return Ok(code),
                None => loaded = true,
            },
            () = core_ended(core.as_deref_mut()), if !stopping => {
                core = None;
                engine.core.store(0, Ordering::SeqCst);
                engine.state.send_modify(|state| state.core_dead = true);
            }
            () = core_dead(&mut state), if dead_at.is_none() && !stopping => {
                warn!("(APIServer pid={pid}) ERROR 11-21 03:31:49 [core_client.py:640] Engine core \
                    proc EngineCore \
                    died unexpectedly, shutting down client.");
                dead_at = Some(Instant::now() + Duration::from_millis(options.core_death_ms));
            }
            () = tokio::time::sleep_until(dead_at.unwrap_or_else(Instant::now)),
                if dead_at.is_some() => {
                return Ok(0);
            }
            () = idle(engine, deadline), if stopping => return Ok(0),
            _ = terminate.recv() => {
                say!("SIGTERM");
                if options.ignore_sigterm || stopping {
                    continue;
                }
                if !options.vllm() {
                    return Ok(0);
                }
                warn_text!(loading::shutdown_lines(options));
                stopping = true;
                if options.shutdown_timeout > 0 {
                    deadline = Some(Instant::now() + Duration::from_secs(options.shutdown_timeout));
                    engine.state.send_modify(|state| state.draining = true);
                } else {
                    // vLLM stops generating, but waits until its clients have disconnected.
                    engine.state.send_modify(|state| state.silent = true);
                    if let Some(core) = &mut core {
                        core.kill().await.ok();
                    }
                    listener = None;
                }
            }
        }
    }
}

fn spawn_connection(
    connections: &mut Connections,
    engine: &Arc<Engine>,
    stream: Box<dyn Connection>,
) {
    let engine = Arc::clone(engine);
    let mut server = http1::Builder::new();
    server.auto_date_header(engine.options.vllm());
    let service = service_fn(move |request| respond(Arc::clone(&engine), request));
    connections.spawn(server.serve_connection(TokioIo::new(stream), service));
}

/// Responds to a request.
async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    if let Some(rest) = request.uri().path().strip_prefix("/fake/") {
        let rest = rest.to_owned();
        return control(&engine, &rest, request).await;
    }
    let info = RequestInfo::from_headers(request.headers());
    let options = &engine.options;
    let log = options.vllm() && options.faithful() && !options.disable_uvicorn_access_log;
    let line = log.then(|| format!("{} {}", request.method(), request.uri()));
    let mut reply = if options.vllm() {
        vllm::respond(Arc::clone(&engine), request).await
    } else {
        llama::respond(Arc::clone(&engine), request).await
    };
    if let Ok(response) = &mut reply {
        info.add_headers(&engine, response);
        if let Some(line) = line {
            say!("INFO:     127.0.0.1:60380 - \"{line} HTTP/1.1\" {}", response.status());
        }
    }
    reply
}

/// Responds to a control request of a test.
async fn control(engine: &Engine, command: &str, request: Request<Incoming>) -> Reply {
    let is_post = request.method() == Method::POST;
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    match command {
        "script" => match serde_json::from_slice(&body) {
            Ok(script) => engine.set_script(script),
            Err(error) => {
                let status = StatusCode::BAD_REQUEST;
                return vllm_error(
                    engine,
                    status,
                    &error.to_string(),
                    "invalid_request_error",
                    None,
                );
            }
        },
        "kill-core" if is_post => engine.kill_core(),
        "oom" if is_post => {
            warn_text!(loading::out_of_memory_while_serving(&engine.options));
            engine.kill_core();
        }
        "stall" if is_post => engine.state.send_modify(|state| state.stalled = true),
        "resume" if is_post => engine.state.send_modify(|state| state.stalled = false),
        "abort" if is_post => engine.state.send_modify(|state| state.aborted += 1),
        _ => return ok(engine, &engine.report()),
    }
    ok(engine, &json!({}))
}
