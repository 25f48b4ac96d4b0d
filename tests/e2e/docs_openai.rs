//! The pages about endpoints: `host/docs/openai.md`, `openapi.json` and `clients.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use pointsman_domain::Endpoint;
use pointsman_tests::client::{get, post, send};
use pointsman_tests::host::{Host, program, root};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

/// Paths, with their methods, of which a host has the route.
type Routes = BTreeMap<String, BTreeSet<String>>;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn description() -> Value {
    serde_json::from_str(&read("host/docs/openapi.json")).unwrap()
}

/// Returns the rows of a table of `openai.md` that begins with this column, as cells.
fn rows(page: &str, column: &str) -> Vec<Vec<String>> {
    let (_, table) = page.split_once(&format!("\n| {column} |")).unwrap();
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let cells = |line: &str| line.split('|').map(cell).collect::<Vec<_>>();
    lines.map(|line| cells(line)[1..].to_vec()).collect()
}

fn described_routes() -> Routes {
    let description = description();
    let paths = description["paths"].as_object().unwrap().iter();
    let methods = |item: &Value| {
        item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect()
    };
    paths.map(|(path, item)| (path.clone(), methods(item))).collect()
}

#[test]
fn tables_of_endpoints_are_those_of_the_host() {
    let (page, description) = (read("host/docs/openai.md"), description());
    let mut routes = Routes::new();
    let mut labels = Vec::new();
    for row in rows(&page, "name") {
        let (label, path, target) = (&row[0], &row[1], &row[3]);
        let endpoint = Endpoint::from_label(label).unwrap();
        assert_eq!(endpoint.path(), Some(path.as_str()));
        let translated = endpoint.translated_to().map(Endpoint::label);
        assert_eq!(translated.unwrap_or_default(), target, "{label}");
        let operation = &description["paths"][path]["post"];
        assert_eq!(operation["x-endpoint"], *label);
        assert_eq!(operation["x-translated-to"].as_str(), translated, "{label}");
        routes.insert(path.clone(), ["POST".to_owned()].into());
        labels.push(label.clone());
    }
    assert_eq!(labels, Endpoint::ALL.map(|endpoint| endpoint.label().to_owned()));
    for row in rows(&page, "path") {
        routes.insert(row[0].clone(), row[1].split(", ").map(str::to_owned).collect());
    }
    assert_eq!(routes, described_routes());
}

/// `OPTIONS` is answered with the methods that a route has; an unknown path is 404.
#[test]
fn described_routes_are_those_of_the_host() {
    // The only lane is a llama.cpp, so that the listener has its routes, too.
    let host = crate::host(&lane("a", &["a"], &[]));
    for (path, methods) in described_routes() {
        let real = path.replace("{lane}", "a").replace("{path}", "x").replace("{id}", "a");
        let response = send(host.port, "OPTIONS", &real, &[], b"");
        assert_eq!(response.status, 204, "{path}");
        let allowed = response.header("allow").unwrap().split(", ");
        let allowed = allowed.filter(|method| *method != "OPTIONS").map(str::to_owned).collect();
        assert_eq!(methods, allowed, "{path}");
    }
    for row in rows(&read("host/docs/openai.md"), "name") {
        let others = row[5].split('`').filter(|other| other.starts_with('/'));
        for other in others {
            let response = send(host.port, "OPTIONS", other, &[], b"");
            let allowed = (response.status, response.header("allow"));
            assert_eq!(allowed, (204, Some("POST, OPTIONS")), "{other}");
        }
    }
    host.stop();
}

#[test]
fn routes_of_the_source_are_described() {
    let described = described_routes();
    let mut missing = Vec::new();
    let folder = root().join("host/crates/gateway/src");
    for path in rust_files(&folder) {
        let name = path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
        let is_other = ["admin", "compression", "early", "tests"].iter();
        if is_other.clone().any(|other| name.starts_with(other)) || name.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split(".route(").skip(1) {
            let Some(literal) = part.trim_start().strip_prefix('"') else { continue };
            let route = literal.split('"').next().unwrap().replace("{*", "{");
            if !described.contains_key(&route) {
                missing.push(format!("{name}: {route}"));
            }
        }
    }
    assert!(missing.is_empty(), "host/docs/openapi.json lacks {missing:#?}");
}

