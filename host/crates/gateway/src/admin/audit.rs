//! Notes each action of an operator that may change something: who, what, when, and how it ended.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use serde_json::json;

use super::gate::changes_state;
use super::operator::{Operator, Via};
use super::requests::unix_ms;
use crate::audit_log::AuditLog;
use crate::request_id;
use crate::response::{self, only};
use crate::status::StatusSources;

/// Maximum length of a path in bytes; the rest is cut.
const MAX_PATH: usize = 512;
/// Routes whose requests change nothing, whatever their method.
const QUESTIONS: [&str; 1] = ["/decide"];

pub(super) fn routes() -> Router<Arc<StatusSources>> {
    Router::new().route("/actions", only("GET, HEAD", get(list)))
}

async fn list(State(host): State<Arc<StatusSources>>) -> Response {
    response::json(json!({ "actions": host.audit.list() }).to_string())
}

/// Notes an action when its response is made. The requests have an [`Operator`] and a [`Via`].
pub(super) async fn note(
    State(log): State<AuditLog>,
    Extension(Operator(by)): Extension<Operator>,
    Extension(Via(via)): Extension<Via>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    if !changes_state(request.method()) || QUESTIONS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let path = path[..path.floor_char_boundary(MAX_PATH)].to_owned();
    let action = format!("{} {path}", request.method());
    let id = request_id::get(request.headers()).to_owned();
    let mut entry = Entry { log, by, via, action, id, begun: SystemTime::now(), status: None };
    let response = next.run(request).await;
    entry.status = Some(response.status());
    response
}

/// An action in progress. It is noted when it is dropped, so also if the operator leaves.
struct Entry {
    log: AuditLog,
    by: Arc<str>,
    via: Arc<str>,
    action: String,
    id: String,
    begun: SystemTime,
    status: Option<StatusCode>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Self { by, via, action, .. } = self;
        let status = self.status.map(|status| status.as_u16());
        let result = match self.status {
            Some(status) if status.is_success() => "done",
            Some(_) => "refused",
            None => "operator left",
        };
        tracing::info!(
            event = "admin_action",
            by = &**by,
            via = &**via,
            action,
            result,
            status,
            "action of an operator"
        );
        self.log.push(json!({
            "unix_ms": unix_ms(self.begun),
            "by": &**by,
            "via": &**via,
            "action": action,
            "result": result,
            "status": status,
            "request_id": self.id,
        }));
    }
}
