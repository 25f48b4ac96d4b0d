use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};

use super::keys::on_key;
use super::model::View;
use super::*;

fn state() -> Value {
    json!({
        "version": "1.2.3",
        "lanes": [
            { "name": "small", "state": "ready", "running": 1, "slots": 4, "queued": 0,
              "memory": { "need_bytes": 3_u64 << 30 }, "manual": null },
            { "name": "lar\u{1b}[2Jge", "state": "starting", "running": 0, "slots": 2,
              "queued": 3, "progress": "loading weights 40 %", "manual": null },
            { "name": "far", "state": "degraded", "running": 0, "slots": 8, "queued": 0,
              "manual": null,
              "host": { "url": "http://10.0.0.2:8080", "name": "gpu-2", "lane": "big",
                        "liveness": "degraded", "last_event_unix_ms": 1, "error": "peer_silent",
                        "there": { "state": "ready", "running": 3, "slots": 4, "queued": 5 } } },
        ],
        "fleet_readers": [{ "name": "edge\u{1b}", "since_unix_ms": 1 }],
        "shared_state": { "state": "down", "since_unix_ms": 1, "pending": 42, "dropped": 0,
                          "replicas": null, "expected_replicas": 3,
                          "identity_copied": { "other": "gpu-3", "is_renewed": true,
                                               "at_unix_ms": 1 } },
        "groups": [{ "name": "gpu", "reserved_bytes": 3_u64 << 30, "budget_bytes": 24_u64 << 30,
                     "lanes": ["small"] }],
        "requests": [
            { "id": "r1", "state": "responding", "lane": "small", "model": "m", "tokens": 7 },
            { "id": "r2", "state": "queued", "position": 1, "lane": "large", "model": "n",
              "why": "the lane to be loaded" },
        ],
        "policies": [{ "name": "cortex", "state": "active", "version": "1 (ab)", "calls": 5,
                       "faults": 0, "candidate": { "version": "2 (cd)", "mode": "shadow" } }],
    })
}

fn model() -> Model {
    let mut model = Model::default();
    model.apply(Update::State(state()));
    let row = json!({ "id": "d1", "outcome": "served", "reason": "score", "duration_ms": 61_500 });
    model.apply(Update::Decision(row));
    let fields = json!({ "lane": "small" });
    model.apply(Update::Log(json!({ "level": "WARN", "message": "slow", "fields": fields })));
    model
}

fn press(model: &mut Model, code: KeyCode) -> Option<Command> {
    on_key(model, KeyEvent::new(code, KeyModifiers::NONE))
}

fn drawn(model: &Model) -> String {
    frame_text(model, (120, 24)).unwrap()
}

#[test]
fn each_view_shows_its_rows() {
    let mut model = model();
    for (key, expected) in [
        (
            '1',
            &["small", "1/4", "3.0 GiB", "3.0 GiB of 24.0 GiB", "loading weights 40 %", "at gpu-2"]
                [..],
        ),
        ('2', &["queued 1", "the lane to be loaded", "responding", "r2"]),
        ('3', &["served", "score", "1 min 1 s", "d1"]),
        ('4', &["cortex", "active", "2 (cd) (shadow)"]),
        ('5', &["WARN slow lane=small"]),
        (
            '6',
            &[
                "`big` of gpu-2",
                "3 of 4 slots",
                "reader",
                "edge",
                "42 changes",
                "? of 3 hosts",
                "gpu-3",
            ],
        ),
    ] {
        assert_eq!(press(&mut model, KeyCode::Char(key)), None);
        let text = drawn(&model);
        for part in expected {
            assert!(text.contains(part), "{key}: {part}\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    let empty = frame_text(&Model::default(), (20, 6)).unwrap();
    assert!(empty.starts_with("Pointsman"), "{empty}");
}

#[test]
fn commands_are_sent_after_a_confirmation() {
    let mut model = model();
    let send = |method, path: &str, label: &str| {
        Some(Command::Send { method, path: path.to_owned(), label: label.to_owned() })
    };
    assert_eq!(press(&mut model, KeyCode::Char('u')), None);
    assert!(drawn(&model).contains("unload lane small? y"));
    assert_eq!(press(&mut model, KeyCode::Char('n')), None);
    assert!(model.question.is_none());
    press(&mut model, KeyCode::Char('h'));
    let expected =
        send(Method::POST, "/lanes/small/unload?wait=false&hold=true", "hold lane small");
    assert_eq!(press(&mut model, KeyCode::Char('y')), expected);
    // Requests that wait are first.
    model.show(View::Requests);
    press(&mut model, KeyCode::Char('c'));
    let expected = send(Method::DELETE, "/requests/r2", "cancel request r2");
    assert_eq!(press(&mut model, KeyCode::Enter), expected);
    press(&mut model, KeyCode::End);
    assert_eq!(model.selected, 1);
    model.show(View::Policies);
    press(&mut model, KeyCode::Char('p'));
    let expected = send(Method::POST, "/policies/cortex/promote", "promote policy cortex");
    assert_eq!(press(&mut model, KeyCode::Char('y')), expected);
    model.show(View::Log);
    press(&mut model, KeyCode::Char('u'));
    assert!(model.question.is_none());
}

#[test]
fn keys_quit_and_change_the_view() {
    let mut model = model();
    press(&mut model, KeyCode::BackTab);
    assert_eq!(model.view, View::Hosts);
    press(&mut model, KeyCode::Tab);
    assert_eq!(model.view, View::Lanes);
    model.select(9);
    assert_eq!(model.selected, 2);
    assert_eq!(press(&mut model, KeyCode::Char('q')), Some(Command::Quit));
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut model, KeyCode::Char('l'));
    assert_eq!(on_key(&mut model, interrupt), Some(Command::Quit), "even while it asks");
}

#[test]
fn connection_that_is_lost_is_shown_until_the_next_state() {
    let mut model = model();
    model.apply(Update::Failed(anyhow::anyhow!("gone")));
    assert!(drawn(&model).contains("not connected: gone"));
    model.apply(Update::State(state()));
    assert!(!drawn(&model).contains("not connected"));
}