fn rust_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_entry = |path: std::path::PathBuf| match path.is_dir() {
        true => rust_files(&path),
        false => vec![path],
    };
    entries.flat_map(of_entry).filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

#[test]
fn limits_are_those_of_the_security_page() {
    let (page, security) = (read("host/docs/openai.md"), read("host/docs/security.md"));
    let known = rows(&security, "limit");
    let limits = rows(&page, "limit");
    assert!(!limits.is_empty());
    for limit in limits {
        assert!(known.contains(&limit), "{limit:?} is not in host/docs/security.md");
    }
}

/// Starts a host whose lanes fail in the ways of the table of errors.
fn failing_host() -> Host {
    let with = |name: &str, script: &str| lane(name, &[name], &["--script", script]);
    let lanes = [
        with("fails", r#"{"status": 500}"#),
        with("busy", r#"{"status": 503}"#),
        with("hangs", r#"{"hang": true}"#) + "[lanes.timeouts]\nfirst-byte = \"300ms\"\n",
    ];
    let keys = "[server]\nmax-body = \"2KiB\"\n[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n";
    let (folder, config) = (tempfile::tempdir().unwrap(), format!("{keys}{}", lanes.concat()));
    Host::start_in(&program(FAKE_ENGINE), folder, &config, &[("TEST_KEY", "sesame")])
        .wait_until_ready()
}

#[test]
fn types_of_errors_are_those_of_the_table() {
    let page = read("host/docs/openai.md");
    let host = failing_host();
    let (json, key) = (("content-type", "application/json"), ("x-api-key", "sesame"));
    let ask = |model: &str, size: usize| {
        let messages = json!([{ "role": "user", "content": "x".repeat(size) }]);
        let body = json!({ "model": model, "messages": messages, "max_tokens": 9, "stream": true });
        body.to_string()
    };
    for row in rows(&page, "status") {
        let [status, openai, anthropic, ..] = &row[..] else { panic!("{row:?}") };
        let (headers, body) = match status.as_str() {
            "400" => (vec![json, key], "{".to_owned()),
            "401" => (vec![json], ask("fails", 1)),
            "404" => (vec![json, key], ask("unknown", 1)),
            "413" => (vec![json, key], ask("fails", 3000)),
            "415" => (vec![key], ask("fails", 1)),
            "502" => (vec![json, key], ask("fails", 1)),
            "503" => (vec![json, key], ask("busy", 1)),
            "504" => (vec![json, key], ask("hangs", 1)),
            other => panic!("unknown status {other}"),
        };
        for (path, kind) in [("/v1/chat/completions", openai), ("/v1/messages", anthropic)] {
            let response = send(host.port, "POST", path, &headers, body.as_bytes());
            assert_eq!(response.status.to_string(), *status, "{path}: {}", response.text());
            assert_eq!(response.json()["error"]["type"], *kind, "{path} {status}");
        }
    }
    host.assert_no_request_lost();
}

/// Errors of Ollama's API have no type, and those of all APIs have the code as a header.
#[test]
fn every_error_has_its_code_as_a_header() {
    let host = crate::one_lane(&[]);
    for endpoint in Endpoint::ALL {
        let path = endpoint.path().unwrap();
        let response = post(host.port, path, &json!({ "model": "unknown", "messages": [] }));
        assert!((400..500).contains(&response.status), "{path}: {}", response.status);
        assert!(response.header("x-pointsman-code").is_some(), "{path}");
    }
    assert_eq!(get(host.port, "/unknown").header("x-pointsman-code"), Some("not_found"));
    host.assert_no_request_lost();
}
