use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use pointsman_access::{Identity, Rights};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Begun, Failed, Fingerprint, First, HEADER, Idempotency};
use crate::error::RouteError;
use crate::settings::IdempotencySettings;

const SECOND: Duration = Duration::from_secs(1);

fn idempotency() -> Arc<Idempotency> {
    with_settings(IdempotencySettings::default())
}

fn with_settings(settings: IdempotencySettings) -> Arc<Idempotency> {
    Arc::new(Idempotency::new(&settings, CancellationToken::new()))
}

fn fingerprint(key: u8, content: u8) -> Fingerprint {
    Fingerprint { key: [key; 32], content: [content; 32], guards: 0 }
}

fn of_tenant(tenant: &str) -> Arc<Identity> {
    Arc::new(Identity { tenant: Some(tenant.to_owned()), ..Identity::default() })
}

fn first(idempotency: &Idempotency, key: u8) -> First {
    match idempotency.begin(fingerprint(key, 0), &Arc::default()) {
        Ok(Begun::First(first)) => first,
        Ok(Begun::Joined(_)) => panic!("joined"),
        Ok(Begun::Untracked) => panic!("untracked"),
        Err(error) => panic!("{error}"),
    }
}

async fn joined(idempotency: &Idempotency, key: u8) -> Response {
    match idempotency.begin(fingerprint(key, 0), &Arc::default()) {
        Ok(Begun::Joined(joined)) => joined.response().await,
        Ok(Begun::First(_) | Begun::Untracked) => panic!("not joined"),
        Err(error) => panic!("{error}"),
    }
}

/// Returns a response with this body, of which each chunk takes a second.
fn chunks(status: u16, chunks: Vec<Bytes>) -> Response {
    let chunks = futures_util::stream::iter(chunks).then(|chunk| async move {
        sleep(SECOND).await;
        Ok::<_, Infallible>(chunk)
    });
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = status.try_into().unwrap();
    response
}

async fn whole(response: Response) -> Vec<u8> {
    response.into_body().collect().await.unwrap().to_bytes().to_vec()
}

#[test]
fn keys_are_visible_ascii() {
    let idempotency = idempotency();
    let key = |values: &[&[u8]]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, http::HeaderValue::from_bytes(value).unwrap());
        }
        match idempotency.key(&headers) {
            Ok(key) => Ok(key.map(str::to_owned)),
            Err(RouteError::IdempotencyKey) => Err(()),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(key(&[]), Ok(None));
    assert_eq!(key(&[b"stainless-node-retry-1"]), Ok(Some("stainless-node-retry-1".into())));
    assert_eq!(key(&[&[b'k'; 255]]), Ok(Some("k".repeat(255))));
    for invalid in [&[b'k'; 256][..], b"", b"a b", b"\xc3\xa4", b"a\tb"] {
        assert_eq!(key(&[invalid]), Err(()), "{invalid:?}");
    }
    assert_eq!(key(&[b"a", b"b"]), Err(()));
}

