//! Clients that never stop asking.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::{chat, post};
use crate::wait_until;

/// What was decided about a request, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub status: u16,
    pub policy: String,
    pub lane: String,
    pub why: String,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    clients: Vec<JoinHandle<BTreeMap<Seen, u64>>>,
}

impl Load {
    /// So many clients, each of which asks for `model` again as soon as it has its answer.
    pub fn start(port: u16, clients: usize, model: &str) -> Self {
        let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |_| {
            let (stop, asked, model) = (Arc::clone(&stop), Arc::clone(&asked), model.to_owned());
            std::thread::spawn(move || {
                let mut seen = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    *seen.entry(ask(port, &model)).or_default() += 1;
                    asked.fetch_add(1, Ordering::Relaxed);
                    // The machine has to do what is tested, too.
                    std::thread::park_timeout(Duration::from_millis(2));
                }
                seen
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, asked, clients }
    }

    /// Requests so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Wait for so many requests more.
    pub fn more(&self, requests: u64) {
        let wanted = self.asked() + requests;
        wait_until("the clients ask", || self.asked() >= wanted);
    }

    /// Stop, and tell what was seen how often.
    pub fn end(self) -> BTreeMap<Seen, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for client in self.clients {
            for (seen, count) in client.join().expect("every request is answered") {
                *all.entry(seen).or_default() += count;
            }
        }
        all
    }
}

fn ask(port: u16, model: &str) -> Seen {
    let reply =
        post(port, "/v1/chat/completions", &chat(model, serde_json::json!({ "max_tokens": 1 })));
    let header = |name: &str| reply.header(name).unwrap_or_default().to_owned();
    Seen {
        status: reply.status,
        policy: header("x-pointsman-policy"),
        lane: header("x-pointsman-lane"),
        why: header("x-pointsman-reason"),
    }
}
