//! Calls of policies that may take long, outside of the threads that serve all requests.
//!
//! A task that blocks its thread does not only delay itself: the runtime does not move the task
//! that waits next on that thread to another one.

use std::sync::Arc;
use std::thread::available_parallelism;

use pointsman_domain::{Advised, Facts, FailureReport, FleetView, Recovered, RequestView, Trace};
use tracing::Span;

use crate::fair_permits::FairPermits;
use crate::large_thread;
use crate::settings::AdvisorHandle;

/// Calls at a time for each CPU, and at least in total. They compete with the threads that serve
/// requests, so more calls would not end earlier.
const CALLS_PER_CPU: usize = 2;
const MIN_CALLS: usize = 4;
/// Bytes of a body from which on a request is large. Parsing takes milliseconds then, during which
/// a worker could serve no other request. Edits take longer than all policies together, so large
/// requests do not share a limit with the others.
pub(crate) const LARGE_BODY: usize = 256 << 10;

/// The limits of policy calls outside of the threads that serve requests.
#[derive(Debug)]
pub(crate) struct PolicyThreads {
    small: FairPermits,
    large: FairPermits,
}

impl Default for PolicyThreads {
    fn default() -> Self {
        let cpus = available_parallelism().map_or(1, usize::from);
        let permits = || FairPermits::new((cpus * CALLS_PER_CPU).max(MIN_CALLS));
        Self { small: permits(), large: permits() }
    }
}

impl PolicyThreads {
    /// Calls [`Advisor::advise`](pointsman_domain::Advisor::advise), on this thread if that is
    /// fast. Returns the trace with the advice.
    pub(crate) async fn advise(
        &self,
        advisor: &AdvisorHandle,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        mut trace: Trace,
    ) -> (Advised, Trace) {
        if !may_block(advisor, facts) {
            let advised = advisor.advise(facts, fleet, &mut trace);
            return (advised, trace);
        }
        let request = Arc::clone(&facts.request);
        let (advisor, facts, fleet) = (Arc::clone(advisor), facts.clone(), Arc::clone(fleet));
        self.run(&*request, move || (advisor.advise(&facts, &fleet, &mut trace), trace)).await
    }

    /// Calls [`Advisor::recover`](pointsman_domain::Advisor::recover) in the same way.
    pub(crate) async fn recover(
        &self,
        advisor: &AdvisorHandle,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: FailureReport,
        mut trace: Trace,
    ) -> (Recovered, Trace) {
        if !may_block(advisor, facts) {
            let recovered = advisor.recover(facts, fleet, &failed, &mut trace);
            return (recovered, trace);
        }
        let request = Arc::clone(&facts.request);
        let (advisor, facts, fleet) = (Arc::clone(advisor), facts.clone(), Arc::clone(fleet));
        self.run(&*request, move || (advisor.recover(&facts, &fleet, &failed, &mut trace), trace))
            .await
    }

    /// Runs `call` on a thread for blocking calls. A call that was started ends, even if its
    /// request is gone; until then it counts.
    async fn run<T: Send + 'static>(
        &self,
        request: &dyn RequestView,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let is_small = request.info().body_bytes < LARGE_BODY as u64;
        let permits = if is_small { &self.small } else { &self.large };
        let permit = permits.acquire(request.tenant()).await;
        let span = Span::current();
        let call = move || {
            let result = span.in_scope(call);
            drop(permit);
            result
        };
        if !is_small {
            return large_thread::run(call).await;
        }
        let task = tokio::task::spawn_blocking(call);
        match task.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime stops, and this task with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }
}

/// Returns whether a call may block. A chain without policies does nothing, however large the body.
fn may_block(advisor: &AdvisorHandle, facts: &Facts) -> bool {
    let is_empty = advisor.chain().is_some_and(|chain| chain.policies.is_empty());
    !is_empty && advisor.may_block(facts)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use pointsman_domain::{Advisor, BuiltIn, Endpoint, LaneState, Topology};
    use pointsman_openai::{Head, Request};

    use super::*;

    /// Blocks until a message arrives.
    #[derive(Debug)]
    struct Blocking(Mutex<Receiver<()>>);

    impl Advisor for Blocking {
        fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Advised {
            let received = self.0.lock().unwrap().recv_timeout(Duration::from_secs(60));
            received.expect("another task runs meanwhile");
            BuiltIn.advise(facts, fleet, trace)
        }

        fn may_block(&self, _: &Facts) -> bool {
            true
        }
    }

    /// On the only thread of the runtime.
    #[tokio::test]
    async fn blocking_advisor_does_not_hold_up_other_tasks() {
        let (sender, receiver) = channel();
        let advisor: AdvisorHandle = Arc::new(Box::new(Blocking(Mutex::new(receiver))));
        let body = br#"{"model":"m","messages":[]}"#.as_slice();
        let request = Request::parse(Endpoint::ChatCompletions, body.into(), Head::default());
        let facts = Facts {
            request: Arc::new(request.unwrap()),
            now_ms: 0,
            seed: 0,
            age: Duration::ZERO,
            attempt: 0,
            time_left: None,
            lanes_left: None,
        };
        let fleet = FleetView::idle(Arc::new(Topology::new(1, Vec::new())), LaneState::Ready);
        let fleet = Arc::new(fleet);
        let threads = PolicyThreads::default();
        let max = threads.small.available();
        let calls = (0..2 * max).map(|_| threads.advise(&advisor, &facts, &fleet, Trace::off()));
        let others = async {
            for _ in 0..2 * max {
                sender.send(()).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (advised, ()) = tokio::join!(futures_util::future::join_all(calls), others);
        assert_eq!((advised.len(), threads.small.available()), (2 * max, max));
    }
}
