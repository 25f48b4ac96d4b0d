//! The console over HTTP: the page, sessions, every action, events, and `pointsman top`. What a
//! browser does with it is tested by `cargo xtask test --console`.

use std::process::{Command, Stdio};

use pointsman_tests::client::{Response, ResponseStream, chat, get, open, send};
use pointsman_tests::deployment::admin_port;
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use pointsman_xtask::sha256;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, lane};

const TOKEN: &str = "t0ken-0123456789";
const OWN: (&str, &str) = ("sec-fetch-site", "same-origin");
const JSON: (&str, &str) = ("content-type", "application/json");

/// A host and a session of its console.
struct Console {
    host: Host,
    /// The listener of the console, and the beginning of its paths.
    port: u16,
    base: &'static str,
    cookie: String,
    csrf: String,
}

impl Console {
    fn start(more: &str, base: &'static str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), more, base)
    }

    fn start_in(dir: TempDir, more: &str, base: &'static str) -> Self {
        let admin = "[admin]\nlisten = \"127.0.0.1:0\"\ntoken-env = \"ADMIN_TOKEN\"\n";
        let config = format!(
            "{more}\n[state]\ndir = \"state\"\norphan-grace = \"0s\"\n{admin}{}{}",
            lane("a", &["a"], &[]),
            lane("busy", &["busy"], &["--script", r#"{"hang": true}"#]),
        );
        let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[("ADMIN_TOKEN", TOKEN)])
            .wait_until_ready();
        let port = if base.is_empty() { admin_port(&host) } else { host.port };
        let mut console = Self { host, port, base, cookie: String::new(), csrf: String::new() };
        console.log_in();
        console
    }

    fn path(&self, path: &str) -> String {
        format!("{}/console{path}", self.base)
    }

    fn log_in(&mut self) {
        let body = json!({ "token": TOKEN, "operator": "ann" }).to_string();
        let path = self.path("/api/session");
        let response = send(self.port, "POST", &path, &[OWN, JSON], body.as_bytes());
        assert_eq!(response.status, 204, "{}", response.text());
        let cookie = response.header("set-cookie").unwrap();
        let attribute = format!("Path={}/console/api;", self.base);
        assert!(cookie.contains(&attribute) && cookie.contains("HttpOnly"), "{cookie}");
        self.cookie = cookie.split(';').next().unwrap().to_owned();
        let session = self.call("GET", "/api/session", "").json();
        self.csrf = session["csrf"].as_str().unwrap().to_owned();
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Response {
        let headers =
            [("cookie", self.cookie.as_str()), ("x-pointsman-csrf", &self.csrf), OWN, JSON];
        send(self.port, method, &self.path(path), &headers, body.as_bytes())
    }

    fn events(&self) -> ResponseStream {
        let headers = [("cookie", self.cookie.as_str())];
        let events = open(self.port, "GET", &self.path("/api/events"), &headers, b"");
        assert_eq!(events.status, 200);
        events
    }
}

/// Returns the data of all events of a kind.
fn of_kind(events: &ResponseStream, kind: &str) -> Vec<Value> {
    let text = String::from_utf8_lossy(&events.body);
    let begin = format!("event: {kind}\ndata: ");
    let data = text.split("\n\n").filter_map(|event| event.strip_prefix(begin.as_str()));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

/// Reads events until the last one of a kind meets a condition.
fn read_until(
    events: &mut ResponseStream,
    kind: &str,
    condition: impl Fn(&Value) -> bool,
) -> Value {
    loop {
        if let Some(found) = of_kind(events, kind).pop().filter(&condition) {
            return found;
        }
        assert!(events.read_chunk(), "the events have ended without a {kind}");
    }
}

fn lane_of(state: &Value, name: &str) -> Value {
    let lanes = state["lanes"].as_array().unwrap();
    lanes.iter().find(|lane| lane["name"] == name).unwrap().clone()
}

#[test]
fn lanes_and_requests_are_watched_and_commanded() {
    let console = Console::start("", "");
    let mut events = console.events();
    let state = read_until(&mut events, "state", |_| true);
    assert_eq!(lane_of(&state, "a")["state"], "ready");
    let slow = std::thread::scope(|scope| {
        let (port, body) = (console.host.port, chat("busy", json!({})).to_string());
        let headers = [JSON, ("x-request-id", "r-1")];
        let slow = scope
            .spawn(move || send(port, "POST", "/v1/chat/completions", &headers, body.as_bytes()));
        read_until(&mut events, "state", |state| state["requests"][0]["id"] == "r-1");
        let cancelled = console.call("DELETE", "/api/requests/r-1", "");
        assert_eq!(cancelled.json()["cancelled"], 1);
        slow.join().unwrap()
    });
    assert_eq!(slow.status, 410, "{}", slow.text());
    let unload = console.call("POST", "/api/lanes/a/unload?hold=true&wait=false", "");
    assert_eq!(unload.status, 200, "{}", unload.text());
    read_until(&mut events, "state", |state| {
        let lane = lane_of(state, "a");
        lane["manual"]["mode"] == "held" && lane["manual"]["by"] == "ann" && lane["pid"].is_null()
    });
    assert_eq!(console.call("POST", "/api/lanes/a/load", "").status, 200);
    read_until(&mut events, "state", |state| lane_of(state, "a")["state"] == "ready");
    let is_noted =
        |line: &Value| line["fields"]["event"] == "admin_action" && line["fields"]["by"] == "ann";
    while !of_kind(&events, "log").iter().any(is_noted) {
        assert!(events.read_chunk(), "the events have ended");
    }
    let changes = console.call("GET", "/api/lane-history", "").json();
    let of_a = |change: &&Value| change["lane"] == "a";
    let changes = changes["changes"].as_array().unwrap().iter().filter(of_a);
    let states: Vec<&str> = changes.map(|change| change["state"].as_str().unwrap()).collect();
    assert!(states.contains(&"down") && states.last() == Some(&"ready"), "{states:?}");
    assert_eq!(console.call("DELETE", "/api/session", "").status, 204);
    while events.read_chunk() {}
    assert!(events.complete, "the session has ended");
}

#[test]
fn actions_are_noted_and_outlive_the_host() {
    let console = Console::start("", "");
    assert_eq!(console.call("POST", "/api/lanes/a/drain", "").status, 200);
    assert_eq!(console.call("POST", "/api/lanes/a/drain?undo=true", "").status, 200);
    assert_eq!(console.call("POST", "/api/lanes/x/drain", "").status, 404);
    let foreign = [("cookie", console.cookie.as_str()), ("sec-fetch-site", "cross-site")];
    let refused = send(console.port, "POST", "/console/api/lanes/a/drain", &foreign, b"");
    assert_eq!(refused.error_code(), "cross_origin_refused");
    let list = |console: &Console| -> Vec<(String, String)> {
        let actions = console.call("GET", "/api/actions", "").json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let actions = actions["actions"].as_array().unwrap();
        actions.iter().map(|action| (text(&action["action"]), text(&action["result"]))).collect()
    };
    let expected = [
        ("POST /lanes/a/drain", "done"),
        ("POST /lanes/a/drain?undo=true", "done"),
        ("POST /lanes/x/drain", "refused"),
    ]
    .map(|(action, result)| (action.to_owned(), result.to_owned()));
    assert_eq!(list(&console), expected);
    let file = console.host.dir.path().join("state/actions.jsonl");
    wait_until("the actions are in the file", || {
        std::fs::read_to_string(&file).unwrap_or_default().lines().count() == expected.len()
    });
    let by_socket = console.host.get("/actions").json();
    assert_eq!(by_socket["actions"][0]["by"], "ann");
}

#[test]
fn console_on_the_listener_for_clients_needs_the_token_of_operators() {
    let more = "[console]\nclient-listener = true\n[server]\npath-prefix = \"/llm\"";
    let console = Console::start(more, "/llm");
    let page = send(console.port, "GET", "/llm/console/", &[], b"");
    assert!(page.status == 200 && page.text().contains("<title>Pointsman</title>"));
    assert_eq!(console.call("GET", "/api/lanes", "").json()["lanes"][0]["name"], "a");
    let with_cookie = [("cookie", console.cookie.as_str())];
    for path in ["/llm/lanes", "/llm/requests", "/console/", "/console/api/lanes"] {
        let response = send(console.port, "GET", path, &with_cookie, b"");
        assert_eq!(response.status, 404, "{path}");
    }
    let without = send(console.port, "GET", "/llm/console/api/lanes", &[], b"");
    assert_eq!(without.error_code(), "session_required");
    let off = get(admin_port(&console.host), "/console/");
    assert_eq!(off.status, 200, "on the admin listener, too");
}

const KEYS: &str = r#"
[[tenants]]
name = "acme"
limits = { tokens-per-minute = 100_000 }
[[groups]]
name = "staff"
shared-limits = { budget = [{ period = "day", requests = 10 }] }
"#;

/// Returns a key of the keys file. Its secret is the name with a beginning.
fn key(name: &str, more: &str) -> String {
    let hash = sha256(format!("pm_secret-of-{name}").as_bytes());
    format!("[[keys]]\nid = {name:?}\nhash = \"sha256:{hash}\"\ntenant = \"acme\"\n{more}\n")
}

#[test]
fn keys_are_listed_by_what_is_left_of_their_limits() {
    let dir = tempfile::tempdir().unwrap();
    let keys = [
        KEYS.to_owned(),
        key("unused", "group = \"staff\""),
        key("busy", "limits = { requests-per-minute = 1 }"),
    ];
    std::fs::write(dir.path().join("keys.toml"), keys.concat()).unwrap();
    let console = Console::start_in(dir, "[access]\nkeys = \"keys.toml\"", "");
    let mut events = console.events();
    let list = read_until(&mut events, "keys", |_| true);
    let names = |list: &Value| -> Vec<String> {
        let keys = list["keys"].as_array().unwrap();
        keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((names(&list), &list["total"]), (vec!["busy".into(), "unused".into()], &json!(2)));
    assert_eq!(list["keys"][0]["last_used_unix_ms"], Value::Null);
    let body = chat("a", json!({ "max_tokens": 5 })).to_string();
    let headers = [JSON, ("authorization", "Bearer pm_secret-of-busy")];
    let ask = || send(console.host.port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
    assert_eq!([ask().status, ask().status], [200, 429]);
    let list = read_until(&mut events, "keys", |list| list["keys"][0]["refused"] == 1);
    assert_eq!(names(&list), ["busy", "unused"]);
    let busy = &list["keys"][0];
    assert_eq!((&busy["requests"], &busy["nearest_permille"]), (&json!(2), &json!(1000)));
    assert!(busy["last_used_unix_ms"].as_u64() <= busy["last_refusal"]["unix_ms"].as_u64());
    assert_eq!(busy["last_refusal"]["limit"], "requests-per-minute");
    let limit = |key: &Value, account: &str, limit: &str| -> Value {
        let mut limits = key["limits"].as_array().unwrap().iter();
        let is_it = |found: &&Value| found["account"] == account && found["limit"] == limit;
        limits.find(is_it).unwrap().clone()
    };
    let of_key = limit(busy, "key", "requests-per-minute");
    assert_eq!([&of_key["max"], &of_key["used"], &of_key["left"]], [1, 1, 0]);
    let now = list["keys"][0]["last_used_unix_ms"].as_u64().unwrap();
    let resets = of_key["resets_unix_ms"].as_u64().unwrap();
    assert!((now + 55_000..now + 65_000).contains(&resets), "{resets} after {now}");
    let unused = &list["keys"][1];
    let of_tenant = limit(unused, "tenant", "tokens-per-minute");
    assert!(of_tenant["used"].as_u64().unwrap() > 0, "it is shared: {of_tenant}");
    let of_group = limit(unused, "group", "request-budget");
    assert_eq!((&of_group["period"], &of_group["account_name"]), (&json!("day"), &json!("staff")));
    assert_eq!((&of_group["used"], &of_group["resets_unix_ms"]), (&json!(0), &Value::Null));
    let first = console.call("GET", "/api/keys?limit=1", "").json();
    assert_eq!((names(&first), &first["total"]), (vec!["busy".into()], &json!(2)));
    let unknown = console.call("GET", "/api/keys?limits=1", "");
    assert_eq!((unknown.status, unknown.error_code()), (400, "invalid_request".into()));
    let text = String::from_utf8_lossy(&events.body).into_owned() + &first.to_string();
    let hash = sha256(b"pm_secret-of-busy");
    assert!(!text.contains("secret-of") && !text.contains(&hash[..16]), "{text}");
    let body = chat("a", json!({})).to_string();
    let refused = send(console.host.port, "GET", "/keys", &headers, body.as_bytes());
    assert_eq!(refused.status, 404, "not for clients");
}

#[test]
fn top_prints_a_frame() {
    let console = Console::start("", "");
    let socket = console.host.admin_socket().unwrap().to_owned();
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["top", "--once", "--socket"]).arg(&socket).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let has_lane = |name: &str| {
        let mut rows = text.lines().map(|line| line.trim_start_matches('│').split_whitespace());
        rows.any(|row| row.take(2).eq([name, "ready"]))
    };
    assert!(text.starts_with("Pointsman") && has_lane("a") && has_lane("busy"), "{text}");
    let missing = console.host.dir.path().join("missing.sock");
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["top", "--once", "--socket"]).arg(&missing);
    assert_eq!(command.output().unwrap().status.code(), Some(1));
}
