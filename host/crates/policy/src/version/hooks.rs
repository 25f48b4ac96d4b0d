//! The hooks of a version. Each call has its limits and a circuit breaker, and its result is
//! counted.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Advice, BreakerChange, BreakerScope, Facts, FailureReport, FleetView, Outcome, Recovery,
    RequestView,
};
use pointsman_spec::Hook;

use crate::contract::host_state::TimeUsed;
use crate::contract::live_api::Current;
use crate::contract::types::{CallContext, PolicyError, PolicyHint};
use crate::fault::report::FaultReport;
use crate::version::Version;
use crate::version::call::{CallLimits, guarded};
use crate::version::call_error::CallError;
use crate::version::call_trace::CallTrace;
use crate::version::warm_instance::WarmInstance;
use crate::wasm::metering::Metering;

impl Version {
    /// Calls `on-request`. The host calls of the guest are handled as `trace` says.
    pub(crate) fn advise(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        trace: &mut CallTrace,
    ) -> Result<Advice, CallError> {
        self.about_request(Hook::Request, facts, fleet, trace, |warm, context| {
            warm.instance.advise(&mut warm.store, context)
        })
    }

    /// Calls `on-failure` after a failed attempt.
    pub(crate) fn recover(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        trace: &mut CallTrace,
    ) -> Result<Recovery, CallError> {
        self.about_request(Hook::Failure, facts, fleet, trace, |warm, context| {
            warm.instance.recover(&mut warm.store, context, failed)
        })
    }

    /// Calls `on-complete` with the outcomes of requests.
    pub(crate) fn observe(
        &self,
        fleet: &Arc<FleetView>,
        now_ms: u64,
        done: &[Outcome],
        trace: &mut CallTrace,
    ) -> Result<(), CallError> {
        self.in_background(Hook::Complete, fleet, trace, |warm| {
            warm.instance.observe(&mut warm.store, now_ms, done)
        })
    }

    /// Calls `on-outcome` with the outcomes of requests.
    pub(crate) fn learn(
        &self,
        fleet: &Arc<FleetView>,
        now_ms: u64,
        done: &[Outcome],
        trace: &mut CallTrace,
    ) -> Result<(), CallError> {
        let name = &*self.reference().name;
        self.in_background(Hook::Outcome, fleet, trace, |warm| {
            warm.instance.learn(&mut warm.store, now_ms, done, name)
        })
    }

    /// Calls `on-tick`, which returns hints about lanes.
    pub(crate) fn tick(
        &self,
        fleet: &Arc<FleetView>,
        now_ms: u64,
        seed: u64,
        trace: &mut CallTrace,
    ) -> Result<Vec<PolicyHint>, CallError> {
        self.in_background(Hook::Tick, fleet, trace, |warm| {
            warm.instance.tick(&mut warm.store, now_ms, seed)
        })
    }

    /// Calls a hook that is not about a request, and that the policy cannot refuse.
    fn in_background<T>(
        &self,
        hook: Hook,
        fleet: &Arc<FleetView>,
        trace: &mut CallTrace,
        call: impl FnOnce(&mut WarmInstance) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        self.call(hook, Current::background(fleet), trace, |warm| call(warm).map(Ok))
    }

    fn about_request<T>(
        &self,
        hook: Hook,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        trace: &mut CallTrace,
        call: impl FnOnce(
            &mut WarmInstance,
            CallContext<'_>,
        ) -> wasmtime::Result<Result<T, PolicyError>>,
    ) -> Result<T, CallError> {
        let current = Current::about(facts, fleet);
        let topology = fleet.topology.generation();
        // Saturates at 71 minutes, far above the maximum deadline.
        let budget_us = u32::try_from(self.config.limits.deadline.as_micros()).unwrap_or(u32::MAX);
        self.call(hook, current, trace, |warm| {
            call(warm, CallContext { facts, topology, budget_us })
        })
    }

    /// Calls a hook if its breaker is closed, and counts the result.
    fn call<T>(
        &self,
        hook: Hook,
        current: Current,
        trace: &mut CallTrace,
        call: impl FnOnce(&mut WarmInstance) -> wasmtime::Result<Result<T, PolicyError>>,
    ) -> Result<T, CallError> {
        let start = self.shared.clock.now();
        let request = current.request.clone();
        let tenant = request.as_deref().and_then(RequestView::tenant);
        self.admit(hook, tenant, start)?;
        let mut used = TimeUsed::default();
        let result = self.call_instance(hook, current, trace, &mut used, call);
        let now = self.shared.clock.now();
        match self.config.limits.metering {
            Metering::Wall => trace.set_wall(now.saturating_sub(start), &used),
            Metering::Fuel => {
                self.tally.add_fuel(used.fuel);
                trace.set_metered(Metering::time(used.fuel));
            }
        }
        self.count(hook, tenant, now, trace, result.as_ref().err());
        result
    }

