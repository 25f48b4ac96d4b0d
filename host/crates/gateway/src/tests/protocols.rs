//! What is spoken on listeners: HTTP/2, TLS, the PROXY protocol, and Unix sockets.

use std::path::Path;

use http::{Request, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pointsman_access::Keys;
use pointsman_domain::BuiltIn;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, IsCa, KeyPair};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::{ClientListener, ListenerSettings, SocketFile, Tls, TlsFiles};

/// A gateway with one listener.
struct Served {
    test: TestGateway,
    port: u16,
    tasks: JoinSet<()>,
}

async fn serve_with(
    configure: impl FnOnce(&mut GatewayParts),
    listener: impl FnOnce(ClientListener) -> ClientListener,
) -> Served {
    let test = TestGateway::with(BuiltIn, configure).await;
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let tasks = serve_on(&test, listener(socket.into()));
    Served { test, port, tasks }
}

fn serve_on(test: &TestGateway, listener: ClientListener) -> JoinSet<()> {
    let gateway = test.gateway.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { gateway.serve(listener, ListenerSettings::default()).await });
    tasks
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

type Sender = http2::SendRequest<Full<Bytes>>;

/// Begins to speak HTTP/2 on a connection, with small windows.
async fn http2_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tasks: &mut JoinSet<()>,
) -> Sender {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(66_666)
        .initial_connection_window_size(1 << 20)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tasks.spawn(async move { connection.await.unwrap_or_default() });
    sender
}

fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).unwrap()
}

