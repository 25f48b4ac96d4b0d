//! Asking engines whether they can serve.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::EngineEvent;

use crate::driver::Target;
use crate::supervisor::Supervisor;

/// Longest answer of a probe.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(5);

impl Supervisor {
    /// One look: `Ok` if the engine can serve, or a sentence.
    pub(crate) async fn probe(&self, target: &Target) -> Result<(), String> {
        let mut problem = String::new();
        for path in self.driver.ready_paths() {
            match self.upstream.call(target, http::Method::GET, path, None, PROBE_LIMIT).await {
                Ok((status, _)) if status.is_success() => return Ok(()),
                Ok((http::StatusCode::NOT_FOUND, _)) => problem = format!("it has no {path}"),
                Ok((status, _)) => return Err(format!("it answers {status} to {path}")),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(problem)
    }

    /// An engine that is not ours: ask it at intervals, and believe what it says.
    pub(crate) async fn watch_external(&self) {
        let target = Arc::new(self.driver.target(0));
        let mut serving = None;
        loop {
            let problem = self.probe(&target).await.err();
            if serving != Some(problem.is_none()) {
                serving = Some(problem.is_none());
                match &problem {
                    None => {
                        tracing::info!(
                            lane = self.name,
                            "the engine at {} answers",
                            target.authority
                        );
                        self.news(EngineEvent::Ready, Some(Arc::clone(&target)));
                    }
                    Some(problem) => {
                        let problem = format!("the engine at {}: {problem}", target.authority);
                        tracing::warn!(lane = self.name, "{problem}");
                        self.news(EngineEvent::Lost(problem.into()), None);
                    }
                }
            }
            tokio::time::sleep(self.probe_every).await;
        }
    }
}
