//! Why requests were decided as they were, and what would be decided about one now.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{Response, chat, open, send};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, fake_lane, program, root};
use pointsman_tests::wait_until;
use pointsman_xtask::sha256;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// Runs `pointsman …` for the host; returns exit code, standard output and standard error.
fn run(host: &Host, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(arguments).arg("--socket").arg(host.admin_socket().unwrap());
    run_command(command)
}

fn run_command(mut command: Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Runs a command that succeeds, and returns the JSON that it prints.
fn succeed(host: &Host, arguments: &[&str]) -> Value {
    let (code, out, errors) = run(host, &[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{arguments:?}: {errors}");
    serde_json::from_str(&out).unwrap()
}

fn explain(host: &Host, id: &str) -> Value {
    succeed(host, &["explain", id])
}

/// Sends a request with this id and these further headers.
fn send_as(host: &Host, id: &str, headers: &[(&str, &str)], body: &Value) -> Response {
    let mut all = vec![("content-type", "application/json"), ("x-request-id", id)];
    all.extend(headers);
    send(host.port, "POST", CHAT, &all, body.to_string().as_bytes())
}

fn texts<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap_or_default()).collect()
}

fn found<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|item| item[key] == value).unwrap()
}

/// Returns the configuration of a host whose policies exclude lane `a` and allow three requests.
fn filtering(decisions: usize) -> String {
    let policies = root().join("policies");
    let lanes = [("a", 8), ("b", 4), ("c", 2)].map(|(name, slots)| {
        fake_lane(FAKE_ENGINE, name, &["m"], &format!("slots = {slots}"), &[])
    });
    format!(
        "[admin]\ndecisions = {decisions}\n[records]\ndir = \"records\"\n\
         [policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"hours\"\n\
         config = {{ schedules = [{{ name = \"day\", from = \"00:00\", to = \"24:00\", \
         prefer = [\"b\", \"c\"], only = true }}] }}\n[[policies.chain]]\nname = \"quota\"\n\
         config = {{ window-s = 86400, default = {{ requests = 3 }} }}\n{}",
        lanes.concat()
    )
}

/// Sends requests with these ids: one that falls back, one that fails everywhere, one whose client
/// leaves, one that a policy rejects, and one that is refused.
fn send_all(host: &Host) {
    let body = chat("m", json!({ "max_tokens": 2 }));
    host.set_script("b", json!({ "status": 500 }));
    assert_eq!(send_as(host, "fell-back", &[], &body).status, 200);
    host.set_script("c", json!({ "status": 500 }));
    let failed = send_as(host, "failed", &[], &body);
    assert!(failed.status >= 500, "{}", failed.text());
    host.set_script("b", json!({ "tokens": 10_000, "token-ms": 20 }));
    let streaming = chat("m", json!({ "stream": true })).to_string();
    let headers = [("content-type", "application/json"), ("x-request-id", "gone")];
    let mut stream = open(host.port, "POST", CHAT, &headers, streaming.as_bytes());
    assert!(stream.read_chunk());
    drop(stream);
    host.assert_no_request_lost();
    assert_eq!(send_as(host, "rejected", &[], &body).status, 429);
    assert_eq!(send_as(host, "refused", &[], &chat("nope", json!({}))).status, 404);
}

fn assert_listed(host: &Host) {
    let rows = host.get("/decisions?limit=4").json()["decisions"].take();
    assert_eq!(texts(&rows, "id"), ["refused", "rejected", "gone", "failed"]);
    assert_eq!(texts(&rows, "outcome"), ["error", "error", "client-gone", "error"]);
    assert_eq!((&rows[0]["model"], &rows[0]["code"]), (&json!("nope"), &json!("model_not_found")));
    let earlier = host.get("/decisions?before=failed").json()["decisions"].take();
    assert_eq!(texts(&earlier, "id"), ["fell-back"]);
    assert_eq!((&earlier[0]["lane"], &earlier[0]["attempts"]), (&json!("c"), &json!(2)));
}