#[tokio::test(start_paused = true)]
async fn retry_gets_the_response_of_its_original() {
    let idempotency = idempotency();
    let work = async { chunks(200, vec!["one ".into(), "two".into()]) };
    let mut response = idempotency.run(first(&idempotency, 1), |_| work).await;
    assert!(!response.headers().contains_key("idempotent-replayed"));
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "one ");
    // Of a request that runs, of one that has ended, and with another body.
    let running = joined(&idempotency, 1).await;
    assert_eq!(running.headers()["idempotent-replayed"], "true");
    assert_eq!(whole(running).await, b"one two");
    assert_eq!(whole(response).await, b"two");
    sleep(500 * SECOND).await;
    assert_eq!(whole(joined(&idempotency, 1).await).await, b"one two");
    let reused = idempotency.begin(fingerprint(1, 7), &Arc::default());
    assert!(matches!(reused, Err(RouteError::IdempotencyKeyReused)));
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_kept() {
    let idempotency = idempotency();
    for (key, (status, flag, is_kept)) in (0..).zip([
        (200, false, true),
        (400, false, true),
        (200, true, false),
        (404, false, false),
        (409, false, false),
        (429, false, false),
        (502, false, false),
    ]) {
        let first = first(&idempotency, key);
        first.failed.store(flag, Ordering::Relaxed);
        let work = async move { chunks(status, vec!["text".into()]) };
        assert_eq!(whole(idempotency.run(first, |_| work).await).await, b"text");
        sleep(SECOND).await;
        let again = idempotency.begin(fingerprint(key, 0), &Arc::default()).unwrap();
        assert_eq!(matches!(again, Begun::Joined(_)), is_kept, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn request_without_clients_ends_after_the_grace_time() {
    let idempotency = idempotency();
    let work = || async { chunks(200, vec![Bytes::from_static(b"x"); 60]) };
    let response = idempotency
        .run(first(&idempotency, 1), {
            let work = work();
            |_| work
        })
        .await;
    drop(response);
    sleep(9 * SECOND).await;
    // A retry within the grace time keeps it alive, and has all of it from the beginning.
    let retry = joined(&idempotency, 1).await;
    sleep(20 * SECOND).await;
    drop(retry);
    assert_eq!(idempotency.table.entries(), (1, 0));
    sleep(9 * SECOND).await;
    assert_eq!(idempotency.table.entries(), (1, 0));
    sleep(2 * SECOND).await;
    assert_eq!(idempotency.table.entries(), (0, 0));
    assert_eq!(idempotency.table.running_bytes(), 0);
    // If the host stops, nothing goes on without a client.
    let response = idempotency
        .run(first(&idempotency, 2), {
            let work = work();
            |_| work
        })
        .await;
    drop(response);
    idempotency.stop.cancel();
    sleep(SECOND).await;
    assert_eq!(idempotency.table.entries(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn long_response_cannot_be_joined() {
    let idempotency = idempotency();
    let chunk = Bytes::from(vec![b'x'; 1 << 20]);
    let work = {
        let chunk = chunk.clone();
        move || async move { chunks(200, vec![chunk; 8]) }
    };
    let original = idempotency
        .run(first(&idempotency, 1), {
            let work = (work.clone())();
            |_| work
        })
        .await;
    let slow = joined(&idempotency, 1).await;
    let mut body = original.into_body();
    // One client takes all that arrives, and does not wait for the other one.
    for _ in 0..7 {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 1 << 20);
    }
    let in_use = idempotency.begin(fingerprint(1, 0), &Arc::default());
    assert!(matches!(in_use, Err(RouteError::IdempotencyKeyInUse)));
    assert!(slow.into_body().collect().await.is_err(), "too far behind");
    // After its client has left, a retry begins anew.
    drop(body);
    let again = idempotency
        .run(first(&idempotency, 1), {
            let work = work();
            |_| work
        })
        .await;
    assert_eq!(whole(again).await.len(), 8 << 20);
    sleep(20 * SECOND).await;
    assert_eq!(idempotency.table.entries(), (0, 0));
    assert_eq!(idempotency.table.running_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_tenant_cannot_fill_the_table() {
    let settings = IdempotencySettings { memory: 64 << 10, ..IdempotencySettings::default() };
    let idempotency = with_settings(settings);
    let run = async |key: u8, tenant: &str| {
        let begun = idempotency.begin(fingerprint(key, 0), &of_tenant(tenant)).unwrap();
        let Begun::First(first) = begun else { panic!("joined") };
        let work = async { chunks(200, vec![Bytes::from(vec![b'x'; 3 << 10])]) };
        whole(idempotency.run(first, |_| work).await).await;
        sleep(SECOND).await;
    };
    run(0, "quiet").await;
    for key in 1..100 {
        run(key, "noisy").await;
    }
    let is_kept = |key: u8, tenant| {
        let begun = idempotency.begin(fingerprint(key, 0), &of_tenant(tenant)).unwrap();
        matches!(begun, Begun::Joined(_))
    };
    assert!(is_kept(0, "quiet") && is_kept(99, "noisy") && !is_kept(1, "noisy"));
    let (_, kept) = idempotency.table.entries();
    assert!(kept <= 6, "{kept} of 5 KiB in 32 KiB");
}

/// A generator of random numbers, whose seed is printed.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What is known of all executions of one key.
#[derive(Default)]
struct Known {
    started: usize,
    failed: usize,
    running: usize,
}

type AllKnown = Arc<Mutex<HashMap<u8, Known>>>;

/// One execution: it fails, unless its whole response was taken.
struct Running {
    known: AllKnown,
    key: u8,
    is_good: bool,
}

impl Running {
    fn new(known: &AllKnown, key: u8) -> Self {
        let mut all = known.lock();
        let entry = all.entry(key).or_default();
        entry.started += 1;
        entry.running += 1;
        Self { known: Arc::clone(known), key, is_good: false }
    }

    /// Notes that the whole response was taken.
    fn set_good(&mut self) {
        self.is_good = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut all = self.known.lock();
        let known = all.get_mut(&self.key).unwrap();
        known.running -= 1;
        known.failed += usize::from(!self.is_good);
    }
}

/// The text of the response to requests with this key.
fn text(key: u8) -> Vec<u8> {
    (0..2000u32 + u32::from(key))
        .map(|at| (at.wrapping_mul(u32::from(key) + 7) >> 3) as u8)
        .collect()
}

/// Executes a request in a random way: as a whole, with an error, or cut off.
async fn execute(known: AllKnown, key: u8, failed: Failed, mut random: Random) -> Response {
    let running = Running::new(&known, key);
    sleep(Duration::from_millis(random.below(3000))).await;
    if random.below(6) == 0 {
        let mut response = Response::new(Body::from("busy"));
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        return response;
    }
    let cut = match random.below(4) {
        0 => random.below(2000) as usize,
        _ => usize::MAX,
    };
    let state = (0, running, random, failed);
    let body = futures_util::stream::unfold(
        state,
        move |(at, mut running, mut random, failed)| async move {
            sleep(Duration::from_millis(random.below(400))).await;
            let text = text(key);
            if at >= text.len() {
                running.set_good();
                return None;
            }
            if at >= cut {
                failed.store(true, Ordering::Relaxed);
                return Some((Err(std::io::Error::other("cut")), (at, running, random, failed)));
            }
            let end = text.len().min(at + 1 + random.below(300) as usize);
            let data = Bytes::copy_from_slice(&text[at..end]);
            Some((Ok(data), (end, running, random, failed)))
        },
    );
    Response::new(Body::from_stream(body))
}

/// Sends one request, reads at a random pace, and may leave at any time.
async fn client(idempotency: Arc<Idempotency>, known: AllKnown, key: u8, mut random: Random) {
    sleep(Duration::from_millis(random.below(20_000))).await;
    let leaves_after = match random.below(2) {
        0 => Duration::from_millis(random.below(10_000)),
        _ => Duration::from_secs(3600),
    };
    let begun = idempotency.begin(fingerprint(key, key), &Arc::default()).unwrap();
    let reading = async {
        let response = match begun {
            Begun::First(first) => {
                let failed = Arc::clone(&first.failed);
                let work = execute(known, key, failed, random.clone());
                idempotency.run(first, |_| work).await
            }
            Begun::Joined(joined) => joined.response().await,
            Begun::Untracked => panic!("the table is not full"),
        };
        let expected = if response.status() == 200 { text(key) } else { b"busy".to_vec() };
        let mut body = response.into_body();
        let mut got = Vec::new();
        let is_whole = loop {
            match body.frame().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => got.extend_from_slice(&frame.into_data().unwrap()),
            }
            assert!(expected.starts_with(&got), "key {key}: not the bytes of the response");
            sleep(Duration::from_millis(random.below(200))).await;
        };
        assert!(!is_whole || got == expected, "key {key}: incomplete");
    };
    tokio::time::timeout(leaves_after, reading).await.ok();
}

/// Random clients, retries, departures and failures: every reader gets a prefix of the same bytes,
/// complete ones all of them, a key is executed again only after a failure, and nothing is left.
#[tokio::test(start_paused = true)]
async fn random_clients_get_the_same_bytes() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("POINTSMAN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(now) | 1;
    println!("POINTSMAN_SEED={seed}");
    let mut random = Random(seed);
    for _ in 0..60 {
        let idempotency = idempotency();
        let known = AllKnown::default();
        let mut clients = JoinSet::new();
        for _ in 0..40 {
            let key = random.below(8) as u8;
            let own = Random(random.below(u64::MAX) | 1);
            clients.spawn(client(Arc::clone(&idempotency), Arc::clone(&known), key, own));
        }
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        sleep(30 * SECOND).await;
        let (running, _) = idempotency.table.entries();
        assert_eq!((running, idempotency.table.running_bytes()), (0, 0), "seed {seed}");
        for (key, known) in known.lock().iter() {
            assert_eq!(known.running, 0, "key {key}, seed {seed}");
            let Known { started, failed, .. } = known;
            assert!(*started <= failed + 1, "key {key}: {started}, {failed}, seed {seed}");
        }
        assert!(idempotency.tasks.is_empty(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn key_with_fewer_rights_does_not_join() {
    let idempotency = idempotency();
    let with_models = |models: &[&str]| {
        let models = Some(models.iter().map(|name| (*name).to_owned()).collect());
        Arc::new(Identity { rights: Rights { models, ..Rights::default() }, ..Identity::default() })
    };
    let both = with_models(&["a", "b"]);
    let Ok(Begun::First(first)) = idempotency.begin(fingerprint(1, 0), &both) else {
        panic!("not the first one")
    };
    let response = idempotency.run(first, |_| async { chunks(200, vec!["x".into()]) }).await;
    let narrowed = || idempotency.begin(fingerprint(1, 0), &with_models(&["b"]));
    // While it runs, and when it is kept.
    assert!(matches!(narrowed(), Ok(Begun::Untracked)));
    assert_eq!(whole(response).await, b"x");
    sleep(SECOND).await;
    assert!(matches!(narrowed(), Ok(Begun::Untracked)));
    let joined = idempotency.begin(fingerprint(1, 0), &with_models(&["b", "a", "c"]));
    assert!(matches!(joined, Ok(Begun::Joined(_))));
}
