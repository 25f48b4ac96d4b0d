//! The server of the fake engine: its socket, its connections, and its end.

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

use super::engine::{Engine, Mood};
use super::options::Options;
use super::reply::{Asked, Reply, ok, vllm_error};
use super::{llama, loading, vllm};

/// Where it listens.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

type Connections = JoinSet<Result<(), hyper::Error>>;

/// Bind the port at once, but listen only when it has loaded: until then connections are refused.
pub(super) fn bind(options: &Options) -> Result<Option<TcpSocket>> {
    if options.uds.is_some() {
        return Ok(None);
    }
    let host = if options.host == "localhost" { "127.0.0.1" } else { &options.host };
    let address = std::net::SocketAddr::new(host.parse().context("--host")?, options.port);
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address).context("the port cannot be had")?;
    Ok(Some(socket))
}

/// Listen.
pub(super) fn listen(options: &Options, socket: Option<TcpSocket>) -> Result<Listener> {
    if let Some(socket) = socket {
        let listener = socket.listen(1024).context("the port cannot be had")?;
        say!("listening on {}", listener.local_addr()?);
        return Ok(Listener::Tcp(listener));
    }
    let path = options.uds.as_deref().unwrap_or(Path::new("engine.sock"));
    let _old = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).context("the socket cannot be had")?;
    say!("listening on {}", path.display());
    Ok(Listener::Unix(listener))
}

/// The next connection; none if nobody listens any more.
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

/// The end of the core, if there is one.
async fn core_ended(core: Option<&mut Child>) {
    match core {
        Some(core) => {
            let _status = core.wait().await;
        }
        None => std::future::pending().await,
    }
}

async fn core_dead(mood: &mut watch::Receiver<Mood>) {
    if mood.wait_for(|mood| mood.core_dead).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Wait until there is nothing to do any more, or for this long.
async fn idle(engine: &Engine, until: Option<Instant>) {
    while engine.busy.load(Ordering::SeqCst) > 0 && until.is_none_or(|until| Instant::now() < until)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Serve until SIGTERM, or until the core is dead; the exit code.
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
    let mut mood = engine.mood.subscribe();
    let mut listener = Some(listener);
    let (mut loaded, mut dead_at, mut stopping, mut deadline) = (false, None, false, None);
    loop {
        tokio::select! {
            connection = accept(listener.as_ref()) => connect(&mut connections, engine, connection?),
            Some(_) = connections.join_next() => {}
            code = &mut loading, if !loaded => match code {
                Some(code) => return Ok(code),
                None => loaded = true,
            },
            () = core_ended(core.as_deref_mut()), if !stopping => {
                core = None;
                engine.core.store(0, Ordering::SeqCst);
                engine.mood.send_modify(|mood| mood.core_dead = true);
            }
            () = core_dead(&mut mood), if dead_at.is_none() && !stopping => {
                warn!("(APIServer pid={pid}) ERROR 11-21 03:31:49 [core_client.py:640] Engine core proc EngineCore \
                    died unexpectedly, shutting down client.");
                dead_at = Some(Instant::now() + Duration::from_millis(options.core_death_ms));
            }
            () = tokio::time::sleep_until(dead_at.unwrap_or_else(Instant::now)), if dead_at.is_some() => {
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
                    engine.mood.send_modify(|mood| mood.draining = true);
                } else {
                    // It works no more, but waits for its clients.
                    engine.mood.send_modify(|mood| mood.silent = true);
                    if let Some(core) = &mut core {
                        let _ended = core.kill().await;
                    }
                    listener = None;
                }
            }
        }
    }
}

fn connect(connections: &mut Connections, engine: &Arc<Engine>, stream: Box<dyn Connection>) {
    let engine = Arc::clone(engine);
    let mut server = http1::Builder::new();
    server.auto_date_header(engine.options.vllm());
    let service = service_fn(move |request| answer(Arc::clone(&engine), request));
    connections.spawn(server.serve_connection(TokioIo::new(stream), service));
}

/// Answer a request.
async fn answer(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    if let Some(rest) = request.uri().path().strip_prefix("/fake/") {
        let rest = rest.to_owned();
        return control(&engine, &rest, request).await;
    }
    let asked = Asked::of(request.headers());
    let options = &engine.options;
    let log = options.vllm() && options.faithful() && !options.disable_uvicorn_access_log;
    let line = log.then(|| format!("{} {}", request.method(), request.uri()));
    let mut reply = if options.vllm() {
        vllm::answer(Arc::clone(&engine), request).await
    } else {
        llama::answer(Arc::clone(&engine), request).await
    };
    if let Ok(response) = &mut reply {
        asked.dress(&engine, response);
        if let Some(line) = line {
            say!("INFO:     127.0.0.1:60380 - \"{line} HTTP/1.1\" {}", response.status());
        }
    }
    reply
}

/// What tests tell and ask.
async fn control(engine: &Engine, what: &str, request: Request<Incoming>) -> Reply {
    let tells = request.method() == Method::POST;
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    match what {
        "script" => match serde_json::from_slice(&body) {
            Ok(script) => engine.set_script(script),
            Err(wrong) => {
                let status = StatusCode::BAD_REQUEST;
                return vllm_error(
                    engine,
                    status,
                    &wrong.to_string(),
                    "invalid_request_error",
                    None,
                );
            }
        },
        "kill-core" if tells => engine.kill_core(),
        "oom" if tells => {
            warn_text!(loading::out_of_memory_while_serving(&engine.options));
            engine.kill_core();
        }
        "stall" if tells => engine.mood.send_modify(|mood| mood.stalled = true),
        "resume" if tells => engine.mood.send_modify(|mood| mood.stalled = false),
        "abort" if tells => engine.mood.send_modify(|mood| mood.aborted += 1),
        _ => return ok(engine, &engine.state()),
    }
    ok(engine, &json!({}))
}
