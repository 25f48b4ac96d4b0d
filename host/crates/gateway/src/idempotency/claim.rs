//! A key that several hosts get requests with: one of them executes the request.
//!
//! ```text
//!   first at this host ──claim──> nothing there: execute, renew the claim, and share the response
//!                        │        another host executes it: wait a while, then 409
//!                        │        its response is there: replay it
//!                        └──────> the store does not respond: execute, as if the host were alone
//! ```
//!
//! A host that is killed renews nothing, so that its claims end by themselves.

use std::future::pending;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::execution::Execution;
use super::fingerprint::Fingerprint;
use super::reader::REPLAYED;
use crate::error::RouteError;
use crate::shared_store::{SharedHosts, hex};
use pointsman_access::Rights;

/// For how long a claim is valid that is not renewed.
const CLAIM_TIME: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(5);
/// For how long a request waits for another host that executes it.
const MAX_WAIT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum size of a response that other hosts can replay.
pub(super) const MAX_SHARED: usize = 64 << 10;

/// What another host gets of a request: a line of JSON, and the body of a response that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Digests of the request, and of the rights and guards by which it is served.
    content: String,
    rights: String,
    /// The host that executes or has executed it.
    host: String,
    /// What distinguishes this execution from others.
    execution: String,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Running,
    /// The response follows.
    Kept {
        status: u16,
        headers: Vec<(String, String)>,
    },
    /// The response is too long to be shared.
    TooLong,
}

impl Record {
    fn to_bytes(&self, body: &[u8]) -> Vec<u8> {
        // Serializing strings and numbers does not fail.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(body);
        bytes
    }

    /// Reads a record; `None` if another version of the host has written it.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        Some((serde_json::from_slice(&bytes[..end]).ok()?, &bytes[end + 1..]))
    }
}

/// What follows for the first request with a key at this host.
pub(super) enum Claimed {
    /// It is executed. Without a claim, other hosts do not know of it.
    Execute(Option<Claim>),
    /// It gets the response that another host has had.
    Replay(Response),
    Refused(RouteError),
}

/// The right to execute a request, which other hosts see.
pub(super) struct Claim {
    shared: SharedHosts,
    key: String,
    record: Record,
}

/// Claims a request, or waits for the host that executes it.
pub(super) async fn claim(
    shared: &SharedHosts,
    fingerprint: Fingerprint,
    rights: &Rights,
) -> Claimed {
    let key = format!("once/{}", hex(&fingerprint.key));
    let rights = format!("{:?}/{:?}/{}", rights.models, rights.lanes, fingerprint.guards);
    let record = Record {
        content: hex(&fingerprint.content),
        rights: hex(&Sha256::digest(rights)),
        host: shared.host.to_string(),
        execution: uuid::Uuid::now_v7().simple().to_string(),
        state: State::Running,
    };
    let begun = tokio::time::Instant::now();
    loop {
        let claimed = shared.store.claim(&key, record.to_bytes(&[]), CLAIM_TIME).await;
        let Ok(found) = claimed else { return Claimed::Execute(None) };
        let Some(found) = found else {
            return Claimed::Execute(Some(Claim { shared: shared.clone(), key, record }));
        };
        let Some((found, body)) = Record::read(&found) else { return Claimed::Execute(None) };
        if found.content != record.content {
            return Claimed::Refused(RouteError::IdempotencyKeyReused);
        }
        // What serves the other request may be forbidden to this one.
        if found.rights != record.rights {
            return Claimed::Execute(None);
        }
        let host = found.host;
        match found.state {
            State::Running if begun.elapsed() >= MAX_WAIT => {
                let why = "is in progress";
                return Claimed::Refused(RouteError::IdempotencyKeyElsewhere { host, why });
            }
            State::Running => tokio::time::sleep(POLL_INTERVAL).await,
            State::TooLong => {
                let why = "has a response that is too long to be shared";
                return Claimed::Refused(RouteError::IdempotencyKeyElsewhere { host, why });
            }
            State::Kept { status, headers } => {
                return match response(status, &headers, body) {
                    Some(response) => Claimed::Replay(response),
                    None => Claimed::Execute(None),
                };
            }
        }
    }
}

/// Returns a response as another host has had it; `None` if it is not valid.
fn response(status: u16, headers: &[(String, String)], body: &[u8]) -> Option<Response> {
    let mut response = Response::new(Body::from(body.to_vec()));
    *response.status_mut() = StatusCode::from_u16(status).ok()?;
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        response.headers_mut().append(name, HeaderValue::from_str(value).ok()?);
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Some(response)
}

impl Claim {
    /// Renews the claim until the future is dropped.
    pub(super) async fn renew(&self) {
        let bytes = self.record.to_bytes(&[]);
        loop {
            tokio::time::sleep(RENEWAL).await;
            let new = Some((bytes.clone(), CLAIM_TIME));
            // Another host may execute it if the store was away for longer: then it is its claim.
            if self.shared.store.replace(&self.key, bytes.clone(), new).await == Ok(false) {
                pending::<()>().await;
            }
        }
    }

    /// Ends the claim of an execution that has ended: its response is shared for the time `keep` if
    /// it is kept for retries.
    pub(super) async fn end(self, execution: &Execution, keep: Duration) {
        let kept = execution.kept_size().filter(|_| !keep.is_zero());
        let new = kept.map(|size| match execution.whole() {
            Some((head, body)) if size <= MAX_SHARED => {
                let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
                let headers = head.headers.iter();
                // A value that is not text is not sent to another host.
                let headers = headers
                    .filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?)));
                let (status, headers) = (head.status.as_u16(), headers.collect());
                (State::Kept { status, headers }, body)
            }
            Some(_) | None => (State::TooLong, Bytes::new()),
        });
        let old = self.record.to_bytes(&[]);
        let new = new
            .map(|(state, body)| (Record { state, ..self.record.clone() }.to_bytes(&body), keep));
        // If the store is away, the claim ends by itself.
        self.shared.store.replace(&self.key, old, new).await.ok();
    }
}
