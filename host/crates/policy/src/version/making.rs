//! Making instances of a version: unhurried, because no request waits for them if it can be helped.

use std::sync::Arc;

use super::{LoadError, NoAdvice, UNHURRIED_DEADLINE, Version, retry_on_timeout};
use crate::abi::Description;
use crate::call::{CallLimits, Fault, guarded, store};
use crate::host_calls::HostState;
use crate::pool::Warm;

impl Version {
    /// A new instance, configured.
    pub(super) fn instantiate(&self) -> Result<Box<Warm>, NoAdvice> {
        let mut warm = self.unconfigured()?;
        let limits = self.unhurried();
        guarded(&mut *warm, limits, |warm| {
            warm.instance.configure(&mut warm.store, &self.config)
        })??;
        self.shared.figures.used_memory(warm.store.data().memory.used());
        Ok(warm)
    }

    fn unconfigured(&self) -> Result<Box<Warm>, Fault> {
        let state = HostState::new(Arc::clone(&self.shared), self.limits.memory);
        let mut store = store(&self.runtime, state);
        let made =
            guarded(&mut store, self.unhurried(), |store| self.loaded.linked.instantiate(store));
        let instance = made.map_err(|fault| match fault {
            Fault::Trap(why) => Fault::Instantiate(why),
            other => other,
        })?;
        Ok(Box::new(Warm { store, instance, calls: 0 }))
    }

    fn unhurried(&self) -> CallLimits {
        CallLimits { deadline: UNHURRIED_DEADLINE, ..self.limits }
    }

    /// Make the first instances, so that no request pays for them, and see that they can be made.
    pub(crate) fn warm_up(&self) -> Result<(), LoadError> {
        for _ in 0..self.runtime.warm_instances.max(1) {
            let doing = "configured";
            let warm = retry_on_timeout(|| self.instantiate())
                .map_err(|error| LoadError::FirstCall { doing, what: error.to_string() })?;
            self.pool.put(warm, self.most_calls);
        }
        Ok(())
    }

    /// Is it who its manifest, and the operator, say that it is?
    pub(crate) fn check_description(&self, wanted: &str) -> Result<(), LoadError> {
        let describe = || {
            let mut warm = self.unconfigured()?;
            let limits = self.unhurried();
            Ok(guarded(&mut *warm, limits, |warm| warm.instance.describe(&mut warm.store))?)
        };
        let described = retry_on_timeout(describe).map_err(|error| LoadError::FirstCall {
            doing: "asked to describe itself",
            what: error.to_string(),
        })?;
        // Where the contract has no description, the manifest's word is all there is.
        let described = described.unwrap_or_else(|| Description {
            name: self.manifest.name.clone(),
            version: self.manifest.version.clone(),
            hints: Vec::new(),
        });
        let says = |name: &str, version: &str| format!("`{name}` version `{version}`");
        let manifest = says(&self.manifest.name, &self.manifest.version);
        let component = says(&described.name, &described.version);
        if manifest != component {
            return Err(LoadError::Description { manifest, component });
        }
        if described.name != wanted {
            let manifest = format!("{manifest}, the configuration `{wanted}`");
            return Err(LoadError::Description { manifest, component });
        }
        tracing::debug!(policy = %self.reference, hints = ?described.hints, "described");
        Ok(())
    }
}
