//! Asks another host once for its lanes, for operators.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use pointsman_peers::{Event, EventDecoder, TopologyEvent};
use tokio::time::timeout;

use super::PeerEndpoint;
use super::call::client;
use super::reader::{StreamError, broken, request};
use crate::driver::EngineSpec;
use crate::post::ServiceUrl;

/// What another host has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerProbe {
    /// The name that the operator gave the host; may be empty.
    pub name: String,
    /// The names of its lanes.
    pub lanes: Vec<String>,
    /// By how many milliseconds its clock is ahead of this one, at least and at most; negative if
    /// it is behind. `None` if the host does not say what time it is.
    pub clock_ahead_ms: Option<(i64, i64)>,
}

/// Why a host has not told its lanes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{code}]")]
pub struct PeerProbeError {
    /// The stable code, one of those of `pointsman_peer_errors_total`.
    pub code: &'static str,
    /// What happened. Contains no key.
    pub message: String,
}

impl From<StreamError> for PeerProbeError {
    fn from(error: StreamError) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}

impl EngineSpec {
    /// Returns the other host and the name of the lane there, if the lane is one of another host.
    pub fn peer_host(&self) -> Option<(PeerEndpoint, &str)> {
        let spec = self.0.peer()?;
        let url = ServiceUrl::parse(&spec.url).ok()?;
        Some((PeerEndpoint { url, key: spec.key.clone(), ca: spec.ca.clone() }, &spec.lane))
    }
}

/// Asks another host once for its lanes, as a host that reads it does.
///
/// # Errors
/// If it does not tell them within `limit`.
pub async fn probe_peer(
    endpoint: &PeerEndpoint,
    limit: Duration,
) -> Result<PeerProbe, PeerProbeError> {
    match timeout(limit, probe(endpoint)).await {
        Ok(result) => result.map_err(PeerProbeError::from),
        Err(_) => Err(StreamError::Silent(limit).into()),
    }
}

async fn probe(endpoint: &PeerEndpoint) -> Result<PeerProbe, StreamError> {
    let sent = SystemTime::now();
    let response = client(endpoint).request(request(endpoint)?).await;
    let response = response.map_err(|error| broken(&error))?;
    let clock_ahead_ms = clock_ahead(response.headers(), sent, SystemTime::now());
    if response.status() != StatusCode::OK {
        return Err(StreamError::Status(response.status()));
    }
    let (mut body, mut decoder) = (response.into_body(), EventDecoder::default());
    loop {
        let frame = body.frame().await.ok_or(StreamError::Ended)?;
        let Ok(bytes) = frame.map_err(|error| broken(&error))?.into_data() else { continue };
        let mut topology = None;
        decoder.push(&bytes, |event| match event {
            Event::Topology(event) => topology = Some(event),
            Event::Lanes(_) | Event::Heartbeat(_) => {}
        })?;
        if let Some(TopologyEvent { host, lanes, .. }) = topology {
            let lanes = lanes.into_iter().map(|lane| lane.name).collect();
            return Ok(PeerProbe { name: host.name, lanes, clock_ahead_ms });
        }
    }
}

/// Returns by how many milliseconds the clock of a host is ahead, at least and at most: its time
/// has whole seconds, and was written at some time between the request and the response.
fn clock_ahead(headers: &HeaderMap, sent: SystemTime, received: SystemTime) -> Option<(i64, i64)> {
    let unix_ms =
        |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok();
    let text = headers.get(header::DATE)?.to_str().ok()?;
    let there = unix_ms(httpdate::parse_http_date(text).ok()?)?;
    Some((there - unix_ms(received)?, there + 1000 - unix_ms(sent)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_of_a_host_is_known_to_a_second_and_the_time_of_the_request() {
        let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let ahead = |date: &str, sent, received| {
            let headers = HeaderMap::from_iter([(header::DATE, date.parse().unwrap())]);
            clock_ahead(&headers, at(sent), at(received))
        };
        // 1000 s after the epoch.
        let date = "Thu, 01 Jan 1970 00:16:40 GMT";
        assert_eq!(ahead(date, 1_000_400, 1_000_450), Some((-450, 600)));
        assert_eq!(ahead(date, 990_000, 990_100), Some((9_900, 11_000)));
        assert_eq!(ahead("yesterday", 0, 0), None);
        assert_eq!(clock_ahead(&HeaderMap::new(), at(0), at(0)), None);
    }
}
