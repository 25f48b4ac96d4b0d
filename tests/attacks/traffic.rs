//! Traffic of honest clients and of attackers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pointsman_tests::attack::{RawClient, idle_connections, request_head};
use pointsman_tests::client::{chat, open};
use pointsman_tests::pause;
use serde_json::json;

use crate::CHAT;

/// An address that no engine may see.
pub(crate) const ADDRESS: &str = "jane.doe@example.com";
/// The time between two requests of an honest client, and for which attackers hold what they have.
const PAUSE: Duration = Duration::from_millis(20);
const HOLD: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(10);

/// What honest clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Honest {
    /// Durations of requests in microseconds.
    pub(crate) latencies: Vec<u64>,
    /// Requests that were refused, broke off, or got another response than the engine's.
    pub(crate) lost: u64,
}

impl Honest {
    pub(crate) fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.lost += other.lost;
    }

    /// Returns the 99th percentile of the latencies.
    pub(crate) fn p99(&mut self) -> Duration {
        self.latencies.sort_unstable();
        let index = self.latencies.len() * 99 / 100;
        Duration::from_micros(self.latencies.get(index).copied().unwrap_or(0))
    }
}

/// Sends requests with the key of a tenant until `stop` is set.
pub(crate) fn honest_client(port: u16, key: &str, stop: &AtomicBool) -> Honest {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let mut seen = Honest::default();
    for round in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let is_stream = round.is_multiple_of(2);
        let body = json!({ "model": "main", "stream": is_stream, "messages": [
            { "role": "user", "content": format!("write to {ADDRESS}") },
        ]});
        let start = Instant::now();
        let response = open(port, "POST", CHAT, &headers, body.to_string().as_bytes());
        let (response, complete) = response.finish();
        let text = response.text();
        let is_whole = complete && text.contains("good") && (!is_stream || text.contains("[DONE]"));
        if response.status != 200 || !is_whole {
            println!("lost: {} {text:.200}", response.status);
            seen.lost += 1;
        }
        seen.latencies.push(start.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
        pause(PAUSE);
    }
    seen
}

/// An attack: its name, and one round of it. It gets the port and the key of the attacker.
pub(crate) type Attack = (&'static str, fn(u16, &str));

/// The worst attacks that were found on a release.
pub(crate) const ATTACKS: [Attack; 10] = [
    ("clients that do not read", |port, key| {
        let body = chat("endless", json!({ "stream": true })).to_string();
        let clients: Vec<_> = (0..4).map(|_| send(small_window(port), key, &body)).collect();
        pause(HOLD);
        drop(clients);
    }),
    ("large bodies", |port, key| {
        let text = "x".repeat(31 << 20);
        finish(send(client(port), key, &chat(&text, json!({})).to_string()));
    }),
    ("stalled uploads", |port, key| {
        let clients: Vec<_> = (0..4)
            .filter_map(|_| {
                let mut client = client(port)?;
                client.send(request_head(CHAT, 32 << 20, &authorization(key)));
                client.send(vec![b' '; 1 << 20]);
                Some(client)
            })
            .collect();
        pause(HOLD);
        drop(clients);
    }),
    ("idle connections", |port, _| {
        let connections = idle_connections(port, 500);
        pause(HOLD);
        drop(connections);
    }),
    ("queue flood", |port, key| {
        let body = chat("main", json!({})).to_string();
        let clients: Vec<_> = (0..80).map(|_| send(client(port), key, &body)).collect();
        clients.into_iter().for_each(finish);
        pause(PAUSE);
    }),
    ("long conversations", |port, key| {
        let mut messages = vec![json!({ "role": "user", "content": "abcd" }); 2000];
        messages.push(json!({ "role": "user", "content": ADDRESS }));
        let body = json!({ "model": "main", "messages": messages }).to_string();
        finish(send(client(port), key, &body));
        pause(PAUSE);
    }),
    ("error flood", |port, key| {
        for _ in 0..50 {
            let body = chat("unknown\n2031-01-01 ERROR forged", json!({})).to_string();
            finish(send(client(port), key, &body));
        }
        pause(PAUSE);
    }),
    ("stream of comments", |port, key| {
        let body = chat("comments", json!({ "stream": true })).to_string();
        let clients: Vec<_> = (0..4).map(|_| send(client(port), key, &body)).collect();
        pause(HOLD);
        drop(clients);
    }),
    ("many parts", |port, key| {
        let parts = vec![json!({}); 100_001];
        let body = json!({ "model": "main", "messages": [{ "role": "user", "content": parts }] });
        finish(send(client(port), key, &body.to_string()));
        pause(PAUSE);
    }),
    ("header flood", |port, _| {
        let Some(mut client) = client(port) else { return };
        client.send("GET /v1/models HTTP/1.1\r\nhost: localhost\r\n");
        let line = format!("x-flood: {}\r\n", "x".repeat(8 << 10));
        for _ in 0..200 {
            if !client.send(&line) {
                break;
            }
        }
        pause(PAUSE);
    }),
];

/// Repeats an attack until `stop` is set; returns the number of rounds.
pub(crate) fn attacker(
    attack: fn(u16, &str),
    port: u16,
    key: &str,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) {
    while !stop.load(Ordering::Relaxed) {
        attack(port, key);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

fn authorization(key: &str) -> String {
    format!("authorization: Bearer {key}\r\nconnection: close\r\n")
}

fn client(port: u16) -> Option<RawClient> {
    RawClient::try_connect(port, SOON)
}

fn small_window(port: u16) -> Option<RawClient> {
    Some(RawClient::with_small_window(port))
}

/// Sends a whole request. A host that refuses connections or closes them is right.
fn send(client: Option<RawClient>, key: &str, body: &str) -> Option<RawClient> {
    let mut client = client?;
    client.send(request_head(CHAT, body.len(), &authorization(key)));
    client.send(body);
    Some(client)
}

fn finish(client: Option<RawClient>) {
    if let Some(mut client) = client {
        client.read_to_end(SOON);
    }
}
