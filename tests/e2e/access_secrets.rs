//! Credentials: nothing that the host writes, shows or passes on has them, and no variant of a
//! header is a way around them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pointsman_tests::attack::{HostileEngine, RawClient, external_lane};
use pointsman_tests::client::{chat, get, send};
use pointsman_tests::deployment::admin_port;
use pointsman_tests::host::{Host, program};
use pointsman_tests::issuer::{AUDIENCE, Issuer};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "pm_the-key-of-the-client-0123456789abcdefghijklm";
const ADMIN: &str = "the-token-of-the-operator-0123456789";
const ENGINE_KEY: &str = "the-key-of-the-external-engine";
const GUESS: &str = "pm_a-guess-of-someone-0123456789abcdefghijklmno";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A host with everything that sees or stores requests, at the most talkative log level.
struct Deployed {
    host: Host,
    engine: HostileEngine,
    issuer: Issuer,
}

fn deploy(more: &str) -> Deployed {
    let (engine, issuer) = (HostileEngine::honest(), Issuer::start());
    let external = external_lane("a", &["a"], &engine, "");
    let config = format!(
        "[[keys]]\ntenant = \"t\"\nenv = \"A_KEY\"\n\
         [access.tokens]\nissuer = {:?}\naudience = [{AUDIENCE:?}]\n\
         [admin]\nlisten = \"127.0.0.1:0\"\ntoken-env = \"A_TOKEN\"\nsocket = \"admin.sock\"\n\
         [records]\ndir = \"records\"\nsample = \"100%\"\n{more}\n{external}\
         key-env = \"AN_ENGINES_KEY\"\n{}",
        issuer.url(),
        lane("b", &["b"], &[])
    );
    let env = [("A_KEY", KEY), ("A_TOKEN", ADMIN), ("AN_ENGINES_KEY", ENGINE_KEY)];
    let (program, dir) = (program(FAKE_ENGINE), tempfile::tempdir().unwrap());
    let host = Host::start_with_log(&program, dir, &config, &env, "trace").wait_until_ready();
    host.wait_for_event("token_keys_fetched", &[]);
    Deployed { host, engine, issuer }
}

/// Sends requests of all kinds, good and bad, with this credential in each place for one.
fn use_everywhere(host: &Host, credential: &str) {
    let bearer = format!("Bearer {credential}");
    let body = |more: Value| chat("a", more).to_string();
    let plain = body(json!({ "max_tokens": 5 }));
    let stream = body(json!({ "max_tokens": 5, "stream": true }));
    let response = json!({ "model": "a", "input": "hello", "store": true }).to_string();
    let unknown = body(json!({ "model": "unheard-of" }));
    let places = [("authorization", bearer.as_str()), ("x-api-key", credential)];
    let places = places.into_iter().chain([("api-key", credential)]);
    for (index, place) in places.enumerate() {
        let id = format!("request-{index}");
        let once = ("idempotency-key", id.as_str());
        for (path, body) in [
            (CHAT, &plain),
            (CHAT, &stream),
            (CHAT, &unknown),
            (CHAT, &String::new()),
            ("/v1/messages", &plain),
            ("/v1/responses", &response),
            ("/api/chat", &plain),
            ("/tokenize", &plain),
            ("/no/such/path", &plain),
        ] {
            let query = format!("{path}?key={credential}&api_key={credential}&x={credential}");
            for path in [path, &query] {
                let headers = [JSON, place, once];
                let response = send(host.port, "POST", path, &headers, body.as_bytes());
                assert!(!response.text().contains(credential), "{path}: {}", response.text());
            }
        }
        for path in ["/v1/models", "/status", "/metrics", "/health?lane=a", "/v1/responses/x"] {
            let separator = if path.contains('?') { '&' } else { '?' };
            let query = format!("{path}{separator}key={credential}");
            for path in [path, &query] {
                let response = send(host.port, "GET", path, &[place], b"");
                assert!(!response.text().contains(credential), "{path}: {}", response.text());
            }
        }
    }
}

