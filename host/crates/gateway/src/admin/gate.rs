//! Who may use a listener of the admin API.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, header};
use pointsman_access::{Keys, Unauthorized};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::operator::{OnSocket, Operator, Via};
use super::same_origin::{self, Source};
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::peer::PeerUid;
use crate::request_id;
use crate::response::error;

/// Pause after a wrong token, for all requests of the listener: ten guesses per second.
const GUESS_DELAY: Duration = Duration::from_millis(100);

/// The token of a listener, and what slows guesses down.
#[derive(Debug)]
pub(super) struct Gate {
    keys: Keys,
    /// When the next token may be compared: [`GUESS_DELAY`] after one was wrong.
    next_check: Mutex<Instant>,
}

impl Gate {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, next_check: Mutex::new(Instant::now()) }
    }

    /// Returns true if requests need no token.
    pub(super) fn is_open(&self) -> bool {
        self.keys.is_open()
    }

    /// Checks the token of a request. All requests of a listener take turns, so that neither more
    /// connections nor leaving early makes guesses faster.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Result<(), Unauthorized> {
        if self.keys.is_open() {
            return Ok(());
        }
        // Held while waiting, so that the guesses of many connections wait one after the other.
        let mut next_check = self.next_check.lock().await;
        tokio::time::sleep_until(*next_check).await;
        let checked = self.keys.identity(headers).map(drop);
        if checked.is_err() {
            *next_check = Instant::now() + GUESS_DELAY;
        }
        checked
    }

    /// Checks a token like [`Gate::check`].
    pub(super) async fn check_token(&self, token: &str) -> Result<(), Unauthorized> {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        // A token that no header can have is checked as none, and slowed down as any other.
        let headers = value.into_iter().map(|value| (header::AUTHORIZATION, value)).collect();
        self.check(&headers).await
    }
}

/// Returns true if a request with this method may change something.
pub(super) fn changes_state(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

/// Returns the error of a request that a page of another origin has sent.
pub(super) fn other_origin() -> AdminError {
    let message = "a page of another origin may not do that; use the console or a program";
    AdminError::new(ErrorCode::CrossOriginRefused, message)
}

/// Gives a request an id and a span.
pub(super) fn enter(request: Request) -> (Request, Span) {
    let (mut parts, body) = request.into_parts();
    let request_id = request_id::ensure(&mut parts);
    let span = tracing::info_span!("admin", request_id, method = %parts.method);
    (Request::from_parts(parts, body), span)
}

/// Rejects requests without a valid token, and runs all others inside a span with their id.
pub(super) async fn authenticate(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Response {
    let (mut request, span) = enter(request);
    let on_socket = gate.is_open();
    let listener = if on_socket { "socket" } else { "port" };
    let operator = Operator::from_headers(request.headers(), listener);
    let uid = request.extensions().get::<PeerUid>().copied();
    let via = if on_socket { Via::socket(uid) } else { Via("token".into()) };
    let extensions = request.extensions_mut();
    extensions.insert(operator);
    extensions.insert(OnSocket(on_socket));
    extensions.insert(via);
    async {
        if let Err(unauthorized) = gate.check(request.headers()).await {
            return error(request, unauthorized.into());
        }
        // Without a token, a page of any site could send commands to a socket that is forwarded to
        // a port, through the browser of an operator.
        let source = same_origin::source(request.headers());
        if on_socket && source == Source::OtherOrigin && changes_state(request.method()) {
            return error(request, other_origin().into());
        }
        next.run(request).await
    }
    .instrument(span)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn guesses_take_turns_even_if_the_client_leaves() {
        let keys = Keys::new([pointsman_access::ApiKey::new("t0ken", "operator")]);
        let gate = Gate::new(keys);
        let headers = |token: &str| {
            let value = format!("Bearer {token}").parse().unwrap();
            HeaderMap::from_iter([(header::AUTHORIZATION, value)])
        };
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(gate.check(&headers("guess")).await, Err(Unauthorized::UnknownKey));
            // The client does not wait for the pause, and guesses again.
        }
        assert_eq!(gate.check(&headers("t0ken")).await, Ok(()));
        assert_eq!(begun.elapsed(), 10 * GUESS_DELAY);
        assert_eq!(gate.check(&headers("t0ken")).await, Ok(()));
        assert_eq!(begun.elapsed(), 10 * GUESS_DELAY, "the right token is not delayed");
    }
}
