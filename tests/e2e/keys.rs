//! Keys: the keys file, its commands, its reload, and what a key may be used for on every route.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use pointsman_tests::client::{Response, chat, open, send};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
const ACCESS: &str = "[access]\nkeys = \"keys.toml\"\n[policies]\npoll-interval = \"1s\"\n";

/// Runs `pointsman key …` for the keys file of a directory; returns exit code, standard output and
/// standard error.
fn key(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("key").args(arguments).arg("--keys").arg(dir.join("keys.toml"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Adds a key; returns its secret.
fn new_key(dir: &Path, arguments: &[&str]) -> String {
    let (code, secret, error) = key(dir, &[&["new", "--tenant", "t"], arguments].concat());
    assert_eq!(code, 0, "{error}");
    secret.trim().to_owned()
}

/// Starts a host with the keys file of a directory.
fn host(dir: TempDir, config: &str) -> Host {
    Host::start_in(&program(FAKE_ENGINE), dir, config, &[]).wait_until_ready()
}

fn request(port: u16, method: &str, path: &str, secret: &str, body: &Value) -> Response {
    let bearer = format!("Bearer {secret}");
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let body = if method == "GET" { String::new() } else { body.to_string() };
    send(port, method, path, &headers, body.as_bytes())
}

fn ask(host: &Host, secret: &str) -> (u16, Value) {
    let response = request(host.port, "POST", CHAT, secret, &chat("a", json!({})));
    (response.status, response.json()["error"]["code"].clone())
}

#[test]
fn file_is_reloaded_and_errors_keep_the_old_keys() {
    let dir = tempfile::tempdir().unwrap();
    let first = new_key(dir.path(), &["--name", "first"]);
    let host = host(dir, &[ACCESS, &lane("a", &["a"], &[])].concat());
    let file = host.dir.path().join("keys.toml");
    assert_eq!(ask(&host, &first).0, 200);
    assert_eq!(ask(&host, "pm_none"), (401, json!("invalid_api_key")));
    let second = new_key(host.dir.path(), &[]);
    wait_until("the new key is accepted", || ask(&host, &second).0 == 200);
    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.contains(&first) && !text.contains(&second), "{text}");
    fs::write(&file, format!("{text}\nunknown = 1\n")).unwrap();
    wait_until("the error is shown", || {
        let error = host.status()["config"]["keys_error"].clone();
        error.as_str().is_some_and(|error| error.contains("[unknown_key]"))
    });
    host.wait_for_event("keys_reload_failed", &[]);
    assert_eq!(ask(&host, &first).0, 200);
    fs::remove_file(&file).unwrap();
    wait_until("the missing file is shown", || {
        let error = host.status()["config"]["keys_error"].clone();
        error.as_str().is_some_and(|error| error.contains("[unreadable]"))
    });
    assert_eq!(ask(&host, &first).0, 200);
    // A file without keys refuses all.
    fs::write(&file, "").unwrap();
    wait_until("no key is accepted", || ask(&host, &first).0 == 401);
    assert!(host.status()["config"]["keys_error"].is_null());
    host.assert_no_request_lost();
    let log = host.log_text();
    assert!(!log.contains(&first) && !log.contains(&second));
    host.stop();
}

#[test]
fn revoked_key_ends_no_stream_and_begins_none() {
    let dir = tempfile::tempdir().unwrap();
    let secret = new_key(dir.path(), &["--name", "k"]);
    // Long enough that the key is revoked before the end.
    let script = r#"{"tokens": 100, "token-ms": 60}"#;
    let host = host(dir, &[ACCESS, &lane("a", &["a"], &["--script", script])].concat());
    let bearer = format!("Bearer {secret}");
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let body = chat("a", json!({ "stream": true, "max_tokens": 100 })).to_string();
    let mut stream = open(host.port, "POST", CHAT, &headers, body.as_bytes());
    assert!(stream.read_until("word2"));
    let (code, out, _) = key(host.dir.path(), &["revoke", "k"]);
    assert_eq!((code, out.as_str()), (0, ""));
    host.wait_for_event("keys_reloaded", &[]);
    assert_eq!(ask(&host, &secret), (401, json!("invalid_api_key")));
    assert!(!String::from_utf8_lossy(&stream.body).contains("[DONE]"));
    let (response, is_complete) = stream.finish();
    assert!(is_complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    let text = host.log_text();
    let config = [ACCESS, &lane("a", &["a"], &[])].concat();
    assert!(!text.contains(&secret));
    // The file is the truth, also for the next host.
    let host = self::host(host.into_dir(), &config);
    assert_eq!(ask(&host, &secret), (401, json!("invalid_api_key")));
    assert_eq!(key(host.dir.path(), &["revoke", "k"]).0, 1);
    host.stop();
}

#[test]
fn rotated_key_has_two_secrets_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let old = new_key(dir.path(), &["--name", "k"]);
    let host = host(dir, &[ACCESS, &lane("a", &["a"], &[])].concat());
    let rotate = |grace| {
        let (code, out, error) = key(host.dir.path(), &["rotate", "k", "--grace", grace]);
        assert_eq!(code, 0, "{error}");
        out.trim().to_owned()
    };
    let second = rotate("1h");
    wait_until("the new secret is accepted", || ask(&host, &second).0 == 200);
    assert_eq!(ask(&host, &old).0, 200);
    let (_, list, _) = key(host.dir.path(), &["list"]);
    assert!(list.contains("rotating") && !list.contains("sha256"), "{list}");
    let third = rotate("0s");
    wait_until("the last secret is accepted", || ask(&host, &third).0 == 200);
    assert_eq!([&old, &second].map(|secret| ask(&host, secret).0), [401, 401]);
    let (_, list, _) = key(host.dir.path(), &["list", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["state"]), (&json!("k"), &json!("valid")));
    let gone = new_key(host.dir.path(), &["--expires", "2020-01-01"]);
    wait_until("the expired key is known", || ask(&host, &gone).1 == "api_key_expired");
    assert_eq!(ask(&host, &gone).0, 401);
    host.stop();
}

#[test]
fn commands_report_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    new_key(dir.path(), &["--name", "k"]);
    for (arguments, expected) in [
        (&["new", "--tenant", "t", "--name", "k"][..], 1),
        (&["new", "--tenant", "t", "--group", "none"], 78),
        (&["new", "--tenant", "t", "--endpoint", "none"], 1),
        (&["new", "--tenant", "t", "--expires", "soon"], 1),
        (&["new", "--tenant", ""], 78),
        (&["new"], 2),
        (&["rotate", "none", "--grace", "1h"], 1),
    ] {
        let (code, out, error) = key(dir.path(), arguments);
        assert_eq!((code, out.as_str()), (expected, ""), "{arguments:?}: {error}");
    }
    fs::write(dir.path().join("keys.toml"), "[[keys]]\nid = 1\n").unwrap();
    let (code, _, error) = key(dir.path(), &["list"]);
    assert!(code == 78 && error.contains("keys.toml:2: keys[0].id"), "{error}");
    // A host does not start with such a file, and `check` says so.
    let config = dir.path().join("p.toml");
    fs::write(&config, [ACCESS, &lane("a", &["a"], &[])].concat()).unwrap();
    let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(&config).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(78) && error.contains("[wrong_type]"), "{error}");
    let mut list = Command::new(program(FAKE_ENGINE));
    let output = list.args(["key", "list", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn query_has_the_key_only_if_allowed() {
    for is_allowed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let secret = new_key(dir.path(), &[]);
        let access = ACCESS.replace("[policies]", &format!("query-key = {is_allowed}\n[policies]"));
        let lane = lane("a", &["a"], &["--script", r#"{"echo": true}"#]);
        let host = host(dir, &(access + &lane));
        let json = [("content-type", "application/json")];
        let body = chat("a", json!({})).to_string();
        for name in ["key", "api_key", "k%65y"] {
            let path = format!("{CHAT}?{name}={secret}");
            let status = send(host.port, "POST", &path, &json, body.as_bytes()).status;
            assert_eq!(status, if is_allowed { 200 } else { 401 }, "{name}");
        }
        let models = send(host.port, "GET", &format!("/nothing?key={secret}"), &[], b"");
        assert!(!models.text().contains(&secret), "{}", models.text());
        assert!(!host.log_text().contains(&secret));
        host.stop();
    }
}

/// The model that a request names, in each of the ways in which APIs do that.
fn body(model: &str) -> Value {
    json!({
        "model": model, "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 4,
        "prompt": "hi", "input": "hi",
    })
}

/// Secrets of keys with one kind of right each, and of one with all rights.
struct Secrets {
    model: String,
    on_lane: String,
    endpoint: String,
    listener: String,
    all: String,
}

/// Starts a host with two lanes and these keys.
fn host_with_rights() -> (Host, Secrets) {
    let dir = tempfile::tempdir().unwrap();
    let key = |arguments: &[&str]| new_key(dir.path(), arguments);
    let secrets = Secrets {
        model: key(&["--model", "org/one", "--model", "fast_*", "--engine-admin"]),
        on_lane: key(&["--lane", "a", "--engine-admin"]),
        endpoint: key(&["--endpoint", "messages", "--engine-admin"]),
        listener: key(&["--listener", "127.0.0.1:1"]),
        all: key(&[]),
    };
    let config = [
        ACCESS,
        "[[listeners]]\naddress = \"127.0.0.1:0\"\n",
        "models = { fast_x = \"two\", \"*\" = \"two\" }\n",
        &lane("a", &["org/one", "both"], &[]),
        &lane("b", &["two", "both"], &[]),
    ];
    (host(dir, &config.concat()), secrets)
}

#[test]
fn rights_hold_for_every_request() {
    let (host, secrets) = host_with_rights();
    let Secrets { model, on_lane, endpoint, listener, all } = secrets;
    let [first, aliased] = [0, 1].map(|index| host.listener_port(index));
    let post = |port, path: &str, secret: &str, model: &str| {
        let response = request(port, "POST", path, secret, &body(model));
        let code = response.header("x-pointsman-code").unwrap_or_default().to_owned();
        (response.status, code)
    };
    let refused = |code: &str| (403, code.to_owned());
    let chats = [CHAT, "/v1/messages", "/v1/responses", "/api/chat", "/v1/completions"];
    for path in chats {
        // Another spelling of a name is the same model; a name of the lane is not.
        for (port, name, is_allowed) in [
            (first, "org/one", true),
            (first, "one", true),
            (first, "one:latest", true),
            (first, "two", false),
            (first, "fast_x/two", false),
            (first, "b", false),
            (first, "both", false),
            (aliased, "fast_x", true),
            (aliased, "fast_y", false),
            (aliased, "org/one", false),
        ] {
            let found = post(port, path, &model, name);
            match is_allowed {
                true => assert_eq!(found.0, 200, "{path} {name} {found:?}"),
                false => assert_eq!(found, refused("model_not_allowed"), "{path} {name}"),
            }
        }
        assert_eq!(post(first, path, &on_lane, "two"), refused("lane_not_allowed"), "{path}");
        assert_eq!(post(first, path, &on_lane, "both").0, 200, "{path}");
        assert_eq!(post(first, path, &listener, "two"), refused("listener_not_allowed"), "{path}");
        assert_eq!(post(first, path, &all, "two").0, 200, "{path}");
        if path != "/v1/messages" {
            assert_eq!(post(first, path, &endpoint, "two"), refused("endpoint_not_allowed"));
        }
    }
    assert_eq!(post(first, "/v1/messages", &endpoint, "two").0, 200);
    assert_eq!(post(first, "/v1/messages/count_tokens", &endpoint, "two").0, 200);
    let counted = post(first, "/v1/messages/count_tokens", &model, "two");
    assert_eq!(counted, refused("model_not_allowed"));
    let load = request(first, "POST", "/api/generate", &model, &json!({ "model": "two" }));
    assert_eq!(load.status, 403);
    let anthropic = request(first, "POST", "/v1/messages", &model, &body("two")).json();
    assert_eq!(anthropic["error"]["type"], "permission_error");
    let unknown = request(first, "POST", CHAT, &model, &body("none"));
    assert!(unknown.status == 404 && !unknown.text().contains("two"), "{}", unknown.text());
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn rights_hold_on_every_page() {
    let (host, secrets) = host_with_rights();
    let Secrets { model, on_lane, endpoint, listener, all } = secrets;
    let first = host.listener_port(0);
    let get = |path: &str, secret: &str| {
        let response = request(first, "GET", path, secret, &Value::Null);
        let code = response.header("x-pointsman-code").unwrap_or_default().to_owned();
        (response.status, code, response.text())
    };
    for (path, secret, code) in [
        ("/upstream/b/slots", &on_lane, "lane_not_allowed"),
        ("/upstream/b/slots", &model, "model_not_allowed"),
        ("/upstream/a/slots", &model, "model_not_allowed"),
        ("/upstream/a/slots", &endpoint, "endpoint_not_allowed"),
        ("/upstream/a/slots", &all, "engine_admin_required"),
        ("/v1/responses/resp_1", &endpoint, "endpoint_not_allowed"),
        ("/v1/responses/resp_1/input_items", &endpoint, "endpoint_not_allowed"),
        ("/v1/models", &listener, "listener_not_allowed"),
        ("/v1/models/two", &model, "model_not_allowed"),
        ("/status", &listener, "listener_not_allowed"),
        ("/metrics", &model, "lane_not_allowed"),
        ("/metrics", &on_lane, "lane_not_allowed"),
        ("/health?lane=b", &on_lane, "lane_not_allowed"),
        ("/api/version", &listener, "listener_not_allowed"),
    ] {
        let (status, found, text) = get(path, secret);
        assert_eq!((status, found.as_str()), (403, code), "{path} {text}");
    }
    for (path, secret) in [("/upstream/a/slots", &on_lane), ("/health?lane=a", &on_lane)] {
        assert_eq!(get(path, secret).0, 200, "{path}");
    }
    for path in ["/v1/models", "/api/tags", "/api/ps", "/status"] {
        let (status, _, of_model) = get(path, &model);
        assert_eq!(status, 200);
        assert!(!of_model.contains("\"two\"") && !of_model.contains("\"b\""), "{path} {of_model}");
        let (_, _, of_lane) = get(path, &on_lane);
        assert!(!of_lane.contains("\"two\"") && !of_lane.contains("\"b\""), "{path} {of_lane}");
        let (_, _, all) = get(path, &all);
        assert!(all.contains("\"two\"") || all.contains("\"b\""), "{path} {all}");
    }
    host.assert_no_request_lost();
    host.stop();
}

/// Changes of `[[keys]]` and of `[access]` need no restart.
#[test]
fn configuration_of_keys_is_applied_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), "one").unwrap();
    let keys = "[[keys]]\ntenant = \"t\"\nfile = \"secret\"\n";
    let lanes = lane("a", &["a"], &[]);
    let config = [keys, lanes.as_str()].concat();
    let host = host(dir, &config);
    let file = host.dir.path().join("pointsman.toml");
    let pid = host.engine_pid("a");
    assert_eq!((ask(&host, "one").0, ask(&host, "two").0), (200, 401));
    let write = |config: &str| {
        fs::write(&file, pointsman_tests::host::with_json_log(config)).unwrap();
        host.signal(rustix::process::Signal::HUP);
    };
    fs::write(host.dir.path().join("other"), "two").unwrap();
    write(&config.replace("\"secret\"", "\"other\""));
    wait_until("the other key is accepted", || ask(&host, "two").0 == 200);
    assert_eq!(ask(&host, "one").0, 401);
    fs::write(host.dir.path().join("keys.toml"), "[[groups]]\nname = \"g\"\nmodels = [\"b\"]\n")
        .unwrap();
    write(&["[access]\nkeys = \"keys.toml\"\nanonymous = \"g\"\n", lanes.as_str()].concat());
    let anonymous = || {
        let headers = [("content-type", "application/json")];
        let body = chat("a", json!({})).to_string();
        send(host.port, "POST", CHAT, &headers, body.as_bytes())
    };
    wait_until("anonymous requests are accepted", || anonymous().status == 403);
    assert_eq!(anonymous().error_code(), json!("model_not_allowed"));
    assert_eq!(ask(&host, "two").0, 401);
    assert_eq!(host.status()["config"]["handover_for"], json!([]));
    let tokens = "[access.tokens]\nissuer = \"https://issuer.example\"\naudience = [\"a\"]\n";
    write(&["[access]\nkeys = \"keys.toml\"\nanonymous = \"g\"\n", tokens, &lanes].concat());
    wait_until("the change of tokens is reported", || {
        host.status()["config"]["handover_for"]
            == json!(["access.tokens.audience", "access.tokens.issuer"])
    });
    assert_eq!(host.engine_pid("a"), pid);
    host.stop();
}