fn chat(model: &str, is_stream: bool) -> Request<Full<Bytes>> {
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    let body = format!(r#"{{"model":"{model}","stream":{is_stream},{messages}}}"#);
    Request::post("http://localhost/v1/chat/completions")
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}

async fn text(response: http::Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn requests_share_an_http2_connection() {
    let Served { test, port, mut tasks } = serve_with(|_| (), |listener| listener).await;
    test.script("a", &[stream("data: {\"choices\":[]}\n\n", true)]);
    test.script("c", &[json(200, "{\"answer\":1}")]);
    let mut sender = http2_on(connect(port).await, &mut tasks).await;
    let streaming = sender.send_request(chat("m", true)).await.unwrap();
    assert_eq!((streaming.status(), streaming.version()), (StatusCode::OK, Version::HTTP_2));
    for header in ["connection", "keep-alive", "transfer-encoding"] {
        assert!(!streaming.headers().contains_key(header), "{header}");
    }
    let plain = sender.send_request(chat("other", false)).await.unwrap();
    assert_eq!(text(plain).await, "{\"answer\":1}");
    for (uri, status) in [
        ("http://localhost/livez", StatusCode::OK),
        ("http://evil.example/livez", StatusCode::OK),
        ("http://evil.example/status", StatusCode::MISDIRECTED_REQUEST),
        ("http://localhost/none", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(sender.send_request(get(uri)).await.unwrap().status(), status, "{uri}");
    }
    let head = Request::head("http://localhost/none").body(Full::default()).unwrap();
    let head = sender.send_request(head).await.unwrap();
    assert_eq!((head.status(), text(head).await), (StatusCode::NOT_FOUND, String::new()));
    // A client that resets its stream frees the lane.
    drop(streaming);
    until("the request ends", || test.metric("pointsman_in_flight").ends_with(" 0")).await;
    assert!(test.metric("pointsman_client_gone_total").ends_with(" 1"));
}

#[tokio::test]
async fn http2_stream_that_is_not_read_is_reset_alone() {
    let Served { test, port, mut tasks } = serve_with(
        |parts| parts.settings.connections.write_timeout = Duration::from_millis(300),
        |listener| listener,
    )
    .await;
    let big: &'static str = Box::leak(" ".repeat(4 << 20).into_boxed_str());
    test.script("c", &[json(200, big)]);
    test.script("a", &[stream("data: {\"choices\":[]}\n\n", true)]);
    let mut sender = http2_on(connect(port).await, &mut tasks).await;
    let streaming = sender.send_request(chat("m", true)).await.unwrap();
    let stalled = sender.send_request(chat("other", false)).await.unwrap();
    until("the stalled stream is reset", || {
        test.metric("pointsman_client_gone_total").ends_with(" 1")
    })
    .await;
    assert!(stalled.into_body().collect().await.is_err(), "reset");
    // The connection and its other stream go on.
    assert!(test.metric("pointsman_in_flight").ends_with(" 1"));
    assert_eq!(sender.send_request(get("http://localhost/livez")).await.unwrap().status(), 200);
    drop(streaming);
}

#[tokio::test]
async fn slow_reader_of_an_http2_stream_gets_all_of_it() {
    let Served { test, port, mut tasks } = serve_with(
        |parts| parts.settings.connections.write_timeout = Duration::from_millis(500),
        |listener| listener,
    )
    .await;
    let big: &'static str = Box::leak(" ".repeat(1 << 20).into_boxed_str());
    test.script("c", &[json(200, big)]);
    let mut sender = http2_on(connect(port).await, &mut tasks).await;
    let mut body = sender.send_request(chat("other", false)).await.unwrap().into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().unwrap().len();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(length, 1 << 20);
    until("the request ends", || test.metric("pointsman_in_flight").ends_with(" 0")).await;
    assert!(test.metric("pointsman_client_gone_total").ends_with(" 0"));
}

#[tokio::test]
async fn drain_ends_http2_connections_after_their_requests() {
    let Served { test, port, mut tasks } = serve_with(|_| (), |listener| listener).await;
    test.script("a", &[stream("data: {\"choices\":[]}\n\ndata: [DONE]\n\n", false)]);
    let mut sender = http2_on(connect(port).await, &mut tasks).await;
    let streaming = sender.send_request(chat("m", true)).await.unwrap();
    test.drain.begin();
    assert!(text(streaming).await.contains("[DONE]"));
    tokio::time::timeout(Duration::from_secs(5), test.drain.drained()).await.unwrap();
    until("the connection ends", || sender.is_closed()).await;
    // A new connection still gets a response.
    let mut sender = http2_on(connect(port).await, &mut tasks).await;
    assert_eq!(sender.send_request(chat("m", false)).await.unwrap().status(), 503);
    test.drain.close();
}

#[tokio::test]
async fn http2_can_be_turned_off() {
    let Served { port, tasks: _tasks, .. } =
        serve_with(|_| (), |listener| listener.with_http2(false)).await;
    let mut client = connect(port).await;
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.ok();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
}

/// A certificate for `localhost`, in files.
struct Issued {
    dir: TempDir,
    pair: CertifiedKey<KeyPair>,
}

impl Issued {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issued = Self { dir, pair: Self::issue() };
        issued.write();
        issued
    }

    fn issue() -> CertifiedKey<KeyPair> {
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
    }

    fn write(&self) {
        std::fs::write(self.path("cert.pem"), self.pair.cert.pem()).unwrap();
        std::fs::write(self.path("key.pem"), self.pair.signing_key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn tls(&self, client_ca: Option<&Path>) -> Arc<Tls> {
        let files = TlsFiles {
            certificate: self.path("cert.pem"),
            key: self.path("key.pem"),
            client_ca: client_ca.map(Path::to_owned),
            client_certificates_optional: false,
        };
        Arc::new(Tls::read(files, true).unwrap())
    }

    /// Connects as a client that trusts the certificate, and has one of its own.
    async fn connect(
        &self,
        stream: TcpStream,
        alpn: &[u8],
        own: Option<(Vec<u8>, &KeyPair)>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.pair.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
                builder.with_client_auth_cert(vec![certificate.into()], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// Sends a request with HTTP/1, and returns the response with its head.
async fn get_live(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok();
    answer
}

#[tokio::test]
async fn tls_serves_both_versions_and_takes_a_new_certificate() {
    let mut issued = Issued::new();
    let tls = issued.tls(None);
    let Served { test, port, mut tasks } =
        serve_with(|_| (), |listener| listener.with_tls(Some(tls))).await;
    test.script("c", &[json(200, "{\"answer\":1}")]);
    let stream = issued.connect(connect(port).await, b"http/1.1", None).await.unwrap();
    assert!(get_live(stream).await.starts_with("HTTP/1.1 200 "));
    let stream = connect(port).await;
    let stream = issued.connect(stream, b"h2", None).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let answer = async { text(sender.send_request(chat("other", false)).await.unwrap()).await };
    tokio::select! {
        answer = answer => assert_eq!(answer, "{\"answer\":1}"),
        _ = connection => panic!("the connection ended"),
    }
    // Neither plain requests nor nonsense disturb others.
    let plain = get_live(connect(port).await).await;
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    assert!(test.metric("pointsman_refused_connections_total{reason=\"tls\"}").ends_with(" 1"));
    issued.pair = Issued::issue();
    issued.write();
    for _ in 0..100 {
        let connected = issued.connect(connect(port).await, b"http/1.1", None).await;
        if let Ok(stream) = connected {
            assert!(get_live(stream).await.starts_with("HTTP/1.1 200 "));
            tasks.abort_all();
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the new certificate is not served");
}

#[tokio::test]
async fn clients_need_a_certificate_if_there_is_an_authority() {
    let issued = Issued::new();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let path = issued.path("ca.pem");
    std::fs::write(&path, authority.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let client = params.signed_by(&key, &authority).unwrap().der().to_vec();
    let other = params.self_signed(&key).unwrap().der().to_vec();
    let tls = issued.tls(Some(&path));
    let Served { port, tasks: _tasks, .. } =
        serve_with(|_| (), |listener| listener.with_tls(Some(tls))).await;
    for (own, is_served) in [(Some(client), true), (Some(other), false), (None, false)] {
        let own = own.map(|certificate| (certificate, &key));
        // With TLS 1.3, the client learns of a refusal only with the first response.
        let answer = match issued.connect(connect(port).await, b"http/1.1", own).await {
            Ok(stream) => get_live(stream).await,
            Err(_) => String::new(),
        };
        assert_eq!(answer.starts_with("HTTP/1.1 200 "), is_served, "{answer}");
    }
}

#[tokio::test]
async fn proxy_protocol_is_required_before_tls() {
    let issued = Issued::new();
    let tls = issued.tls(None);
    let Served { test, port, tasks: _tasks } =
        serve_with(|_| (), |listener| listener.with_tls(Some(tls)).with_proxy_protocol(true)).await;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x7f\0\0\x01\x1f\x90\0\x50";
    for header in [&b"PROXY TCP4 10.0.0.1 127.0.0.1 8080 80\r\n"[..], &v2[..]] {
        let mut stream = connect(port).await;
        stream.write_all(header).await.unwrap();
        let stream = issued.connect(stream, b"http/1.1", None).await.unwrap();
        assert!(get_live(stream).await.starts_with("HTTP/1.1 200 "));
    }
    assert!(issued.connect(connect(port).await, b"http/1.1", None).await.is_err());
    assert_eq!(get_live(connect(port).await).await, "");
    let refused = "pointsman_refused_connections_total{reason=\"proxy-protocol\"}";
    assert!(test.metric(refused).ends_with(" 2"));
}

#[tokio::test]
async fn unix_socket_serves_any_host_name() {
    let test = TestGateway::with(BuiltIn, |_| ()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let socket = SocketFile::bind_clients(&path, 0o660).unwrap();
    let mut tasks = serve_on(&test, socket.into());
    let stream = UnixStream::connect(&path).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tasks.spawn(async move { connection.await.unwrap() });
    let mut request = get("/status");
    request.headers_mut().insert("host", "evil.example".parse().unwrap());
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    text(response).await;
    drop(sender);
    let mut sender = http2_on(UnixStream::connect(&path).await.unwrap(), &mut tasks).await;
    assert_eq!(sender.send_request(get("http://x.y/status")).await.unwrap().status(), 200);
    test.drain.close();
    until("the socket is removed", || !path.exists()).await;
}

#[tokio::test]
async fn listeners_share_the_limit_of_connections() {
    let Served { test, port, tasks: _tasks } =
        serve_with(|parts| parts.settings.connections.max = 1, |listener| listener).await;
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = socket.local_addr().unwrap().port();
    let _other = serve_on(&test, socket.into());
    let mut idle = connect(port).await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 1024]).await.unwrap() > 0);
    assert!(get_live(connect(other).await).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(idle.read(&mut [0; 1024]).await.unwrap_or_default(), 0, "it has made room");
}

#[tokio::test]
async fn body_is_only_asked_for_if_it_will_be_read() {
    let Served { test, port, tasks: _tasks } = serve_with(
        |parts| parts.keys = Keys::new([pointsman_access::ApiKey::new(API_KEY, "team")]),
        |listener| listener,
    )
    .await;
    test.script("c", &[json(200, "{}")]);
    let body = r#"{"model":"other","messages":[{"role":"user","content":"hi"}]}"#;
    let key = format!("authorization: Bearer {API_KEY}\r\n");
    for (host, key, length, status) in [
        ("localhost", "", body.len(), "401"),
        ("evil.example", &*key, body.len(), "421"),
        ("localhost", &*key, 2_000_000, "413"),
        ("localhost", &*key, body.len(), "100"),
    ] {
        let mut client = connect(port).await;
        // The target is in absolute form.
        let head = format!(
            "POST http://localhost/v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n{key}\
             expect: 100-continue\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await.unwrap();
        let mut first = vec![0; 12];
        client.read_exact(&mut first).await.unwrap();
        assert_eq!(first, format!("HTTP/1.1 {status}").into_bytes());
        if status == "100" {
            client.write_all(body.as_bytes()).await.unwrap();
            let mut rest = String::new();
            client.read_to_string(&mut rest).await.unwrap();
            assert!(rest.contains("HTTP/1.1 200 OK"), "{rest}");
        }
    }
}
