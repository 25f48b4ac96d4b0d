//! Looks at a serving engine: does it live, and what does it tell about itself?
//!
//! `/health` is asked, and only its "no" is believed: engines have answered 200 for hours without giving a token. What
//! counts as life is bytes and tokens. With requests under way something has to move; an idle engine is asked for a token.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::driver::{Driver, Target};
use crate::scrape::{EngineMetrics, Rates, rates};
use crate::spec::Liveness;
use crate::supervisor::Supervisor;
use crate::upstream::Upstream;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Longest answer to a look; a busy engine may be slow to give it, which is no sign of death.
const LIMIT: Duration = Duration::from_secs(2);
/// So many times in a row an engine has to say that it cannot serve, or to fail to give a token.
const IN_A_ROW: u32 = 2;

/// What was seen.
pub(crate) enum Seen {
    /// What the engine tells about itself.
    Figures(EngineMetrics, Rates),
    /// It hangs, or says that it is dead: a sentence.
    Hangs(String),
}

pub(crate) struct Vitals {
    name: String,
    slots: u32,
    driver: Arc<dyn Driver>,
    target: Arc<Target>,
    upstream: Arc<Upstream>,
    liveness: Liveness,
    every: Interval,
    earlier: Option<(EngineMetrics, Instant)>,
    moved: Instant,
    unwell: u32,
    silent: u32,
    probed: Instant,
}

impl Vitals {
    /// Of the engine at `target`, whose supervisor this is.
    pub(crate) fn of(supervisor: &Supervisor, target: &Arc<Target>) -> Self {
        let now = Instant::now();
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            name: supervisor.name.clone(),
            slots: supervisor.slots,
            driver: Arc::clone(&supervisor.driver),
            target: Arc::clone(target),
            upstream: Arc::clone(&supervisor.upstream),
            liveness: supervisor.liveness,
            every,
            earlier: None,
            moved: now,
            unwell: 0,
            silent: 0,
            probed: now,
        }
    }

    /// The next thing worth knowing. Can be dropped and called again: nothing is lost but one look.
    pub(crate) async fn next(&mut self) -> Seen {
        loop {
            self.every.tick().await;
            if let Some(why) = self.unwell().await {
                return Seen::Hangs(why);
            }
            let figures = self.scrape().await;
            if let Some(why) = self.stalls() {
                return Seen::Hangs(why);
            }
            if let Some(why) = self.idle_probe().await {
                return Seen::Hangs(why);
            }
            if let Some((figures, rates)) = figures {
                return Seen::Figures(figures, rates);
            }
        }
    }

    /// The engine itself says that it cannot serve.
    async fn unwell(&mut self) -> Option<String> {
        let path = *self.driver.ready_paths().first()?;
        match self.upstream.call(&self.target, Method::GET, path, None, LIMIT).await {
            Ok((status, _)) if status.is_server_error() => self.unwell += 1,
            _ => self.unwell = 0,
        }
        (self.unwell >= IN_A_ROW)
            .then(|| format!("the engine says that it cannot serve ({path} answers an error)"))
    }

    async fn scrape(&mut self) -> Option<(EngineMetrics, Rates)> {
        let mut figures: Option<EngineMetrics> = None;
        for (path, read) in self.driver.figures() {
            match self.upstream.call(&self.target, Method::GET, path, None, LIMIT).await {
                Ok((status, body)) if status.is_success() => {
                    figures = Some(figures.unwrap_or_default().or(read(&body)));
                }
                Ok((status, _)) => tracing::trace!(lane = self.name, "{path} answers {status}"),
                Err(error) => tracing::debug!(lane = self.name, "{path}: {error}"),
            }
        }
        let (figures, now) = (figures?, Instant::now());
        self.compare_slots(&figures);
        let rates = match &self.earlier {
            Some((earlier, at)) => rates(earlier, &figures, now.duration_since(*at)),
            None => Rates::default(),
        };
        if rates.moved == Some(true) {
            self.moved = now;
        }
        self.earlier = Some((figures, now));
        Some((figures, rates))
    }

    /// More requests than the engine has slots would wait inside it, where nobody sees to their order.
    fn compare_slots(&self, figures: &EngineMetrics) {
        if self.earlier.is_none()
            && let Some(slots) = figures.slots.filter(|slots| *slots < self.slots)
        {
            tracing::warn!(
                lane = self.name,
                "the lane has {} slots and its engine only {slots}: set `slots = {slots}`, or give the engine more",
                self.slots
            );
        }
    }

    /// Requests are under way, and not a byte or token has moved for too long.
    fn stalls(&self) -> Option<String> {
        let (requests, still) = self.upstream.activity.now();
        let still = still.min(self.moved.elapsed());
        (!self.liveness.stall.is_zero() && requests > 0 && still >= self.liveness.stall).then(|| {
            format!(
                "the engine hangs: {requests} requests under way, and nothing has moved for {} s",
                still.as_secs()
            )
        })
    }

    /// Nothing is under way: ask for one token.
    async fn idle_probe(&mut self) -> Option<String> {
        let Liveness { probe_every, probe_limit, .. } = self.liveness;
        let (requests, still) = self.upstream.activity.now();
        if probe_every.is_zero() || requests > 0 || still.min(self.probed.elapsed()) < probe_every {
            return None;
        }
        self.probed = Instant::now();
        let model = serde_json::Value::from(self.driver.model(&self.name));
        let body = format!(r#"{{"model":{model},"prompt":"1","max_tokens":1}}"#);
        let path = "/v1/completions";
        let answer =
            self.upstream.call(&self.target, Method::POST, path, Some(&body), probe_limit).await;
        match answer {
            // A refusal is an answer, too: an engine for embeddings has no completions.
            Ok((status, _))
                if !status.is_server_error() || status == http::StatusCode::NOT_IMPLEMENTED =>
            {
                self.silent = 0;
            }
            // Somebody else came meanwhile, whose bytes will tell.
            _ if self.upstream.activity.now().0 > 0 => {}
            Ok((status, _)) => {
                self.silent += 1;
                tracing::warn!(
                    lane = self.name,
                    "asked for a token, the idle engine answers {status}"
                );
            }
            Err(error) => {
                self.silent += 1;
                tracing::warn!(
                    lane = self.name,
                    "asked for a token, the idle engine fails: {error}"
                );
            }
        }
        (self.silent >= IN_A_ROW)
            .then(|| "the engine hangs: idle, and gives no token when asked for one".to_owned())
    }
}