/// Returns the content of all files below a folder.
fn files(dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            let name = entry.path().display().to_string();
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn credentials_are_written_and_shown_nowhere() {
    let Deployed { mut host, engine, issuer } = deploy("");
    let token = issuer.token(&json!({}));
    let refused = issuer.token(&json!({ "aud": "another" }));
    for credential in [KEY, GUESS, &token, &refused] {
        use_everywhere(&host, credential);
    }
    let port = admin_port(&host);
    let admin = format!("Bearer {ADMIN}");
    for bearer in [admin.as_str(), "Bearer pm_a-guess-of-someone-0123456789abcdefghijklmno"] {
        send(port, "GET", "/status", &[("authorization", bearer)], b"");
    }
    let mut shown = BTreeMap::new();
    for path in ["/status", "/metrics", "/policies"] {
        shown.insert(path.to_owned(), host.get(path).body);
    }
    for (index, request) in engine.requests().into_iter().enumerate() {
        let mut text = format!("{} {:?}", request.path, request.headers).into_bytes();
        text.extend(request.body);
        shown.insert(format!("request {index} to the engine"), text);
    }
    host.signal(Signal::TERM);
    assert!(host.wait_for_exit().success());
    files(host.dir.path(), &mut shown);
    let names = ["log", "store", "decisions.jsonl", "token-keys.json"];
    for name in names {
        assert!(shown.keys().any(|path| path.ends_with(name)), "{name}: {:?}", shown.keys());
    }
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let payload = |token: &str| token.split('.').nth(1).unwrap().to_owned();
    let tokens =
        [&token, &refused].into_iter().flat_map(|token| [payload(token), signature(token)]);
    // A part is as bad as the whole: it makes the rest easier to guess.
    let parts = [KEY, GUESS, ADMIN, ENGINE_KEY].map(|secret| secret[..20].to_owned());
    let secrets: Vec<String> = tokens.chain(parts).collect();
    for (place, bytes) in &shown {
        for secret in &secrets {
            let is_for_engine = place.contains("to the engine") && ENGINE_KEY.starts_with(secret);
            assert!(is_for_engine || !contains(bytes, secret), "{secret} is in {place}");
        }
    }
    assert!(engine.requests().iter().any(|request| request.header("authorization").is_some()));
}

/// What other users of the machine can see: `ps`, and the environment of what the host has started.
#[test]
fn processes_show_no_credentials() {
    let Deployed { host, issuer, .. } = deploy("");
    assert_eq!(ask(&host, &format!("authorization: Bearer {KEY}\r\n")), 200);
    assert_eq!(ask(&host, &format!("x-api-key: {}\r\n", issuer.token(&json!({})))), 200);
    let processes = host.descendants();
    assert!(processes.len() >= 2, "the engine and the keeper: {processes:?}");
    let read = |pid: &u32, file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    for secret in [KEY, ADMIN, ENGINE_KEY] {
        for pid in &processes {
            for file in ["cmdline", "environ", "comm"] {
                assert!(!contains(&read(pid, file), secret), "{secret} in {file} of {pid}");
            }
        }
        assert!(!contains(&read(&host.pid(), "cmdline"), secret));
    }
    let config = host.dir.path().join("pointsman.toml");
    let mut check = Command::new(program(FAKE_ENGINE));
    check.arg("check").arg(config).envs([("A_KEY", KEY), ("A_TOKEN", ADMIN)]);
    let output = check.env("AN_ENGINES_KEY", ENGINE_KEY).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for secret in [KEY, ADMIN, ENGINE_KEY] {
        assert!(!contains(&[output.stdout.clone(), output.stderr.clone()].concat(), secret));
    }
}

/// Sends a request with these header lines; returns its status.
fn ask(host: &Host, headers: &str) -> u16 {
    ask_bytes(host, headers.as_bytes())
}

fn ask_bytes(host: &Host, headers: &[u8]) -> u16 {
    let body = chat("a", json!({ "max_tokens": 5 })).to_string();
    let mut request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(headers);
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body.as_bytes());
    let mut client = RawClient::connect(host.port);
    client.send(request);
    let response = client.read_to_end(Duration::from_secs(20));
    assert!(!contains(&response.bytes, KEY), "{}", response.text());
    response.status().unwrap_or_else(|| panic!("no status: {}", response.text()))
}

