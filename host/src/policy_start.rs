//! Loads the policies of a host at its start.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use pointsman_policy::{Allocator, Compiler, Policies, PolicyMetrics, Runtime, RuntimeSettings};

use crate::facts;
use crate::registry::PolicySources;
use crate::shared_state::SharedStates;

/// Loads the policies on a blocking thread.
///
/// # Errors
/// If the runtime or the threads of policies cannot be started.
pub(crate) async fn load(
    config: &pointsman_config::Policies,
    metrics: Arc<PolicyMetrics>,
    (sources, shared): (Arc<PolicySources>, Option<SharedStates>),
) -> Result<Arc<Policies>> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let settings = RuntimeSettings {
        cache_dir: config.cache.clone(),
        compiler: Compiler::this_program(),
        allocator: Allocator::Auto,
        // One more than threads that call policies: it is used while another one is replaced.
        warm_instances: workers.min(16) + 1,
        ..RuntimeSettings::default()
    };
    let mut chain = config.chain.clone();
    if chain.policies.is_empty() {
        tracing::info!("no policies configured; using built-in routing");
    }
    let load = move || -> Result<Arc<Policies>> {
        let runtime = Runtime::new(settings)?;
        let policies = Policies::new(&runtime, &metrics, Box::new(facts::from_case))
            .context("failed to spawn the policy threads")?;
        if let Some(shared) = shared {
            shared.attach(&policies);
        }
        sources.prepare(&mut chain);
        policies.apply(chain);
        Ok(policies)
    };
    tokio::task::spawn_blocking(load).await.context("failed to load the policies")?
}
