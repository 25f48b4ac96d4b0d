//! A backend that does what the path says.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use pointsman_fleet::{ProxiedBody, ProxiedRequest, ProxiedResponse, ProxySide};
use tokio::sync::{mpsc, oneshot};

use crate::backend::{Backend, BodyError, Exchange, ResponseBody, ServedResponse};

pub(super) struct TestBackend {
    notes: mpsc::UnboundedSender<String>,
}

impl TestBackend {
    pub(super) fn new(notes: mpsc::UnboundedSender<String>) -> Self {
        Self { notes }
    }
}

/// Notes that it was dropped.
struct Dropped(mpsc::UnboundedSender<String>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.send("dropped".to_owned()).ok();
    }
}

impl Backend for TestBackend {
    fn begin(&self, request: Request<ProxiedBody>, subset: Option<Vec<String>>) -> Exchange {
        let (sender, picked) = oneshot::channel();
        let (response, received) = oneshot::channel();
        let side = ProxySide { request: picked, response };
        let notes = self.notes.clone();
        notes.send(format!("begun {subset:?}")).unwrap();
        let guard = Some(Box::new(Dropped(notes.clone())) as Box<dyn Send + Sync>);
        let serving = async move {
            let (parts, body) = request.into_parts();
            match parts.uri.path() {
                "/refuse" => return own(429, "refused"),
                "/hold" => {
                    notes.send("held".to_owned()).unwrap();
                    return std::future::pending().await;
                }
                _ => {}
            }
            let Ok(body) = body.collect().await else { return own(400, "the client is gone") };
            let body = [&body.to_bytes()[..], b"!"].concat();
            sender.send(proxied_request(body.into())).unwrap();
            if parts.uri.path() == "/expire" {
                return own(504, "too late");
            }
            let ProxiedResponse { served, response } = received.await.unwrap();
            if parts.uri.path() == "/replace" {
                return own(502, "replaced");
            }
            from_engine(response, served)
        };
        Exchange { serving: Box::pin(serving), side, guard }
    }
}

fn proxied_request(body: Bytes) -> ProxiedRequest {
    let mut request = Request::new(body.into());
    *request.uri_mut() = "http://10.0.0.1:80/v1/x".parse().unwrap();
    request.headers_mut().insert("x-new", HeaderValue::from_static("1"));
    ProxiedRequest {
        lane: "a".to_owned(),
        endpoint: "10.0.0.1:80".to_owned(),
        fallbacks: vec!["10.0.0.2:80".to_owned()],
        request,
    }
}

fn own(status: u16, text: &'static str) -> ServedResponse {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let body: ResponseBody = body.map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("retry-after", HeaderValue::from_static("7"));
    ServedResponse { response, is_from_engine: false, code: "refused_by_test" }
}

fn from_engine(response: Response<ProxiedBody>, served: Option<String>) -> ServedResponse {
    let mut response = response.map(|body| body.map_err(BodyError::new).boxed_unsync());
    response.headers_mut().remove("x-secret");
    if let Some(served) = served {
        response.headers_mut().insert("x-served", HeaderValue::from_str(&served).unwrap());
    }
    ServedResponse { response, is_from_engine: true, code: "none" }
}
