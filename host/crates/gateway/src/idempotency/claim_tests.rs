//! Two hosts that get requests with the same keys, over a store in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use pointsman_access::{Identity, Rights};
use pointsman_openai::ErrorForm;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::claim::MAX_SHARED;
use super::reader::REPLAYED;
use super::{Begun, Fingerprint, Idempotency};
use crate::error::RouteError;
use crate::settings::IdempotencySettings;
use crate::shared_store::{SharedCall, SharedHosts, SharedStore, StoreAway};

#[derive(Debug, Default)]
struct MemoryStore {
    values: Mutex<HashMap<String, (Vec<u8>, Instant)>>,
    is_away: AtomicBool,
}

impl MemoryStore {
    fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut HashMap<String, (Vec<u8>, Instant)>) -> T,
    ) -> SharedCall<'_, T> {
        let mut values = self.values.lock();
        values.retain(|_, (_, end)| *end > Instant::now());
        let result = match self.is_away.load(Ordering::Relaxed) {
            true => Err(StoreAway),
            false => Ok(call(&mut values)),
        };
        Box::pin(std::future::ready(result))
    }
}

impl SharedStore for MemoryStore {
    fn claim<'a>(
        &'a self,
        key: &'a str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> SharedCall<'a, Option<Vec<u8>>> {
        self.call(|values| {
            let found = values.get(key).map(|(value, _)| value.clone());
            if found.is_none() {
                values.insert(key.to_owned(), (value, Instant::now() + ttl));
            }
            found
        })
    }

    fn replace<'a>(
        &'a self,
        key: &'a str,
        old: Vec<u8>,
        new: Option<(Vec<u8>, Duration)>,
    ) -> SharedCall<'a, bool> {
        self.call(|values| {
            let is_old = values.get(key).is_some_and(|(value, _)| *value == old);
            if is_old {
                match new {
                    Some((new, ttl)) => values.insert(key.to_owned(), (new, Instant::now() + ttl)),
                    None => values.remove(key),
                };
            }
            is_old
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> SharedCall<'a, Option<Vec<u8>>> {
        self.call(|values| values.get(key).map(|(value, _)| value.clone()))
    }
}

/// Two hosts, and how many requests they have executed.
struct Hosts {
    store: Arc<MemoryStore>,
    hosts: [Idempotency; 2],
    executed: Arc<AtomicUsize>,
}

impl Hosts {
    fn new() -> Self {
        let store = Arc::<MemoryStore>::default();
        let hosts = ["a", "b"].map(|host| {
            let store: Arc<dyn SharedStore> = store.clone();
            let idempotency =
                Idempotency::new(&IdempotencySettings::default(), CancellationToken::new());
            idempotency.shared_with(Some(SharedHosts { store, host: host.into() }))
        });
        Self { store, hosts, executed: Arc::default() }
    }

    /// Sends a request to a host: executed, it takes two seconds and has this response.
    async fn send(&self, host: usize, content: u8, response: (u16, &str)) -> Response {
        self.send_as(host, content, response, Rights::default()).await
    }

    async fn send_as(
        &self,
        host: usize,
        content: u8,
        (status, body): (u16, &str),
        rights: Rights,
    ) -> Response {
        let fingerprint = Fingerprint { key: [1; 32], content: [content; 32], guards: 0 };
        let identity = Arc::new(Identity { rights, ..Identity::default() });
        let first = match self.hosts[host].begin(fingerprint, &identity) {
            Ok(Begun::First(first)) => first,
            Ok(Begun::Joined(joined)) => return joined.response().await,
            Ok(Begun::Untracked) => panic!("untracked"),
            Err(error) => return error.into_untracked_response(ErrorForm::OpenAi),
        };
        let (body, executed) = (body.to_owned(), Arc::clone(&self.executed));
        let work = move |error: Option<RouteError>| async move {
            if let Some(error) = error {
                return error.into_untracked_response(ErrorForm::OpenAi);
            }
            executed.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_secs(2)).await;
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        };
        self.hosts[host].run(first, work).await
    }

    fn executed(&self) -> usize {
        self.executed.load(Ordering::Relaxed)
    }
}