/// Checks the explanations of all requests, and returns that of the one that fell back.
fn assert_explained(host: &Host) -> Value {
    let fell_back = explain(host, "fell-back");
    assert_eq!(fell_back["source"], "recent");
    assert_eq!(texts(&fell_back["attempts"], "lane"), ["b", "c"], "{fell_back:#}");
    assert_eq!(texts(&fell_back["attempts"], "result"), ["server-error", "ok"]);
    assert_eq!(fell_back["outcome"]["outcome"], "fell-back");
    assert_eq!(fell_back["decision"]["lanes"], json!(["b", "c"]));
    let excluded = found(&fell_back["lanes"], "name", "a");
    assert!(excluded["excluded"].as_str().unwrap().contains("hours"), "{excluded}");
    assert_eq!(found(&fell_back["lanes"], "name", "c")["step"], 2);
    let asked = found(&fell_back["policies"], "policy", "quota");
    assert!(!asked["host_calls"].as_array().unwrap().is_empty(), "{asked:#}");
    let failed = explain(host, "failed");
    assert_eq!(texts(&failed["attempts"], "result"), ["server-error", "server-error"]);
    assert_eq!(failed["outcome"]["outcome"], "error");
    let rejected = explain(host, "rejected");
    assert_eq!(rejected["decision"]["kind"], "reject");
    assert_eq!(rejected["error"]["status"], 429);
    let refused = explain(host, "refused");
    assert_eq!(refused["decision"], Value::Null);
    assert_eq!(refused["error"]["code"], "model_not_found");
    let (code, text, errors) = run(host, &["explain", "fell-back"]);
    assert_eq!(code, 0, "{errors}");
    for part in ["request fell-back (", "1 b: server-error (500)", "fell-back (200)", "on-request"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    fell_back
}

/// Filter, fallback, failure, a client that leaves, a rejection and a refusal: all are explained,
/// also after they have left the memory of the host.
#[test]
fn requests_are_explained_from_memory_and_from_records() {
    let host = crate::host(&filtering(500));
    send_all(&host);
    assert_listed(&host);
    let fell_back = assert_explained(&host);
    wait_until("all decisions are recorded", || {
        host.metric("pointsman_records_written_total", "") == 4.0
    });
    let file = host.dir.path().join("pointsman.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("decisions = 500", "decisions = 0")).unwrap();
    succeed(&host, &["reload"]);
    let (code, _, errors) = run(&host, &["explain", "refused"]);
    assert!(code == 1 && errors.ends_with("[decision_not_found]\n"), "{errors}");
    let recorded = explain(&host, "fell-back");
    assert_eq!(recorded["source"], "records");
    for part in ["attempts", "decision", "lanes", "policies", "merged", "decided_by", "reason"] {
        assert_eq!(recorded[part], fell_back[part], "{part}");
    }
    let mut offline = Command::new(program(FAKE_ENGINE));
    offline.args(["explain", "fell-back", "--json", "--records"]);
    offline.arg(host.dir.path().join("records"));
    let (code, out, errors) = run_command(offline);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), recorded);
    let dir = host.into_dir();
    let by_configuration = |id: &str| {
        let mut command = Command::new(program(FAKE_ENGINE));
        command.args(["explain", id, "--json", "--config"]).arg(dir.path().join("pointsman.toml"));
        command.env("XDG_STATE_HOME", dir.path().join("state"));
        run_command(command)
    };
    let (code, out, errors) = by_configuration("fell-back");
    assert!(code == 0 && errors.contains("searching"), "{errors}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), recorded);
    assert_eq!(by_configuration("unknown").0, 1);
}

/// Without records, texts that policies insert are not shown.
#[test]
fn texts_are_redacted_without_records() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::new("p").reason("why").lane(0);
    guest.write_to(&dir.path().join("policies"));
    let config = format!(
        "[policies]\ndir = \"policies\"\n[[policies.chain]]\nname = \"p\"\n{}",
        lane("a", &["m"], &[])
    );
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready();
    let secret = "a text that only the client and the engine know";
    let messages = json!([{ "role": "user", "content": secret }]);
    assert_eq!(send_as(&host, "r", &[], &chat("m", json!({ "messages": messages }))).status, 200);
    let explained = explain(&host, "r");
    assert_eq!(
        (&explained["has_host_calls"], &explained["reason"]),
        (&json!(false), &json!("why"))
    );
    assert_eq!(texts(&explained["policies"], "policy"), ["p"]);
    assert!(!explained.to_string().contains(secret), "{explained:#}");
    assert!(!host.get("/decisions").text().contains(secret));
}

/// A pseudo-random generator (xorshift64*): the same seed gives the same numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let end = u64::try_from(end).unwrap();
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end).unwrap()
    }

    fn choose<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// Returns the seed from the environment, or a new one. Prints the seed.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("EXPLAIN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(u64::from(now) + 1);
    println!("EXPLAIN_SEED={seed}");
    seed
}

