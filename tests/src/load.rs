//! Clients that send requests in a loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::{chat, post};
use crate::wait_until;

/// What a client saw of the decision about its request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedDecision {
    pub status: u16,
    /// The name and version of the policy.
    pub policy: String,
    pub lane: String,
    pub reason: String,
}

/// A number of clients, each of which sends its next request when it has the response.
#[derive(Debug)]
pub struct LoadGenerator {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    clients: Vec<JoinHandle<BTreeMap<ObservedDecision, u64>>>,
}

impl LoadGenerator {
    /// Starts `clients` clients that send chat requests for `model`.
    pub fn start(port: u16, clients: usize, model: &str) -> Self {
        let (stop, requests) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |_| {
            let (stop, requests, model) =
                (Arc::clone(&stop), Arc::clone(&requests), model.to_owned());
            std::thread::spawn(move || {
                let mut decisions = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    *decisions.entry(send_request(port, &model)).or_default() += 1;
                    requests.fetch_add(1, Ordering::Relaxed);
                    // Leave some CPU to the host under test.
                    crate::pause(Duration::from_millis(2));
                }
                decisions
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, requests, clients }
    }

    /// Returns the number of responses so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Waits until this many more requests have been answered.
    pub fn wait_for_requests(&self, more: u64) {
        let target = self.requests() + more;
        wait_until("the clients have sent more requests", || self.requests() >= target);
    }

    /// Stops the clients; returns the observed decisions and how often each was observed.
    pub fn stop(self) -> BTreeMap<ObservedDecision, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for client in self.clients {
            for (decision, count) in client.join().expect("a response to every request") {
                *all.entry(decision).or_default() += count;
            }
        }
        all
    }
}

fn send_request(port: u16, model: &str) -> ObservedDecision {
    let response =
        post(port, "/v1/chat/completions", &chat(model, serde_json::json!({ "max_tokens": 1 })));
    let header = |name: &str| response.header(name).unwrap_or_default().to_owned();
    ObservedDecision {
        status: response.status,
        policy: header("x-pointsman-policy"),
        lane: header("x-pointsman-lane"),
        reason: header("x-pointsman-reason"),
    }
}
