//! The console: a page for operators, and the admin API for it below `/console/api`.
//!
//! ```text
//!   GET    /console/, /console/{file}     the page, which is the same for all and has no secrets
//!   GET    /console/api/session           whether there is a session, and its token
//!   POST   /console/api/session           begin one: {"token": …, "operator": …}
//!   DELETE /console/api/session           end it
//!   any    /console/api/…                 the admin API, without the paths of engines
//! ```
//!
//! A session is a cookie that scripts cannot read, and that browsers only send with requests of the
//! console itself. A request that changes something also needs the session's token, which pages of
//! other origins cannot read, and must not come from one. A bearer token works as well; on the
//! socket, nothing is needed.

mod assets;
mod sessions;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tower_service::Service as _;
use tracing::Instrument as _;

use self::sessions::{COOKIE, LIFETIME, Session, Sessions};
use super::gate::{Gate, changes_state, enter, other_origin};
use super::operator::{OnSocket, Operator, SessionEnd, Via};
use super::same_origin::{self, Source};
use crate::admin_error::AdminError;
use crate::error::RouteError;
use crate::error_code::ErrorCode;
use crate::paths;
use crate::peer::PeerUid;
use crate::response::{error, json, no_content, only};
use pointsman_access::Keys;

/// The token of a session, in requests that change something.
const CSRF: HeaderName = HeaderName::from_static("x-pointsman-csrf");
/// Bytes of the body of a login.
const MAX_LOGIN: usize = 4 << 10;
/// Logins that wait for their turn; more are rejected.
const MAX_LOGINS: usize = 8;
/// Where the admin API is for the console.
const API: &str = "/console/api";

/// What decides who may use a listener. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Access(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    sessions: Sessions,
    logins: Semaphore,
}

impl Access {
    /// Creates what decides by a token; without one, all requests are accepted.
    pub(super) fn new(keys: Keys) -> Self {
        let (gate, logins) = (Arc::new(Gate::new(keys)), Semaphore::new(MAX_LOGINS));
        Self(Arc::new(Shared { gate, sessions: Sessions::default(), logins }))
    }

    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.0.gate
    }
}

/// The console of a listener.
pub(super) struct Console {
    api: Router,
    access: Access,
    /// What follows the value of the cookie.
    cookie: String,
}

impl Console {
    /// Creates the console of a listener of the admin API.
    pub(super) fn for_operators(api: Router, access: Access) -> Self {
        Self::for_clients(api, access, "", false)
    }

    /// Creates the console of a listener for clients, with its path prefix.
    pub(super) fn for_clients(api: Router, access: Access, prefix: &str, has_tls: bool) -> Self {
        let (age, secure) = (LIFETIME.as_secs(), if has_tls { "; Secure" } else { "" });
        let cookie =
            format!("; Path={prefix}{API}; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
        Self { api, access, cookie }
    }
}

/// Returns the routes.
pub(super) fn routes(console: Console) -> Router {
    let session = get(session).post(begin).delete(end);
    Router::new()
        .route("/console", only("GET, HEAD", get(redirect)))
        .route("/console/", only("GET, HEAD", get(assets::page)))
        .route("/console/{file}", only("GET, HEAD", get(assets::file)))
        .route("/console/api/session", only("GET, HEAD, POST, DELETE", session))
        .route("/console/api/{*path}", axum::routing::any(api))
        .with_state(Arc::new(console))
}

/// Leads to the page, whose files are relative to its path.
async fn redirect() -> Response {
    let location = (header::LOCATION, HeaderValue::from_static("console/"));
    (StatusCode::PERMANENT_REDIRECT, [location]).into_response()
}

/// Tells the page whether it has to ask for the token.
async fn session(State(console): State<Arc<Console>>, request: Request) -> Response {
    let is_open = console.access.gate().is_open();
    let found = console.access.0.sessions.find(request.headers());
    let body = json!({
        "authenticated": is_open || found.is_some(),
        "needs_token": !is_open,
        "csrf": found.as_ref().map(|session| session.csrf()),
        "operator": found.as_ref().map(|session| &*session.operator),
        "version": env!("CARGO_PKG_VERSION"),
    });
    secured(json(body.to_string()))
}

/// The body of a login.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    token: String,
    /// The name of the operator, for the log of actions.
    #[serde(default)]
    operator: Option<String>,
}

