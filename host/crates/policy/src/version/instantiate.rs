//! Creation of a version's instances. It runs under a longer deadline than requests have, because
//! instances are created before requests need them whenever possible.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::contract::host_state::HostState;
use crate::contract::types::Description;
use crate::fault::Fault;
use crate::version::Version;
use crate::version::call::{guarded, store};
use crate::version::call_error::{CallError, retry_on_timeout};
use crate::version::error::LoadError;
use crate::version::warm_instance::WarmInstance;

impl Version {
    /// Creates and configures a new instance.
    pub(super) fn instantiate(&self) -> Result<Box<WarmInstance>, CallError> {
        let mut warm = self.unconfigured()?;
        let limits = self.config.background_limits();
        let configured = guarded(&mut *warm, limits, |warm| {
            warm.instance.configure(&mut warm.store, &self.config.config)
        });
        let report = warm.store.data_mut().take_report();
        let result = configured.map_err(CallError::from).and_then(|result| Ok(result?));
        result.map_err(|error| error.with_report(report))?;
        self.shared.metrics.record_memory(warm.store.data().memory.used());
        Ok(warm)
    }

    fn unconfigured(&self) -> Result<Box<WarmInstance>, Fault> {
        let state = HostState::new(Arc::clone(&self.shared), self.config.limits.memory);
        let mut store = store(&self.engine, state);
        let created = guarded(&mut store, self.config.background_limits(), |store| {
            self.artifact.instantiate(store)
        });
        let instance = created.map_err(|fault| match fault {
            Fault::Trap(cause) => Fault::Instantiate(cause),
            fault @ (Fault::Timeout(_)
            | Fault::WallLimit(_)
            | Fault::Memory(_)
            | Fault::Output(_)
            | Fault::HostCalls(_)
            | Fault::Reported(_)
            | Fault::Instantiate(_)
            | Fault::Panic(_)) => fault,
        })?;
        Ok(Box::new(WarmInstance { store, instance, calls: 0 }))
    }

    /// Puts an instance into the pool, unless it has had its maximum number of calls.
    pub(super) fn put_back(&self, mut warm: Box<WarmInstance>) {
        warm.calls += 1;
        if warm.calls < self.config.max_calls {
            self.pool.put(warm);
        }
    }

    /// Creates the first instances, which validates that instances can be created and configured,
    /// and keeps the first requests from paying for it.
    pub(crate) fn warm_up(&self) -> Result<(), LoadError> {
        let _span = self.span("configure").entered();
        self.keep_instances();
        for _ in 0..self.config.warm_instances {
            let warm = retry_on_timeout(|| self.instantiate()).map_err(LoadError::Configure)?;
            self.put_back(warm);
        }
        Ok(())
    }

    /// Creates instances until as many are idle as at first. Calls use them up: after a fault, and
    /// after their maximum number of calls. Another call would then have to wait for a new one.
    ///
    /// If one cannot be created, this does nothing any more: the next call finds out why, and
    /// counts the fault.
    pub(crate) fn restock(&self) {
        for _ in self.pool.len()..self.config.warm_instances {
            if self.cannot_restock.load(Ordering::Relaxed) {
                return;
            }
            match self.instantiate() {
                Ok(warm) => self.pool.put(warm),
                Err(error) => {
                    tracing::debug!(error = &error as &dyn Error, "failed to create an instance");
                    self.cannot_restock.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Checks that the component, its manifest, and the `name` in the configuration agree on the
    /// name and the version of the policy.
    pub(crate) fn check_description(&self, name: &str) -> Result<(), LoadError> {
        let _span = self.span("describe").entered();
        let describe = || {
            let mut warm = self.unconfigured()?;
            let limits = self.config.background_limits();
            let described =
                guarded(&mut *warm, limits, |warm| warm.instance.describe(&mut warm.store));
            let report = warm.store.data_mut().take_report();
            described.map_err(|fault| CallError::from(fault).with_report(report))
        };
        let described = retry_on_timeout(describe).map_err(LoadError::Describe)?;
        let manifest = self.artifact.manifest();
        // A contract without `describe` leaves the manifest as the only source.
        let described = described.unwrap_or_else(|| Description {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            hints: Vec::new(),
        });
        let identity = |name: &str, version: &str| format!("`{name}` version `{version}`");
        let stated = identity(&manifest.name, &manifest.version);
        let found = identity(&described.name, &described.version);
        if stated != found {
            let expected = format!("{stated} (manifest)");
            return Err(LoadError::DescriptionMismatch { expected, found });
        }
        if described.name != name {
            let expected = format!("`{name}` (configuration)");
            return Err(LoadError::DescriptionMismatch { expected, found });
        }
        tracing::debug!(hints = ?described.hints, "described policy");
        Ok(())
    }
}