#[test]
fn header_variants_are_not_a_way_around_keys() {
    let Deployed { host, issuer, .. } = deploy("");
    let token = issuer.token(&json!({}));
    let long = "x".repeat(100 << 10);
    let table = [
        (format!("authorization: Bearer {KEY}\r\n"), 200),
        (format!("AUTHORIZATION: bearer {KEY}\r\n"), 200),
        (format!("authorization:Bearer   {KEY}  \r\n"), 200),
        (format!("authorization: Bearer {KEY}\r\nx-api-key: {KEY}\r\n"), 200),
        (format!("authorization: Bearer {token}\r\n"), 200),
        (format!("x-api-key: {KEY}\r\n"), 200),
        (format!("api-key: {KEY}\r\n"), 200),
        (String::new(), 401),
        ("authorization: \r\n".to_owned(), 401),
        ("authorization: Bearer\r\n".to_owned(), 401),
        (format!("authorization: {KEY}\r\n"), 401),
        (format!("authorization: Bearer\t{KEY}\r\n"), 401),
        (format!("authorization: Bearer{KEY}\r\n"), 401),
        (format!("authorization: Bearer \"{KEY}\"\r\n"), 401),
        (format!("authorization: Bearer {KEY},\r\n"), 401),
        (format!("authorization: Bearer {KEY} x\r\n"), 401),
        (format!("authorization: Token {KEY}\r\n"), 401),
        (format!("proxy-authorization: Bearer {KEY}\r\n"), 401),
        (format!("x_api_key: {KEY}\r\n"), 401),
        (format!("cookie: authorization=Bearer {KEY}\r\n"), 401),
        // Several credentials that differ, in both orders: which one counts would be up to chance.
        (format!("authorization: Bearer {KEY}\r\nauthorization: Bearer {GUESS}\r\n"), 401),
        (format!("authorization: Bearer {GUESS}\r\nauthorization: Bearer {KEY}\r\n"), 401),
        (format!("authorization: Bearer {KEY}, Bearer {GUESS}\r\n"), 401),
        (format!("authorization: Bearer {GUESS}\r\nx-api-key: {KEY}\r\n"), 401),
        (format!("authorization: Bearer {KEY}\r\nx-api-key: {GUESS}\r\n"), 401),
        (format!("x-api-key: {KEY}\r\napi-key: {GUESS}\r\n"), 401),
        (format!("authorization: Bearer {token}\r\nx-api-key: {KEY}\r\n"), 401),
    ];
    for (headers, status) in &table {
        assert_eq!(ask(&host, headers), *status, "{headers}");
    }
    let too_large = ask(&host, &format!("authorization: Bearer {long}\r\n"));
    assert!(matches!(too_large, 400 | 431), "{too_large}");
    for bytes in [&b"\xff"[..], b"\xc3\xa4", b"\xe2\x80\xae"] {
        let value = [b"authorization: Bearer ", bytes, KEY.as_bytes(), b"\r\n"].concat();
        assert!(matches!(ask_bytes(&host, &value), 400 | 401), "{bytes:?}");
    }
    // Bytes that no header may have end the request before a credential is read.
    for bytes in [&b"\0"[..], b"\x01", b"\x7f"] {
        let value = [b"authorization: Bearer ", KEY.as_bytes(), bytes, b"\r\n"].concat();
        assert!(matches!(ask_bytes(&host, &value), 400 | 401), "{bytes:?}");
    }
}

/// The key in the URL is not a key unless the operator has allowed it.
#[test]
fn query_is_not_a_credential_by_default() {
    let Deployed { host, .. } = deploy("");
    for path in [CHAT, "/v1/models", "/status"] {
        for name in ["key", "api_key", "api-key", "token", "access_token"] {
            let response = get(host.port, &format!("{path}?{name}={KEY}"));
            assert!(matches!(response.status, 401 | 405), "{path} {name}: {}", response.text());
        }
    }
}

#[test]
fn guesses_are_refused_alike() {
    let Deployed { host, .. } = deploy("");
    let upper = KEY.to_ascii_uppercase();
    let half = &KEY[..KEY.len() / 2];
    let mut guesses = vec!["pm_".to_owned(), upper, half.to_owned(), format!("{KEY}x")];
    guesses
        .extend(["t", "sha256:", "null", "undefined", "*", "%", "' OR '1'='1"].map(str::to_owned));
    // Each position of the key with another letter.
    guesses.extend((0..KEY.len()).map(|place| {
        let mut guess = KEY.to_owned().into_bytes();
        guess[place] = if guess[place] == b'!' { b'?' } else { b'!' };
        String::from_utf8(guess).unwrap()
    }));
    let mut bodies: Vec<String> = guesses
        .iter()
        .map(|guess| {
            let bearer = format!("Bearer {guess}");
            let response = send(host.port, "GET", "/v1/models", &[("authorization", &bearer)], b"");
            assert_eq!(response.status, 401, "{guess}");
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
            response.text()
        })
        .collect();
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
}

/// A guess with a right beginning takes as long as one without: the order of magnitude only,
/// because a test machine is busy.
#[test]
fn time_of_a_refusal_tells_nothing_of_the_key() {
    let Deployed { host, .. } = deploy("");
    let median = |credential: &str| {
        let bearer = format!("Bearer {credential}");
        let mut times: Vec<Duration> = (0..101)
            .map(|_| {
                let begun = Instant::now();
                let headers = [("authorization", bearer.as_str())];
                assert_eq!(send(host.port, "GET", "/v1/models", &headers, b"").status, 401);
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[50]
    };
    let near = format!("{}!", &KEY[..KEY.len() - 1]);
    let far = "!".repeat(KEY.len());
    wait_until("both guesses take about the same time", || {
        let (near, far) = (median(&near), median(&far));
        near < far * 3 && far < near * 3
    });
}