    /// Returns an error, and counts it, if a breaker of this version stops the call.
    fn admit(&self, hook: Hook, tenant: Option<&str>, now: Duration) -> Result<(), CallError> {
        if !self.has_breakers {
            return Ok(());
        }
        self.breaker(hook).admit(tenant, now).map_err(|scope| {
            let error = CallError::from(scope);
            self.metrics().record_failure(hook, error.kind(), false);
            error
        })
    }

    /// Takes an instance from the pool, or creates one, and calls it under its limits.
    fn call_instance<T>(
        &self,
        hook: Hook,
        current: Current,
        trace: &mut CallTrace,
        used: &mut TimeUsed,
        call: impl FnOnce(&mut WarmInstance) -> wasmtime::Result<Result<T, PolicyError>>,
    ) -> Result<T, CallError> {
        let mut warm = match self.pool.take() {
            Some(warm) => warm,
            None => {
                let start = self.shared.clock.now();
                let warm = self.instantiate()?;
                let now = self.shared.clock.now();
                self.pace.record_part(now, now.saturating_sub(start));
                warm
            }
        };
        let delays_request = matches!(hook, Hook::Request | Hook::Failure);
        let deadline = if delays_request {
            self.config.limits.deadline
        } else {
            self.config.background_deadline()
        };
        let output_bytes = warm.instance.max_output_bytes(current.request.as_deref());
        let limits = CallLimits { deadline, output_bytes, ..self.config.limits };
        warm.store.data_mut().begin(current, std::mem::take(&mut trace.host_calls));
        // After a fault the instance is dropped: its memory may be in any state, and wasmtime
        // refuses to enter it again.
        let called = guarded(&mut *warm, limits, call);
        (trace.host_calls, *used) = warm.store.data_mut().end();
        let report = warm.store.data_mut().take_report();
        let returned = match called {
            Ok(returned) => returned,
            Err(fault) => return Err(CallError::from(fault).with_report(report)),
        };
        if !warm.instance.needs_recycling(&warm.store) {
            self.put_back(warm);
        }
        returned.map_err(|error| CallError::from(error).with_report(report))
    }

    fn count(
        &self,
        hook: Hook,
        tenant: Option<&str>,
        now: Duration,
        trace: &CallTrace,
        error: Option<&CallError>,
    ) {
        self.tally.add_call();
        // Only calls that delay a request have a budget.
        if matches!(hook, Hook::Request | Hook::Failure) {
            self.pace.record(now, trace.cpu_time);
            if trace.cpu_time > self.config.budget {
                self.tally.add_slow();
                self.metrics().record_slow();
            }
        }
        self.record_with_breaker(hook, tenant, now, error);
        match error {
            None => self.metrics().record_success(hook, trace.duration),
            Some(error) => {
                if matches!(error, CallError::Policy(_)) {
                    self.tally.add_error(&error.to_string());
                }
                if let CallError::Fault(fault) = error
                    && error.is_fault()
                {
                    self.tally.add_fault(fault);
                    // Calls about requests are compared with the version before by the chain.
                    if matches!(hook, Hook::Complete | Hook::Outcome | Hook::Tick) {
                        self.tally.add_own(true);
                    }
                }
                if !error.is_preempted() && self.faults.add(now, hook, error) {
                    self.log_report(error);
                }
                let has_fault_kind = matches!(error, CallError::Fault(_));
                self.metrics().record_failure(hook, error.kind(), has_fault_kind);
            }
        }
    }

    /// Logs a fault with its location, once until others have displaced it. In virtual time, the
    /// results of a run have it.
    fn log_report(&self, error: &CallError) {
        let Some(report) = error.report().filter(|_| !self.shared.clock.is_virtual()) else {
            return;
        };
        let kind = error.kind();
        let FaultReport { message: error, file, line, stack } = report;
        tracing::warn!(event = "policy_fault", kind, error, file, line, ?stack, "policy failed");
    }

    /// Counts the end of a call with the breaker of its hook, unless the call was preempted.
    fn record_with_breaker(
        &self,
        hook: Hook,
        tenant: Option<&str>,
        now: Duration,
        error: Option<&CallError>,
    ) {
        if !self.has_breakers {
            return;
        }
        if error.is_some_and(CallError::is_preempted) {
            self.breaker(hook).abandon(tenant, now);
            return;
        }
        let is_fault = error.is_some_and(CallError::is_fault);
        let changes = self.breaker(hook).record(tenant, now, is_fault);
        for change in changes.into_iter().flatten() {
            self.report_breaker(hook, tenant, change, error);
        }
    }

    /// Logs that a breaker opened or closed. The gauge is that of all tenants.
    fn report_breaker(
        &self,
        hook: Hook,
        tenant: Option<&str>,
        change: BreakerChange,
        error: Option<&CallError>,
    ) {
        let tenant = tenant.filter(|_| change.scope == BreakerScope::Tenant);
        if change.opened {
            let kind = error.map(CallError::kind);
            let error = error.map(ToString::to_string);
            tracing::error!(kind, error, tenant, "circuit breaker opened");
        } else {
            tracing::info!(tenant, "circuit breaker closed");
        }
        if change.scope == BreakerScope::All {
            self.metrics().set_breaker_open(hook, self.breaker(hook).is_open());
        }
    }
}
