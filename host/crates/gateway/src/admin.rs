//! What operators can ask and order, at an entrance of their own.
//!
//! ```text
//!   GET  /policies                             all of them, in the order of the chain
//!   GET  /policies/{name}                      one, with everything there is to know
//!   POST /policies/{name}/rollback             back to the version before, or to {"version": "ab12cd34"}
//!   POST /policies/{name}/promote              the version on trial decides from now on
//!   POST /policies/{name}/disable, …/enable    it is left out; it is asked again
//!   POST /reload                               look now whether files have changed
//!   GET  /status, /metrics                     as for clients
//! ```
//!
//! It never shares a listener with clients: whoever may send requests may not for that reason exchange policies.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::error::RouteError;
use crate::routes::{error, only, unknown_path};
use crate::socket::AdminSocket;
use crate::{Gateway, Keys, listen, status};

/// Longest body of a command.
const MOST_BODY: usize = 64 << 10;

/// What can be done about policies. Calls may take seconds, and are made where that holds up nobody.
pub trait PolicyAdmin: Send + Sync {
    /// A list with what there is to know of all policies, in the order of the chain.
    fn list(&self) -> Value;

    /// What there is to know of one; `None` if there is none of that name.
    fn show(&self, name: &str) -> Option<Value>;

    /// Carry out a command, and say of the policy what [`PolicyAdmin::show`] says after it.
    ///
    /// # Errors
    /// With a sentence for the operator, if nothing was done.
    fn command(&self, name: &str, command: PolicyCommand) -> Result<Value, AdminError>;

    /// Look whether files have changed, load what has, and say of all policies what [`PolicyAdmin::list`] says after it.
    fn reload(&self) -> Value;
}

/// What can be done about one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyCommand {
    /// Put an earlier version into service.
    RollBack {
        /// Which one; `None`: the one before.
        to: Option<String>,
    },
    /// Put the version that is on trial into service.
    Promote {
        /// Which one it has to be; `None`: whichever it is.
        version: Option<String>,
    },
    /// Leave it out.
    Disable,
    /// Ask it again.
    Enable,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no policy of that name; those that there are.
    #[error("there is no policy `{0}`; there {some}", some = some(.1))]
    NoSuchPolicy(String, Vec<String>),
    /// It cannot be done now; a sentence that says why, and what to do.
    #[error("{0}")]
    Refused(String),
}

fn some(names: &[String]) -> String {
    match names {
        [] => "are none".to_owned(),
        [one] => format!("is `{one}`"),
        several => format!("are `{}`", several.join("`, `")),
    }
}

/// The operators' entrances.
#[derive(Debug, Default)]
pub struct Admin {
    /// A socket, for those who can open it.
    pub socket: Option<AdminSocket>,
    /// A port, and the token that is needed there.
    pub port: Option<(TcpListener, String)>,
}

impl Admin {
    /// Serve until [`Gateway::stop`], and until the connections have ended after it.
    pub async fn serve(self, gateway: Arc<Gateway>, policies: Arc<dyn PolicyAdmin>) {
        let stop = gateway.stop.clone();
        let socket = async {
            if let Some(socket) = self.socket {
                let router = router(Arc::clone(&gateway), Arc::clone(&policies), Keys::default());
                listen::listen(socket, router, stop.clone()).await;
            }
        };
        let port = async {
            if let Some((listener, token)) = self.port {
                let keys = Keys::new([(token, "operator".to_owned())]);
                let router = router(Arc::clone(&gateway), Arc::clone(&policies), keys);
                listen::listen(listener, router, stop.clone()).await;
            }
        };
        tokio::join!(socket, port);
    }
}

type Policies = Arc<dyn PolicyAdmin>;

fn router(gateway: Arc<Gateway>, policies: Policies, keys: Keys) -> Router {
    let of_host = Router::new()
        .route("/status", only("GET, HEAD", get(status::status)))
        .route("/metrics", only("GET, HEAD", get(status::metrics)))
        .with_state(gateway);
    Router::new()
        .route("/policies", only("GET, HEAD", get(list)))
        .route("/policies/{name}", only("GET, HEAD", get(show)))
        .route("/policies/{name}/{command}", only("POST", post(command)))
        .route("/reload", only("POST", post(reload)))
        .with_state(policies)
        .merge(of_host)
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(Arc::new(keys), guard))
}

async fn guard(State(keys): State<Arc<Keys>>, request: Request, next: Next) -> Response {
    match keys.tenant(request.headers()) {
        Ok(_) => next.run(request).await,
        Err(unauthorized) => error(request, unauthorized.into()),
    }
}

async fn list(State(policies): State<Policies>, request: Request) -> Response {
    answer(request, move || Ok(json!({ "policies": policies.list() }))).await
}

async fn show(
    State(policies): State<Policies>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    answer(request, move || policies.show(&name).ok_or_else(|| no_such(&*policies, name))).await
}

async fn command(
    State(policies): State<Policies>,
    Path((name, word)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let read = match version(body).await {
        Ok(version) => named(&word, version),
        Err(error) => Err(error),
    };
    let request = Request::from_parts(parts, Body::empty());
    match read {
        Err(why) => error(request, why),
        Ok(command) => {
            tracing::info!(policy = name, ?command, "ordered");
            answer(request, move || policies.command(&name, command)).await
        }
    }
}

async fn reload(State(policies): State<Policies>, request: Request) -> Response {
    tracing::info!("a reload is ordered");
    answer(request, move || Ok(json!({ "policies": policies.reload() }))).await
}

fn no_such(policies: &dyn PolicyAdmin, name: String) -> AdminError {
    let all = policies.list();
    let names = all.as_array().into_iter().flatten().filter_map(|policy| policy["name"].as_str());
    AdminError::NoSuchPolicy(name, names.map(str::to_owned).collect())
}

/// The version that the body of a command names.
async fn version(body: Body) -> Result<Option<String>, RouteError> {
    let body = Limited::new(body, MOST_BODY).collect().await;
    let body = body.map_err(|error| RouteError::BodyBroken(error.to_string()))?.to_bytes();
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let wanted = || {
        RouteError::BadCommand("the body has to be empty or {\"version\": \"ab12cd34\"}".to_owned())
    };
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&body) else { return Err(wanted()) };
    let version = match fields.remove("version") {
        None | Some(Value::Null) => None,
        Some(Value::String(version)) if !version.is_empty() => Some(version),
        Some(_) => return Err(wanted()),
    };
    if fields.is_empty() { Ok(version) } else { Err(wanted()) }
}

fn named(word: &str, version: Option<String>) -> Result<PolicyCommand, RouteError> {
    match (word, version) {
        ("rollback", to) => Ok(PolicyCommand::RollBack { to }),
        ("promote", version) => Ok(PolicyCommand::Promote { version }),
        ("disable", None) => Ok(PolicyCommand::Disable),
        ("enable", None) => Ok(PolicyCommand::Enable),
        ("disable" | "enable", Some(_)) => {
            Err(RouteError::BadCommand(format!("`{word}` is about all versions, and takes none")))
        }
        _ => Err(RouteError::NotFound(format!(
            "command `{word}`; there are rollback, promote, disable and enable"
        ))),
    }
}

/// Do the work on a thread that may be held up, and answer with what it gave.
async fn answer(
    request: Request,
    work: impl FnOnce() -> Result<Value, AdminError> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => status::json(value.to_string()),
        Ok(Err(why)) => error(request, why.into()),
        Err(_) => error(request, RouteError::Broken),
    }
}

#[cfg(test)]
mod tests;