/// Code that counts calls in the state of the policy, and returns the count as the reason.
const COUNTS: &str = r#"
(USE state.increment $increment)
(ADVISE
  (call $increment (TEXT "calls") (i64.const 1) (i32.const 0) (i32.const 3000))
  (call $why_number (i64.load (i32.const 3008)))
  (i32.const 2048))"#;

fn key(name: &str, more: &str) -> String {
    let hash = sha256(format!("pm_{name}").as_bytes());
    format!("[[keys]]\nid = \"{name}\"\nhash = \"sha256:{hash}\"\ntenant = \"t-{name}\"\n{more}\n")
}

/// Starts a host with a random fleet, a policy with a preference, one that counts, and three keys.
fn random_host(random: &mut Random, dir: TempDir) -> Host {
    let lanes = 2 + random.below(3);
    let preferring = Guest::new("prefers").lane(u32::try_from(random.below(lanes)).unwrap());
    for guest in [preferring, Guest::new("counts").code(COUNTS)] {
        guest.write_to(&dir.path().join("policies"));
    }
    let keys = [
        key("free", ""),
        key("few", "limits = { requests-per-minute = 4 }"),
        key("narrow", "lanes = [\"l0\"]\nmodels = [\"m\"]"),
    ];
    fs::write(dir.path().join("keys.toml"), keys.concat()).unwrap();
    let lanes = (0..lanes).map(|number| {
        let models = random.choose(&[&["m", "n"][..], &["m"], &["n"]]);
        let more = format!("slots = {}", 1 + random.below(8));
        fake_lane(FAKE_ENGINE, &format!("l{number}"), models, &more, &[])
    });
    let config = format!(
        "[access]\nkeys = \"keys.toml\"\n[policies]\ndir = \"policies\"\ncache = \"cache\"\n\
         [[policies.chain]]\nname = \"prefers\"\n[[policies.chain]]\nname = \"counts\"\n{}",
        lanes.collect::<String>()
    );
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready()
}

/// Returns what a host has counted and learned: metrics, without those that change by themselves,
/// states of policies, and usage.
fn counted(host: &Host) -> Vec<String> {
    let metrics = host.get("/metrics").text();
    // Connections are those of the admin API, and engines are probed meanwhile.
    let changes = ["connections", "probe", "scrape", "stale", "_log_", "memory", "upstream"];
    let is_stable = |line: &&str| !changes.iter().any(|part| line.contains(part));
    let mut counted: Vec<String> = metrics.lines().filter(is_stable).map(str::to_owned).collect();
    for path in ["/state", "/state/counts?key=calls", "/decisions", "/policies"] {
        counted.push(host.get(path).text());
    }
    counted
}

/// Previews a request, checks that this changes nothing, sends it, and checks that it gets what the
/// preview says.
fn assert_preview(host: &Host, (id, key): (&str, &str), body: &Value, seed: u64) {
    let file = host.dir.path().join("request.json");
    fs::write(&file, body.to_string()).unwrap();
    let header = format!("x-request-id: {id}");
    let decide = ["decide", file.to_str().unwrap(), "--key-id", key, "--header", &header];
    host.assert_no_request_lost();
    let before = counted(host);
    let preview = succeed(host, &decide);
    let context = format!("seed {seed}, {key} {body}: {preview:#}");
    let left = |preview: &Value| preview["rights"]["limits"]["requests"]["left"].clone();
    assert_eq!(left(&succeed(host, &decide)), left(&preview), "{context}");
    for (then, now) in before.iter().zip(&counted(host)) {
        assert_eq!(then, now, "{context}");
    }
    assert_eq!((&preview["attempts"], &preview["outcome"]), (&Value::Null, &Value::Null));

    let sent = send_as(host, id, &[("authorization", &authorization(key))], body);
    let explained = explain(host, id);
    for part in ["decision", "decided_by", "reason", "guards", "model", "tenant", "key"] {
        assert_eq!(explained[part], preview[part], "{part}: {context}");
    }
    assert_eq!(explained["error"]["code"], preview["error"]["code"], "{context}");
    assert_eq!(texts(&explained["lanes"], "name"), texts(&preview["lanes"], "name"));
    let header = |name: &str| sent.header(name).map_or(Value::Null, |text| json!(text));
    assert_eq!(header("x-pointsman-reason"), preview["reason"], "{context}");
    match preview["error"]["status"].as_u64() {
        Some(status) => assert_eq!(u64::from(sent.status), status, "{context}"),
        None => {
            assert_eq!(sent.status, 200, "{context}");
            assert_eq!(header("x-pointsman-lane"), preview["decision"]["lanes"][0], "{context}");
        }
    }
}