async fn body(response: Response) -> (u16, bool, String) {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let is_replay = parts.headers.contains_key(REPLAYED);
    (parts.status.as_u16(), is_replay, String::from_utf8(bytes.to_vec()).unwrap())
}

fn code(body: &str) -> String {
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_host_executes_and_the_other_replays() {
    let hosts = Hosts::new();
    let (one, other) =
        tokio::join!(hosts.send(0, 0, (200, "one")), hosts.send(1, 0, (200, "other")));
    let (one, other) = (body(one).await, body(other).await);
    // Either of them may be the first.
    assert_eq!((one.0, &one.2), (other.0, &other.2));
    assert_ne!(one.1, other.1, "one is a replay");
    assert_eq!(hosts.executed(), 1);
    let again = body(hosts.send(1, 0, (200, "again")).await).await;
    assert_eq!(again.2, one.2);
    let other_body = body(hosts.send(0, 9, (200, "x")).await).await;
    assert_eq!((other_body.0, &*code(&other_body.2)), (422, "idempotency_key_reused"));
    assert_eq!(hosts.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_body_is_refused_at_the_other_host() {
    let hosts = Hosts::new();
    body(hosts.send(0, 0, (200, "one")).await).await;
    let (status, _, text) = body(hosts.send(1, 1, (200, "other")).await).await;
    assert_eq!((status, &*code(&text)), (422, "idempotency_key_reused"));
}

#[tokio::test(start_paused = true)]
async fn without_the_store_each_host_is_alone() {
    let hosts = Hosts::new();
    hosts.store.is_away.store(true, Ordering::Relaxed);
    for host in 0..2 {
        assert_eq!(body(hosts.send(host, 0, (200, "x")).await).await.0, 200);
    }
    assert_eq!(hosts.executed(), 2);
    // The store that is away when an execution ends does not keep its claim.
    let hosts = Hosts::new();
    let first = hosts.send(0, 0, (200, "one"));
    let away = async {
        sleep(Duration::from_secs(1)).await;
        hosts.store.is_away.store(true, Ordering::Relaxed);
    };
    assert_eq!(body(tokio::join!(first, away).0).await.2, "one");
    hosts.store.is_away.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(body(hosts.send(1, 0, (200, "other")).await).await.2, "other");
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_a_killed_host_ends() {
    let hosts = Hosts::new();
    let claim = async {
        // What a host leaves that is killed.
        let first = hosts.send(0, 0, (200, "never"));
        tokio::time::timeout(Duration::from_secs(1), first).await.unwrap_err();
        hosts.store.values.lock().values().next().cloned().unwrap()
    };
    let (left, _) = claim.await;
    // The grace time of the client that left is over.
    sleep(Duration::from_secs(30)).await;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(15);
    let key = format!("once/{}", "01".repeat(32));
    hosts.store.values.lock().insert(key, (left, end));
    let (status, _, text) = body(hosts.send(1, 0, (200, "b")).await).await;
    assert_eq!((status, &*code(&text)), (409, "idempotency_key_elsewhere"));
    assert!(text.contains("`a`") && begun.elapsed() < Duration::from_secs(12), "{text}");
    assert_eq!(body(hosts.send(1, 0, (200, "b")).await).await.2, "b");
    assert!(Instant::now() >= end);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_shared_is_refused_or_executed() {
    // Too long to be shared.
    let hosts = Hosts::new();
    let long = "x".repeat(MAX_SHARED + 1);
    body(hosts.send(0, 0, (200, &long)).await).await;
    let (status, _, text) = body(hosts.send(1, 0, (200, "b")).await).await;
    assert_eq!((status, &*code(&text)), (409, "idempotency_key_elsewhere"));
    // An error that a retry may cure.
    let hosts = Hosts::new();
    body(hosts.send(0, 0, (503, "")).await).await;
    assert_eq!(body(hosts.send(1, 0, (200, "b")).await).await.2, "b");
    // Other rights.
    let hosts = Hosts::new();
    body(hosts.send(0, 0, (200, "a")).await).await;
    let rights = Rights { models: Some(vec!["small".to_owned()]), ..Rights::default() };
    assert_eq!(body(hosts.send_as(1, 0, (200, "b"), rights).await).await.2, "b");
}
