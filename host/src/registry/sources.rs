//! The policies of a running host that come from registries: what is pulled before they are loaded,
//! and tags that are followed.
//!
//! ```text
//!   tag ── every `follow-interval` ──> digest ── new? ──> pull ──> cache ──> link ──> reload
//! ```
//!
//! The link is the policy's folder. A version that was pulled is loaded, validated, tried and
//! rolled back like one that an operator has copied there.

mod metrics;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use pointsman_policy::{ChainSpec, OciDigest, PolicySource, RegistrySettings, SourceProblem};
use pointsman_registry::{Cache, RegistryError};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::metrics::SourceMetrics;
use super::pulled::{client, problem};

/// Maximum time for all pulls before policies are loaded. What takes longer is used from the cache,
/// or missing until it is pulled.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a digest that is not in the cache is tried to be pulled.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The sources of the policies in the chain.
#[derive(Debug)]
pub(crate) struct PolicySources {
    runtime: Handle,
    metrics: SourceMetrics,
    state: Mutex<State>,
    /// Notified when the sources have changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    registries: Vec<RegistrySettings>,
    followed: Vec<Followed>,
}

/// A source, and what is known of it.
#[derive(Debug, Clone)]
struct Followed {
    policy: String,
    source: PolicySource,
    cache: Cache,
    /// When it is looked up; `None` for a digest that is in the cache.
    next: Option<Instant>,
    /// An artifact that is not a policy. It is not pulled again.
    invalid: Option<OciDigest>,
    is_reachable: bool,
}

/// Why a source could not be updated.
#[derive(Debug, thiserror::Error)]
enum UpdateError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("failed to write to the cache: {0}")]
    Cache(#[from] io::Error),
    #[error("no complete artifact within {} s", PREPARE_TIMEOUT.as_secs())]
    Timeout,
    #[error("the host is stopping")]
    Stopping,
}

impl UpdateError {
    fn problem(&self) -> SourceProblem {
        match self {
            Self::Registry(error) => problem(error),
            Self::Cache(_) | Self::Stopping => self.with_code("unavailable"),
            Self::Timeout => self.with_code("registry_timeout"),
        }
    }

    fn with_code(&self, code: &'static str) -> SourceProblem {
        SourceProblem { code, message: self.to_string() }
    }
}

