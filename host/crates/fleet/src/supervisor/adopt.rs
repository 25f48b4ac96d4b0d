//! Takes over an engine that an earlier host has left running.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tracing::{Instrument as _, field};

use super::{Engine, Outcome, Supervisor};
use crate::driver::Target;
use crate::drivers::vllm::Measurement;
use crate::engine_spec::ProcessSpec;
use crate::loading::LoadLog;
use crate::probing::probe;
use crate::process::{AdoptableEngine, Note, Process, Stage};

/// The maximum time for an engine that was ready to say that it still is.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time for its list of models.
const MODELS_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval between attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

impl Supervisor {
    /// Takes over the engine that an earlier host has left to this lane, and serves until it ends.
    /// Returns `None` if there is none, or if it does not serve the lane's model: it has been ended
    /// then, and has to be loaded.
    pub(super) async fn adopt(&mut self, spec: &ProcessSpec) -> Option<Outcome> {
        let adoptable = self.shared.state_dir.take_adoptable(&self.name)?;
        let note = adoptable.note().clone();
        let port = note.port.unwrap_or_default();
        // At the error level for the same reason as the span of the lane.
        let span = tracing::error_span!("engine", start = note.starts, pid = field::Empty, port);
        let adopted = async {
            let (engine, age) = self.take_over(adoptable, port, &note).await?;
            let age_s = age.map(|age| age.as_secs());
            match note.stage {
                Stage::Loading => {
                    tracing::info!(event = "engine_adopted", age_s, "took over loading engine");
                    Some(self.await_ready(engine, spec).await)
                }
                Stage::Ready | Stage::Asleep => self.resume(engine, spec, age_s).await,
            }
        };
        adopted.instrument(span.clone()).await
    }

    /// Takes over the process. To be called within the span of the engine.
    async fn take_over(
        &self,
        adoptable: AdoptableEngine,
        port: u16,
        note: &Note,
    ) -> Option<(Engine, Option<Duration>)> {
        let (age, pid) = (adoptable.age(), adoptable.pid());
        let span = tracing::Span::current();
        span.record("pid", pid);
        let log = LoadLog::new(self.links.status.clone()).with_estimate(self.driver.estimate());
        let [weights_bytes, kv_bytes, kv_tokens, compute_bytes] = note.memory;
        let mut measured = Measurement::default();
        (measured.weights_bytes, measured.kv_bytes) = (weights_bytes, kv_bytes);
        (measured.kv_tokens, measured.compute_bytes) = (kv_tokens, compute_bytes);
        log.resume(measured);
        let on_line = self.line_reader(&log);
        let process = Process::adopt(adoptable, &self.shared.state_dir, on_line)
            .inspect_err(|error| {
                tracing::warn!(event = "engine_not_adopted", %error, "failed to take over engine");
            })
            .ok()?;
        self.links.status.send_modify(|status| {
            (status.pid, status.port, status.starts) = (pid, Some(port), note.starts);
        });
        let is_kept = self.keeps_conversations(&mut self.driver.prepare(&self.name, port).launch);
        let target = self.target(port, is_kept);
        let weights = self.use_weights().await;
        Some((Engine { process, target, port, log, span, _weights: weights }, age))
    }

    /// Serves with an engine that was ready, or ends it if it is not.
    async fn resume(
        &mut self,
        mut engine: Engine,
        spec: &ProcessSpec,
        age_s: Option<u64>,
    ) -> Option<Outcome> {
        let observer = spec.check_listener.then(|| engine.process.observer());
        let (target, port) = (Arc::clone(&engine.target), engine.port);
        let check = async {
            if let Some(observer) = observer
                && observer.listens_on(port).await == Some(false)
            {
                return Err("port");
            }
            while probe(&*self.driver, &self.links.upstream, &target).await.is_err() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            match self.serves_its_model(&target).await {
                true => Ok(()),
                false => Err("model"),
            }
        };
        let checked = tokio::select! {
            () = self.shared.stop.cancelled() => None,
            _ = engine.process.ended() => Some(Err("ended")),
            checked = tokio::time::timeout(READY_TIMEOUT, check) => {
                Some(checked.unwrap_or(Err("health")))
            }
        };
        match checked {
            None => {
                self.stop(engine, spec).await;
                Some(Outcome::HostStopping)
            }
            Some(Ok(())) => {
                tracing::info!(event = "engine_adopted", age_s, "took over engine");
                Some(self.begin_service(engine, spec).await)
            }
            Some(Err(failed)) => {
                tracing::warn!(
                    event = "engine_not_adopted",
                    failed,
                    "engine of an earlier host does not serve; loading it again"
                );
                self.kill(engine).await;
                None
            }
        }
    }

    /// Returns true unless the engine lists only other models than that of the lane.
    async fn serves_its_model(&self, target: &Target) -> bool {
        let path = "/v1/models";
        let listed =
            self.links.upstream.call(target, Method::GET, path, None, MODELS_TIMEOUT).await;
        let Some((_, body)) = listed.ok().filter(|(status, _)| status.is_success()) else {
            // Not every engine has the list.
            return true;
        };
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        let cards = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_named = |card: &Value| {
            card["id"].as_str().is_some_and(|id| self.models.iter().any(|model| model == id))
        };
        // An engine with one model may ignore the name.
        cards.len() <= 1 || cards.iter().any(is_named)
    }
}
