//! Clients that send requests all the time, and note what becomes of each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use pointsman_tests::client::{ResponseStream, chat, open};
use serde_json::{Value, json};

use super::machines::{EDGE, Machines};

const CHAT: &str = "/v1/chat/completions";
/// The secret of the clients, and its digest.
const SECRET: &str = "pointsman-demo";
pub(super) const DIGEST: &str = "23863e01147a00785cb3b4b69b8a38c527fb9b4656c21d313ba49059cd5ea7ac";
/// Clients of Envoy, and as many of the first host: together more than the slots of all hosts.
const CLIENTS: usize = 8;

/// What a client saw of a request.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) begun: Instant,
    pub(super) took: Duration,
    pub(super) status: u16,
    /// The lane that has served it.
    pub(super) lane: String,
    pub(super) text: String,
}

/// Opens a request, and returns its response when it has begun.
pub(super) fn begin(port: u16, key: Option<&str>, body: &Value) -> ResponseStream {
    let bearer = format!("Bearer {SECRET}");
    let mut headers = vec![("content-type", "application/json"), ("authorization", &*bearer)];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    open(port, "POST", CHAT, &headers, body.to_string().as_bytes())
}

/// Returns the lane that serves a request.
pub(super) fn lane(response: &ResponseStream) -> &str {
    let mut headers = response.headers.iter();
    headers.find(|(name, _)| name == "x-pointsman-lane").map_or("", |(_, lane)| lane)
}

/// Sends a short request.
pub(super) fn ask(port: u16, key: Option<&str>, model: &str) -> Sample {
    let begun = Instant::now();
    let response = begin(port, key, &chat(model, json!({ "max_tokens": 2 })));
    let lane = lane(&response).to_owned();
    let (response, _) = response.finish();
    let (took, status, text) = (begun.elapsed(), response.status, response.text());
    Sample { begun, took, status, lane, text }
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    /// Of Envoy, and of the first host.
    samples: [Mutex<Vec<Sample>>; 2],
}

/// Clients of Envoy, and of the lanes of other hosts at the first one.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(machines: &Machines) -> Self {
        let shared = Arc::new(Shared::default());
        let mut clients = Vec::new();
        for (index, (machine, model)) in [(EDGE, "m"), (1, "far")].into_iter().enumerate() {
            let port = machines.port(machine);
            let client = || {
                let shared = Arc::clone(&shared);
                spawn(move || {
                    while !shared.is_over.load(Ordering::Relaxed) {
                        let sample = ask(port, None, model);
                        shared.samples[index].lock().unwrap().push(sample);
                    }
                })
            };
            // Threads are where the one is that starts them.
            let started = machines.network.on(machine, || (0..CLIENTS).map(|_| client()).collect());
            clients.extend::<Vec<_>>(started);
        }
        Self { shared, clients }
    }

    /// Returns true if requests that began after a time were served on all of these lanes.
    pub(super) fn has_served(&self, since: Instant, lanes: &[&str]) -> bool {
        let all = self.shared.samples.each_ref().map(|samples| samples.lock().unwrap().clone());
        let has_served = |lane: &&str| {
            let mut samples = all.iter().flatten();
            samples.any(|sample| sample.begun >= since && sample.lane == **lane)
        };
        lanes.iter().all(has_served)
    }

    /// Lets all requests end, and returns what became of them: by Envoy, and by the first host.
    pub(super) fn stop(mut self) -> [Vec<Sample>; 2] {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.clients.drain(..).for_each(|client| client.join().unwrap());
        self.shared.samples.each_ref().map(|samples| std::mem::take(&mut *samples.lock().unwrap()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}