impl PolicySources {
    /// Creates an empty list, on a thread of the runtime.
    pub(crate) fn new(registry: &mut Registry) -> Arc<Self> {
        Arc::new(Self {
            runtime: Handle::current(),
            metrics: SourceMetrics::register(registry),
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Pulls what the policies of a chain need, and notes in the chain why something is missing.
    /// From then on, these sources are followed. Blocks, but not on a thread of the runtime.
    pub(crate) fn prepare(&self, chain: &mut ChainSpec) {
        let earlier = std::mem::take(&mut self.state.lock().followed);
        let mut followed: Vec<Followed> =
            chain.policies.iter().filter_map(Followed::from_policy).collect();
        for source in &mut followed {
            let known = earlier.iter().find(|known| known.source == source.source);
            source.invalid = known.and_then(|known| known.invalid.clone());
            source.is_reachable = known.is_none_or(|known| known.is_reachable);
        }
        let updates = followed.iter_mut().map(|source| async {
            let update = self.update(source, &chain.registries);
            let updated = tokio::time::timeout(PREPARE_TIMEOUT, update).await;
            let updated = updated.unwrap_or(Err(UpdateError::Timeout));
            let problem = updated.as_ref().err().map(UpdateError::problem);
            self.note(source, updated.map(drop));
            (source.policy.clone(), problem)
        });
        let problems = self.runtime.block_on(join_all(updates));
        for (name, problem) in problems {
            let policy = chain.policies.iter_mut().find(|policy| policy.name == name);
            if let Some(source) = policy.and_then(|policy| policy.source.as_mut()) {
                source.problem = problem;
            }
        }
        self.metrics.keep(followed.iter().map(|source| source.policy.as_str()));
        prune(&followed);
        *self.state.lock() = State { registries: chain.registries.clone(), followed };
        self.changed.notify_one();
    }

    /// Looks up tags when it is time, as long as the future is polled. Calls `changed` when another
    /// version is in the folder of a policy.
    pub(crate) async fn follow(&self, changed: impl Fn()) {
        loop {
            let next = self.state.lock().followed.iter().filter_map(|source| source.next).min();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.look(&changed).await,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Looks up the sources that are due.
    async fn look(&self, changed: &impl Fn()) {
        let (registries, due) = {
            let state = self.state.lock();
            let now = Instant::now();
            let is_due = |source: &&Followed| source.next.is_some_and(|next| next <= now);
            let due: Vec<Followed> = state.followed.iter().filter(is_due).cloned().collect();
            (state.registries.clone(), due)
        };
        join_all(due.into_iter().map(|mut source| {
            let registries = &registries;
            async move {
                let updated = self.update(&mut source, registries).await;
                let is_new = matches!(updated, Ok(true));
                self.note(&mut source, updated.map(drop));
                let mut state = self.state.lock();
                // Unless the chain has changed meanwhile.
                let known = state
                    .followed
                    .iter_mut()
                    .find(|known| known.policy == source.policy && known.source == source.source);
                if let Some(known) = known {
                    *known = source;
                }
                if is_new {
                    prune(&state.followed);
                    changed();
                }
            }
        }))
        .await;
    }

    /// Has the folder of a source lead to what its tag or digest stands for. Returns true if that
    /// is another artifact than before.
    async fn update(
        &self,
        followed: &mut Followed,
        registries: &[RegistrySettings],
    ) -> Result<bool, UpdateError> {
        let Followed { source, cache, .. } = followed;
        let current = cache.current(source);
        if source.reference.digest().is_some() && current.is_some() {
            return Ok(false);
        }
        // Reads a file: credentials may have been changed.
        let client = client(registries)?;
        let digest = client.resolve(&source.reference).await?;
        if current.as_ref() == Some(&digest) || followed.invalid.as_ref() == Some(&digest) {
            return Ok(false);
        }
        let (is_cached, reference) = (cache.has(&digest), source.reference.with_digest(digest));
        let artifact = match is_cached {
            true => None,
            false => match client.pull(&reference).await {
                Ok(pulled) => Some(pulled.artifact),
                Err(error) => {
                    if error.is_permanent() {
                        followed.invalid = reference.digest().cloned();
                    }
                    return Err(error.into());
                }
            },
        };
        let Some(digest) = reference.digest().cloned() else { return Ok(false) };
        tracing::info!(
            event = "policy_pulled",
            policy = followed.policy,
            source = %source.reference,
            %digest,
            "pulled a version of the policy"
        );
        let (source, cache) = (source.clone(), cache.clone());
        let write = move || {
            if let Some(artifact) = artifact {
                cache.add(&digest, &artifact)?;
            }
            cache.point(&source, &digest)
        };
        tokio::task::spawn_blocking(write).await.map_err(|_| UpdateError::Stopping)??;
        self.metrics.pulled(&followed.policy);
        Ok(true)
    }

    /// Notes the result of an update, and when the next one is due.
    fn note(&self, followed: &mut Followed, updated: Result<(), UpdateError>) {
        let Followed { policy, source, cache, is_reachable, .. } = followed;
        let was_reachable = std::mem::replace(is_reachable, updated.is_ok());
        self.metrics.checked(policy, updated.is_ok());
        let current = cache.current(source).map(|digest| digest.to_string());
        match &updated {
            Err(error) if was_reachable => {
                let (code, reference) = (error.problem().code, source.reference.to_string());
                tracing::warn!(
                    event = "policy_source_unavailable",
                    policy,
                    source = reference,
                    code,
                    %error,
                    cached = current.as_deref().unwrap_or("nothing"),
                    "failed to look up the version of the policy; using what is in the cache"
                );
            }
            Ok(()) if !was_reachable => {
                let reference = source.reference.to_string();
                tracing::info!(
                    event = "policy_source_available",
                    policy,
                    source = reference,
                    "the registry of the policy can be reached again"
                );
            }
            Ok(()) | Err(_) => {}
        }
        let interval = match source.follow {
            Some(interval) => Some(interval),
            None => current.is_none().then_some(RETRY_INTERVAL),
        };
        followed.next = interval.map(|interval| Instant::now() + with_jitter(interval));
    }
}

impl Followed {
    fn from_policy(policy: &pointsman_policy::PolicySpec) -> Option<Self> {
        let source = PolicySource { problem: None, ..policy.source.clone()? };
        let cache = Cache::containing(&policy.dir)?;
        let (policy, next, invalid) = (policy.name.clone(), None, None);
        Some(Self { policy, source, cache, next, invalid, is_reachable: true })
    }
}

/// Returns a duration that differs from the interval by at most a tenth, so that many hosts do not
/// ask a registry at the same time.
fn with_jitter(interval: Duration) -> Duration {
    // 0 to 200: per mille above nine tenths.
    let random = RandomState::new().hash_one(()) % 201;
    interval.mul_f64(0.9 + f64::from(u8::try_from(random).unwrap_or(100)) / 1000.0)
}

/// Removes old artifacts from the caches.
fn prune(followed: &[Followed]) {
    let Some(Followed { cache, .. }) = followed.first() else { return };
    let sources: Vec<PolicySource> =
        followed.iter().map(|followed| followed.source.clone()).collect();
    if let Err(error) = cache.prune(&sources) {
        tracing::warn!(%error, "failed to remove old artifacts from the cache of registries");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_at_most_a_tenth() {
        for _ in 0..100 {
            let interval = with_jitter(Duration::from_secs(10));
            assert!((9.0..=11.0).contains(&interval.as_secs_f64()), "{interval:?}");
        }
    }
}