/// Begins a session.
async fn begin(State(console): State<Arc<Console>>, request: Request) -> Response {
    let (request, span) = enter(request);
    let (parts, body) = request.into_parts();
    let begun = async {
        let body = Limited::new(body, MAX_LOGIN).collect().await;
        let body = body.map_err(RouteError::IncompleteBody)?.to_bytes();
        log_in(&console, &parts.headers, &body).await
    };
    let begun = begun.instrument(span.clone()).await;
    secured(match begun {
        Ok(cookie) => (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response(),
        Err(refused) => span.in_scope(|| error(Request::from_parts(parts, Body::empty()), refused)),
    })
}

/// Checks a login, and returns the cookie of the session.
async fn log_in(
    console: &Console,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<HeaderValue, RouteError> {
    let Shared { gate, sessions, logins } = &*console.access.0;
    if same_origin::source(headers) == Source::OtherOrigin {
        return Err(other_origin().into());
    }
    let Ok(Login { token, operator }) = serde_json::from_slice(body) else {
        let message = "invalid body: expected `{\"token\": …, \"operator\": …}`";
        return Err(AdminError::new(ErrorCode::InvalidRequest, message).into());
    };
    let Ok(_turn) = logins.try_acquire() else { return Err(RouteError::TooManyRequests) };
    let Operator(operator) = Operator::from_name(operator.as_deref(), "console");
    if let Err(unauthorized) = gate.check_token(token.trim()).await {
        tracing::warn!(event = "console_login_refused", by = &*operator, "login refused");
        return Err(unauthorized.into());
    }
    let secret = sessions.begin(Arc::clone(&operator)).map_err(|error| {
        tracing::error!(%error, "failed to begin a session");
        AdminError::new(ErrorCode::InternalError, "the session could not be begun")
    })?;
    tracing::info!(event = "console_login", by = &*operator, "session of the console begun");
    let mut cookie =
        HeaderValue::try_from(format!("{COOKIE}={}{}", secret.reveal(), console.cookie))
            .map_err(|_| AdminError::new(ErrorCode::InternalError, "the cookie cannot be sent"))?;
    cookie.set_sensitive(true);
    Ok(cookie)
}

/// Ends the session of a request.
async fn end(State(console): State<Arc<Console>>, request: Request) -> Response {
    let (request, span) = enter(request);
    let _entered = span.enter();
    let ended = match console.access.0.sessions.find(request.headers()) {
        Some(session) => check_origin(&session, request.headers()),
        None => Ok(()),
    };
    secured(match ended {
        Ok(()) => {
            if let Some(session) = console.access.0.sessions.find(request.headers()) {
                let by = &*session.operator;
                tracing::info!(event = "console_logout", by, "session of the console ended");
            }
            console.access.0.sessions.end(request.headers());
            no_content()
        }
        Err(refused) => error(request, refused.into()),
    })
}

/// Passes a request to the admin API, if it may use that.
async fn api(
    State(console): State<Arc<Console>>,
    Path(path): Path<String>,
    request: Request,
) -> Response {
    let (mut request, span) = enter(request);
    // What this route has found in the path must not count for those of the admin API.
    let peer = request.extensions().get::<PeerUid>().copied();
    request.extensions_mut().clear();
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    let serve = async {
        if let Err(refused) = authenticate(&console, &mut request).await {
            return error(request, refused);
        }
        let raw = request.uri().path().strip_prefix(API).unwrap_or(&path).to_owned();
        if let Some(uri) = paths::replace(request.uri(), raw) {
            *request.uri_mut() = uri;
        }
        let mut api = console.api.clone();
        api.call(request).await.unwrap_or_else(|never| match never {})
    };
    secured(serve.instrument(span).await)
}

/// Checks who sends a request, and notes that for the routes.
async fn authenticate(console: &Console, request: &mut Request) -> Result<(), RouteError> {
    let Shared { gate, sessions, .. } = &*console.access.0;
    let (headers, changes) = (request.headers(), changes_state(request.method()));
    let is_foreign = same_origin::source(headers) == Source::OtherOrigin;
    let (operator, via) = if gate.is_open() {
        if changes && is_foreign {
            return Err(other_origin().into());
        }
        let uid = request.extensions().get::<PeerUid>().copied();
        (Operator::from_headers(headers, "console"), Via::socket(uid))
    } else if headers.contains_key(header::AUTHORIZATION) {
        gate.check(headers).await?;
        (Operator::from_headers(headers, "port"), Via("token".into()))
    } else {
        let session = sessions.find(headers).ok_or_else(session_required)?;
        if changes {
            check_origin(&session, headers)?;
        }
        let end = SessionEnd { early: session.end.clone(), expires: session.expires };
        let via = Via(format!("session {}", session.label).into());
        let operator = Operator(Arc::clone(&session.operator));
        request.extensions_mut().insert(end);
        (operator, via)
    };
    let extensions = request.extensions_mut();
    extensions.insert(operator);
    extensions.insert(via);
    // What only the socket may do is not for pages.
    extensions.insert(OnSocket(false));
    Ok(())
}

/// Checks that a request with a session comes from the console.
fn check_origin(session: &Session, headers: &HeaderMap) -> Result<(), AdminError> {
    let token = headers.get(CSRF).map(HeaderValue::as_bytes);
    let is_own = same_origin::source(headers) == Source::SameOrigin;
    match token.is_some_and(|token| session.has_csrf(token)) && is_own {
        true => Ok(()),
        false => Err(other_origin()),
    }
}

fn session_required() -> AdminError {
    AdminError::new(ErrorCode::SessionRequired, "no session, or it has ended; log in")
}

/// Adds what keeps a browser from taking a response for a page, and from keeping it.
fn secured(mut response: Response) -> Response {
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    let no_sniff = HeaderValue::from_static("nosniff");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, no_sniff);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