fn authorization(key: &str) -> String {
    format!("Bearer pm_{key}")
}

/// Previews are what a request then gets, whatever the fleet, and change nothing.
#[test]
fn preview_is_what_a_request_then_gets_and_changes_nothing() {
    let seed = seed();
    let mut random = Random(seed);
    for _ in 0..2 {
        let host = random_host(&mut random, tempfile::tempdir().unwrap());
        let authorization = authorization("free");
        let first =
            send_as(&host, "0", &[("authorization", &authorization)], &chat("m", json!({})));
        assert!([200, 404].contains(&first.status), "{}", first.text());
        for number in 1..=12 {
            let model = random.choose(&["m", "m", "n", "nope"]);
            let key = random.choose(&["free", "few", "narrow"]);
            let body = chat(model, json!({ "max_tokens": 1 + random.below(9) }));
            assert_preview(&host, (&number.to_string(), key), &body, seed);
        }
    }
}

#[test]
fn previews_need_a_known_key_and_endpoint_and_show_errors_of_the_request() {
    let host = crate::one_lane(&[]);
    let file = host.dir.path().join("request.json");
    fs::write(&file, "{\"model\": \"a\", \"prompt\": 7}").unwrap();
    let file = file.to_str().unwrap();
    let (code, _, errors) = run(&host, &["decide", file, "--key-id", "none"]);
    assert!(code == 1 && errors.ends_with("[key_not_found]\n"), "{errors}");
    let (code, _, errors) = run(&host, &["decide", file, "--endpoint", "/v1/nothing"]);
    assert!(code == 1 && errors.ends_with("[invalid_request]\n"), "{errors}");
    let invalid = succeed(&host, &["decide", file]);
    assert_eq!(invalid["error"]["status"], 400, "{invalid:#}");
    fs::write(file, "{\"model\": \"a\", \"prompt\": \"hello\"}").unwrap();
    let decided = succeed(&host, &["decide", file, "--endpoint", "/v1/completions"]);
    assert_eq!(
        (&decided["endpoint"], &decided["decision"]["lanes"]),
        (&json!("completions"), &json!(["a"]))
    );
    let (code, text, errors) = run(&host, &["decide", file, "--endpoint", "completions"]);
    assert!(code == 0 && text.contains("nothing was sent"), "{text}{errors}");
    assert_eq!(host.metric("pointsman_accepted_total", ""), 0.0);
}

/// Runs `pointsman decide` with the configuration in the folder, for the key `free`.
fn decide_by_configuration(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("decide").arg(dir.join("request.json")).arg("--config");
    command.arg(dir.join("pointsman.toml")).args(["--key-id", "free"]).args(arguments);
    command.env("XDG_STATE_HOME", dir.join("state"));
    run_command(command)
}

