//! Answers clients while the host starts: loading policies may take minutes, and ending the engines
//! of an earlier host some seconds, in which an orchestrator must not take the host for dead, nor a
//! load balancer for ready.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::select_all;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use pointsman_gateway::{EarlyConnection, ListenerSettings};
use pointsman_openai::ErrorBody;
use serde_json::json;
use tokio::task::JoinSet;

use crate::listeners::Bound;

/// Maximum number of connections. Further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Pause after a failed `accept`.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Connections of clients that were accepted while the host started.
#[derive(Debug, Default)]
pub(crate) struct EarlyConnections(JoinSet<()>);

impl EarlyConnections {
    /// Answers the clients of `listeners` until `loading` is done, and returns its result. Each
    /// connection gets one response, so that the client's next request finds a host that is ready.
    pub(crate) async fn serve_while<T>(
        &mut self,
        listeners: &[Bound],
        loading: impl Future<Output = T>,
    ) -> T {
        let mut loading = std::pin::pin!(loading);
        loop {
            tokio::select! {
                loaded = &mut loading => return loaded,
                Some(_) = self.0.join_next() => {}
                accepted = accept(listeners), if self.0.len() < MAX_CONNECTIONS => match accepted {
                    Ok((connection, settings)) => {
                        let settings = settings.clone();
                        self.0.spawn(connection.respond(move |head| respond(&settings, head)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a connection");
                        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    }
                },
            }
        }
    }

    /// Waits until the clients have taken their responses.
    pub(crate) async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// Accepts the next connection on any of these listeners. Returns it with the listener's settings.
async fn accept(listeners: &[Bound]) -> std::io::Result<(EarlyConnection, &ListenerSettings)> {
    if listeners.is_empty() {
        return std::future::pending().await;
    }
    let accepting = listeners.iter().map(|bound| Box::pin(bound.listener.accept_early()));
    let (accepted, index, _) = select_all(accepting).await;
    accepted.map(|connection| (connection, &listeners[index].settings))
}

/// Returns the response to a request, which pages of other origins may read as those of a host that
/// has started.
fn respond(settings: &ListenerSettings, head: &Parts) -> Response<Full<Bytes>> {
    let cors = settings.cors.as_ref().map(|cors| cors.headers_for(&head.method, &head.headers));
    let mut response = response(&settings.route(head.uri.path()).unwrap_or_default());
    if let Some(cors) = cors {
        if cors.is_preflight() {
            response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
        cors.apply(response.headers_mut());
    }
    response
}

/// Returns the response to a request for this path. The bodies of the health checks are those of a
/// host that has started.
fn response(path: &str) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/livez" => (StatusCode::OK, json!({ "status": "ok" })),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "starting" })),
        "/health" => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "status": "unavailable", "reason": "the host is starting" }),
        ),
        _ => {
            let error = ErrorBody {
                message: "The router is starting.".to_owned(),
                kind: "server_error".into(),
                param: None,
                code: Some("starting".to_owned()),
                host_code: None,
                status: None,
            };
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": error }))
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use pointsman_gateway::ListenAddress;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        // The host closes the connection.
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn clients_are_answered_while_the_host_starts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let id = crate::sockets::ListenerId::Clients(String::new());
        let bound = Bound::new(id, listener.into(), ListenerSettings::default()).unwrap();
        let ListenAddress::Tcp(address) = bound.address else { panic!() };
        let listeners = [bound];
        let mut early = EarlyConnections::default();
        let idle = TcpStream::connect(address).await.unwrap();
        let loading =
            async { (get(address, "/livez").await, get(address, "/v1/chat/completions").await) };
        let (live, chat) = early.serve_while(&listeners, loading).await;
        assert!(live.starts_with("HTTP/1.1 200 ") && live.contains("connection: close"), "{live}");
        assert!(chat.starts_with("HTTP/1.1 503 ") && chat.contains("retry-after: 1"), "{chat}");
        drop(idle);
        early.finish().await;
    }

    #[test]
    fn pages_may_read_that_the_host_starts() {
        let cors = pointsman_gateway::Cors {
            origins: vec!["*".to_owned()],
            credentials: false,
            headers: None,
            max_age: Duration::ZERO,
        };
        let settings = ListenerSettings {
            path_prefix: "/llm".to_owned(),
            cors: Some(cors),
            ..ListenerSettings::default()
        };
        let respond = |method: &str, path: &str, asks: bool| {
            let mut request = http::Request::builder().method(method).uri(path);
            request = request.header(header::ORIGIN, "http://a");
            if asks {
                request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST");
            }
            respond(&settings, &request.body(()).unwrap().into_parts().0)
        };
        let ready = respond("GET", "/llm/readyz", false);
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ready.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        let preflight = respond("OPTIONS", "/llm/v1/models", true);
        assert_eq!(preflight.status(), StatusCode::NO_CONTENT);
        assert_eq!(preflight.headers()[header::ACCESS_CONTROL_MAX_AGE], "0");
        assert_eq!(respond("GET", "/llm/livez/", false).status(), StatusCode::OK);
        assert_eq!(respond("GET", "/livez", false).status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn only_the_liveness_check_succeeds() {
        for path in ["/readyz", "/health", "/status", "/metrics", "/v1/models", "/"] {
            let response = response(path);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
        let body = response("/v1/models").into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "starting");
    }
}
