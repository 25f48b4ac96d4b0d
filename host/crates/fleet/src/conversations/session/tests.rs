use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, StatusCode};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::super::{ConversationMetrics, ConversationSettings, Owner};
use super::*;

/// An engine with slots, of which each has so many tokens.
#[derive(Debug)]
struct Engine {
    folder: PathBuf,
    slots: Mutex<BTreeMap<u32, u32>>,
    adapters: Mutex<Value>,
}

impl Engine {
    fn new(folder: &Path) -> Self {
        let adapters = Mutex::new(json!([]));
        Self { folder: folder.to_owned(), slots: Mutex::default(), adapters }
    }

    fn respond(&self, path: &str, body: Option<&str>) -> Option<Value> {
        match path {
            "/props" => return Some(json!({ "build_info": "b1", "total_slots": 2 })),
            "/lora-adapters" => return Some(self.adapters.lock().clone()),
            _ => {}
        }
        let (slot, action) = path.strip_prefix("/slots/")?.split_once("?action=")?;
        let slot: u32 = slot.parse().ok()?;
        let body: Value = serde_json::from_str(body?).ok()?;
        let file = self.folder.join(body["filename"].as_str()?);
        if action == "save" {
            let tokens = *self.slots.lock().get(&slot)?;
            std::fs::write(&file, tokens.to_string()).ok()?;
            let bytes = tokens.to_string().len();
            return Some(json!({ "n_saved": tokens, "n_written": bytes }));
        }
        let tokens: u32 = std::fs::read_to_string(file).ok()?.parse().ok()?;
        self.slots.lock().insert(slot, tokens);
        Some(json!({ "n_restored": tokens }))
    }
}

impl EngineCalls for Engine {
    async fn call(
        &self,
        _: Method,
        path: &str,
        body: Option<&str>,
        _: Duration,
    ) -> Option<(StatusCode, Bytes)> {
        Some(match self.respond(path, body) {
            Some(response) => (StatusCode::OK, response.to_string().into()),
            None => (StatusCode::BAD_REQUEST, Bytes::new()),
        })
    }
}

fn prompt(tenant: &str, blocks: &[u64]) -> ConversationPrompt {
    let owner = Owner { tenant: Some(tenant.into()), key: None };
    ConversationPrompt { owner, blocks: blocks.into() }
}

struct Setup {
    _dir: tempfile::TempDir,
    store: Conversations,
    folder: PathBuf,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = ConversationMetrics::register(&mut Registry::default());
        let settings = Some(ConversationSettings::default());
        let store = Conversations::open(settings, Some(dir.path()), metrics);
        let folder = store.0.folder.as_ref().unwrap().create_lane("a").unwrap();
        Self { _dir: dir, store, folder }
    }

    async fn start(&self) -> (Arc<Session>, Engine) {
        let (session, engine) = (self.store.session("a", 4), Engine::new(&self.folder));
        session.begin(&engine, "launch").await;
        (session, engine)
    }
}

/// Serves a request with so many tokens in its prompt. Returns the slot, and the tokens that are
/// expected in the cache.
async fn serve(
    session: &Arc<Session>,
    engine: &Engine,
    prompt: ConversationPrompt,
    tokens: u32,
) -> (u32, Option<u32>) {
    let mut placed = session.place(engine, prompt).await.unwrap();
    let (slot, expected) = (placed.slot(), placed.expected);
    engine.slots.lock().insert(slot, tokens + 9);
    placed.report_usage(tokens, Some(tokens / 2), 10);
    (slot, expected)
}

#[tokio::test]
async fn conversation_goes_from_one_engine_to_the_next() {
    let setup = Setup::new();
    let (first, engine) = setup.start().await;
    let (slot, expected) = serve(&first, &engine, prompt("t", &[1, 2]), 1000).await;
    assert_eq!((slot, expected), (0, None));
    // The engine says that it has two slots, and not four.
    let second = first.place(&engine, prompt("t", &[7])).await.unwrap();
    let third = first.place(&engine, prompt("t", &[8])).await.unwrap();
    assert!(first.place(&engine, prompt("t", &[9])).await.is_none());
    drop((second, third));
    serve(&first, &engine, prompt("t", &[1, 2]), 1000).await;
    first.save_all(&engine).await;
    assert_eq!(setup.store.status("a").unwrap().files, 1);
    let (second, engine) = setup.start().await;
    let (_, expected) = serve(&second, &engine, prompt("t", &[1, 2, 3]), 1200).await;
    assert_eq!(expected, Some(1000));
    // Later turns find it in the slot, and other tenants do not find it at all.
    let (_, expected) = serve(&second, &engine, prompt("t", &[1, 2, 3, 4]), 1400).await;
    assert_eq!(expected, None);
    let (_, expected) = serve(&second, &engine, prompt("u", &[1, 2, 3]), 1200).await;
    assert_eq!(expected, None);
}

#[tokio::test]
async fn slot_with_something_else_is_not_kept() {
    let setup = Setup::new();
    let (session, engine) = setup.start().await;
    let (slot, _) = serve(&session, &engine, prompt("t", &[1, 2]), 1000).await;
    // A request that the host did not place.
    engine.slots.lock().insert(slot, 400);
    session.save_all(&engine).await;
    assert_eq!(setup.store.status("a").unwrap().files, 0);
    assert_eq!(std::fs::read_dir(&setup.folder).unwrap().count(), 0);
}

#[tokio::test]
async fn engine_whose_adapters_were_changed_saves_nothing() {
    let setup = Setup::new();
    let (session, engine) = (setup.store.session("a", 1), Engine::new(&setup.folder));
    *engine.adapters.lock() = json!([{ "id": 0, "scale": 1.0 }]);
    session.begin(&engine, "launch").await;
    serve(&session, &engine, prompt("t", &[1]), 1000).await;
    *engine.adapters.lock() = json!([{ "id": 0, "scale": 0.5 }]);
    session.save_all(&engine).await;
    assert_eq!(setup.store.status("a").unwrap().files, 0);
}

#[tokio::test]
async fn erased_conversations_are_gone_wherever_they_are() {
    let setup = Setup::new();
    let (session, engine) = setup.start().await;
    serve(&session, &engine, prompt("t", &[1]), 1000).await;
    session.save_all(&engine).await;
    // One is in a file, one in a slot, and one in a request.
    serve(&session, &engine, prompt("t", &[2]), 1000).await;
    let mut placed = session.place(&engine, prompt("t", &[3])).await.unwrap();
    assert_eq!(setup.store.erase(Some("t"), None).files, 1);
    placed.report_usage(1000, None, 10);
    drop(placed);
    session.save_all(&engine).await;
    assert_eq!(setup.store.status("a").unwrap().files, 0);
    // A request after that is kept again.
    serve(&session, &engine, prompt("t", &[2]), 1000).await;
    session.save_all(&engine).await;
    assert_eq!(setup.store.status("a").unwrap().files, 1);
}

#[tokio::test]
async fn slot_is_freed_when_its_request_is_dropped() {
    let setup = Setup::new();
    let (session, engine) = setup.start().await;
    for _ in 0..5 {
        drop(session.place(&engine, prompt("t", &[1])).await.unwrap());
    }
    // Without the engine's report, nothing is worth saving.
    session.save_all(&engine).await;
    assert_eq!(setup.store.status("a").unwrap().files, 0);
}
