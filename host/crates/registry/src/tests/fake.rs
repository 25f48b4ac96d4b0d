//! A registry whose responses a test chooses.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::digest::digest;
use crate::layout::Artifact;

/// What a request is answered with.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Status, headers and body.
    Reply(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// A body that never ends.
    Endless,
    /// Nothing, while the connection stays open.
    Silence,
}

impl Answer {
    pub(super) fn ok(body: &[u8]) -> Self {
        Self::Reply(200, Vec::new(), body.to_vec())
    }

    pub(super) fn status(status: u16) -> Self {
        Self::Reply(status, Vec::new(), Vec::new())
    }

    pub(super) fn redirect(location: String) -> Self {
        Self::Reply(307, vec![("location", location)], Vec::new())
    }
}

/// A request that has arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) authorization: Option<String>,
}

/// A registry in this process, which ends with the value.
#[derive(Debug)]
pub(super) struct FakeRegistry {
    pub(super) address: SocketAddr,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    _connections: JoinSet<()>,
}

impl FakeRegistry {
    pub(super) async fn start(answer: impl Fn(&Arrived) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let arrived = Arc::<Mutex<Vec<Arrived>>>::default();
        let mut tasks = JoinSet::new();
        let (known, answer) = (Arc::clone(&arrived), Arc::new(answer));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let (known, answer) = (Arc::clone(&known), Arc::clone(&answer));
                connections.spawn(async move {
                    serve(connection, &known, &*answer).await;
                });
            }
        });
        Self { address, arrived, _connections: tasks }
    }

    /// Returns what has arrived.
    pub(super) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().clone()
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }
}

async fn serve(
    mut connection: TcpStream,
    arrived: &Mutex<Vec<Arrived>>,
    answer: &(impl Fn(&Arrived) -> Answer + ?Sized),
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let header = |name: &str| {
        let value = lines.clone().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        });
        value.map(str::to_owned)
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    if connection.read_exact(&mut body).await.is_err() {
        return;
    }
    let request = Arrived { method, path, authorization: header("authorization") };
    let answer = answer(&request);
    arrived.lock().push(request.clone());
    match answer {
        Answer::Silence => std::future::pending().await,
        Answer::Endless => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
            let mut sent = connection.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                sent = connection.write_all(chunk.as_bytes()).await;
            }
        }
        Answer::Reply(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
            headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
            head += &format!("content-length: {}\r\n\r\n", body.len());
            let body = if request.method == "HEAD" { &[] } else { body.as_slice() };
            // The client may have stopped reading.
            connection.write_all(&[head.as_bytes(), body].concat()).await.ok();
            connection.shutdown().await.ok();
        }
    }
}

/// Returns the responses of an honest registry that has the artifact as `r/p:stable`.
pub(super) fn honest(artifact: &Artifact) -> impl Fn(&Arrived) -> Answer + Clone + use<> {
    let packed = artifact.pack().unwrap();
    let component = artifact.component.clone();
    let digest_of = |bytes: &[u8]| digest(bytes).to_string();
    let manifest = digest_of(&packed.manifest);
    let blobs = [
        (format!("/v2/r/p/blobs/{}", digest_of(&packed.config)), packed.config),
        (format!("/v2/r/p/blobs/{}", digest_of(&component)), component),
        (format!("/v2/r/p/manifests/{manifest}"), packed.manifest),
    ];
    move |request| {
        if request.path == "/v2/r/p/manifests/stable" {
            return Answer::Reply(
                200,
                vec![("docker-content-digest", manifest.clone())],
                blobs[2].1.to_vec(),
            );
        }
        let blob = blobs.iter().find(|(path, _)| *path == request.path);
        blob.map_or(Answer::status(404), |(_, bytes)| Answer::ok(bytes))
    }
}
