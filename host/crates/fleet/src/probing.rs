//! Readiness probes of engines.

use std::time::Duration;

use http::StatusCode;

use crate::driver::{Driver, Target};
use crate::upstream::{EngineError, Upstream};

/// The maximum time for the response to a probe.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why an engine is not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The engine could not be reached, or the response was incomplete.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine responded with an error status.
    #[error("{path} returned {status}")]
    Status { path: String, status: StatusCode },
    /// The engine has none of the driver's readiness paths; this is the last one tried.
    #[error("{path} does not exist")]
    NoReadyPath { path: String },
}

/// Probes the driver's readiness paths once; the first path that exists decides. Without paths, the
/// engine is taken for ready.
///
/// # Errors
/// Returns an error if the engine is not ready to serve requests.
pub(crate) async fn probe(
    driver: &dyn Driver,
    upstream: &Upstream,
    target: &Target,
) -> Result<(), ProbeError> {
    let mut last = "";
    let paths = driver.ready_paths();
    for path in &paths {
        last = path;
        let response = upstream.call(target, http::Method::GET, path, None, PROBE_TIMEOUT).await;
        match response? {
            (status, _) if status.is_success() => return Ok(()),
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => {}
            (status, _) => {
                return Err(ProbeError::Status { path: (*path).to_owned(), status });
            }
        }
    }
    if paths.is_empty() || driver.ready_paths_are_optional() {
        return Ok(());
    }
    Err(ProbeError::NoReadyPath { path: last.to_owned() })
}