/// Returns the decision without a host, and checks that the output says so.
fn decided_without_host(dir: &Path, arguments: &[&str]) -> Value {
    let (code, out, errors) = decide_by_configuration(dir, &[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{errors}");
    let decided: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(decided["source"], "configuration", "{decided:#}");
    assert_eq!(errors.contains("deciding without a host"), arguments.is_empty(), "{errors}");
    decided
}

/// Returns names, states and steps of the lanes of a decision.
fn steps(explained: &Value) -> Vec<[&Value; 3]> {
    let lanes = explained["lanes"].as_array().unwrap().iter();
    lanes.map(|lane| ["name", "state", "step"].map(|key| &lane[key])).collect()
}

/// Without a host, a request gets what it gets from one that has just started, with the states of
/// policies that the last host has kept. Nothing of that is counted, and no engine is started.
#[test]
fn without_a_host_the_decision_is_that_of_one_that_has_started() {
    let dir = tempfile::tempdir().unwrap();
    Guest::new("counts").code(COUNTS).write_to(&dir.path().join("policies"));
    fs::write(dir.path().join("keys.toml"), key("free", "")).unwrap();
    let lane = |name: &str, more: &str| fake_lane(FAKE_ENGINE, name, &["m"], more, &[]);
    let config = format!(
        "[state]\ndir = \"state\"\n[access]\nkeys = \"keys.toml\"\n[policies]\n\
         dir = \"policies\"\ncache = \"cache\"\n[[policies.chain]]\nname = \"counts\"\n{}{}{}",
        lane("a", ""),
        lane("b", "slots = 3"),
        lane("cold", "load = \"on-demand\"")
    );
    fs::write(dir.path().join("pointsman.toml"), &config).unwrap();
    let body = chat("m", json!({}));
    fs::write(dir.path().join("request.json"), body.to_string()).unwrap();
    let first = decided_without_host(dir.path(), &[]);
    let states = json!({ "a": "ready", "b": "ready", "cold": "unloaded" });
    assert_eq!(first["assumed"]["lanes"], states, "{first:#}");
    assert_eq!((&first["reason"], &first["decision"]["lanes"][0]), (&json!("1"), &json!("a")));
    let counts = found(&first["policies"], "policy", "counts");
    let increment = found(&counts["host_calls"], "function", "state.increment");
    assert_eq!(increment["result"], json!({ "ok": 1 }), "{counts:#}");
    assert_eq!(decided_without_host(dir.path(), &[])["reason"], "1");
    assert!(!dir.path().join("state").exists());

    let mut host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready();
    let sent = send_as(&host, "1", &[("authorization", &authorization("free"))], &body);
    assert_eq!((sent.status, sent.header("x-pointsman-lane")), (200, Some("a")));
    let (code, out, errors) = decide_by_configuration(host.dir.path(), &["--json"]);
    assert_eq!((code, &*errors), (0, ""));
    let by_host: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&by_host["source"], &by_host["reason"]), (&json!("preview"), &json!("2")));
    // The host that runs is not asked, and has the store.
    assert_eq!(decided_without_host(host.dir.path(), &["--offline"])["reason"], "1");
    host.signal(Signal::TERM);
    host.wait_for_exit();
    let dir = host.into_dir_of_killed();
    for _ in 0..2 {
        let alone = decided_without_host(dir.path(), &[]);
        for part in ["decision", "merged", "decided_by", "reason", "model", "tenant", "key"] {
            assert_eq!(alone[part], by_host[part], "{part}: {alone:#}");
        }
        assert_eq!(steps(&alone), steps(&by_host), "{alone:#}");
    }
    let (code, text, errors) = decide_by_configuration(dir.path(), &["--offline"]);
    assert_eq!((code, &*errors), (0, ""));
    for part in ["(preview without a host, nothing was sent", "lanes: a ready, b ready, cold unl"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn without_a_host_errors_have_the_same_codes() {
    let dir = tempfile::tempdir().unwrap();
    let broken = "[[policies.chain]]\nname = \"broken\"\n";
    let config = format!("[policies]\ndir = \"policies\"\n{broken}{}", lane("a", &["a"], &[]));
    let file = dir.path().join("pointsman.toml");
    fs::write(&file, &config).unwrap();
    fs::write(dir.path().join("keys.toml"), key("free", "")).unwrap();
    fs::write(dir.path().join("request.json"), chat("a", json!({})).to_string()).unwrap();
    let (code, _, errors) = decide_by_configuration(dir.path(), &[]);
    assert!(code == 1 && errors.ends_with("[key_not_found]\n"), "{errors}");
    let with_keys = format!("[access]\nkeys = \"keys.toml\"\n{config}");
    fs::write(&file, &with_keys).unwrap();
    let (code, _, errors) =
        decide_by_configuration(dir.path(), &["--endpoint", "/v1/nothing", "--offline"]);
    assert!(code == 1 && errors.ends_with("[invalid_request]\n"), "{errors}");
    // A host starts without a policy that cannot be loaded.
    let decided = decided_without_host(dir.path(), &["--offline"]);
    let notes = decided["assumed"]["notes"].to_string();
    assert!(notes.contains("policies.chain[0]") && notes.contains("pointsman.toml:"), "{notes}");
    fs::write(&file, with_keys.replace("[policies]", "[policy]")).unwrap();
    assert_eq!(decide_by_configuration(dir.path(), &["--offline"]).0, 78);
    let missing = dir.path().join("missing.sock");
    let mut named = Command::new(program(FAKE_ENGINE));
    named.arg("decide").arg(dir.path().join("request.json")).arg("--socket").arg(&missing);
    let (code, _, errors) = run_command(named);
    assert!(code == 1 && errors.contains("missing.sock"), "{errors}");
    let mut unnamed = Command::new(program(FAKE_ENGINE));
    unnamed.arg("decide").arg(dir.path().join("request.json")).arg("--offline");
    assert_eq!(run_command(unnamed).0, 2);
}
