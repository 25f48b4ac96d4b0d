//! The usage and the budgets of three hosts in a real Redis, which loses all it has, as hosts do.

use std::path::Path;
use std::process::Command;
use std::thread::scope;

use pointsman_tests::client::{Response, chat, get_unix, send};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;
use crate::redis::Redis;

const CHAT: &str = "/v1/chat/completions";
const NAMES: [&str; 3] = ["gpu-1", "gpu-2", "gpu-3"];
/// The secrets of the keys of two tenants, and their digests.
const SECRETS: [&str; 2] = ["sesame-9d1f", "poppy-77ab"];
const DIGESTS: [&str; 2] = [
    "db853564e7eab2efc6964e1552e32d034766047f99d1b3e9d3abd7076086632a",
    "ef295c06690ff8ae1b8e7bb3d1ee3362329be856a36bd726d6f79fff32b32991",
];
/// From before the tests until after them.
const ALL: &str = "from=2026-01-01";

/// Starts a host with this name, with what a host before it has left in the directory.
fn start(dir: TempDir, name: &str, redis: &Redis, limits: &str) -> Host {
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "slots = 16", &[]);
    let keys = format!(
        "[[keys]]\nid = \"k\"\nhash = \"sha256:{}\"\ntenant = \"t\"\n{limits}\n\
         [[keys]]\nid = \"l\"\nhash = \"sha256:{}\"\ntenant = \"u\"\n",
        DIGESTS[0], DIGESTS[1]
    );
    std::fs::write(dir.path().join("keys.toml"), keys).unwrap();
    // Its default name depends on the path of the configuration.
    let state = dir.path().join("kept");
    let config = format!(
        "[state]\ndir = {state:?}\n[access]\nkeys = \"keys.toml\"\n[shared-state]\nurl = \"{}\"\n\
         replicas = 3\n[fleet]\nname = \"{name}\"\n{lane}",
        redis.url()
    );
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready()
}

fn hosts(redis: &Redis, limits: &str) -> [Host; 3] {
    NAMES.map(|name| start(tempfile::tempdir().unwrap(), name, redis, limits))
}

fn ask(host: &Host, key: usize) -> Response {
    let bearer = format!("Bearer {}", SECRETS[key]);
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    send(host.port, "POST", CHAT, &headers, chat("a", json!({})).to_string().as_bytes())
}

/// Sends `count` requests with a key, all of which have to be served.
fn serve(host: &Host, key: usize, count: usize) {
    for _ in 0..count {
        let response = ask(host, key);
        assert_eq!(response.status, 200, "{}", response.text());
    }
}

fn usage(host: &Host, query: &str) -> Response {
    get_unix(host.admin_socket().unwrap(), &format!("/usage?{ALL}&{query}")).unwrap()
}

/// Returns names and requests of a report, which has to have them in this column.
fn rows(host: &Host, query: &str, column: &str) -> Vec<(String, u64)> {
    let report = usage(host, query);
    assert_eq!(report.status, 200, "{}", report.text());
    let rows = report.json()["rows"].as_array().unwrap().clone();
    let row =
        |row: Value| (row[column].as_str().unwrap().to_owned(), row["requests"].as_u64().unwrap());
    rows.into_iter().map(row).collect()
}

fn sum(host: &Host, query: &str) -> u64 {
    rows(host, query, "tenant").iter().map(|(_, requests)| requests).sum()
}

/// Waits until the host reports these numbers of requests for all hosts.
fn wait_for_rows(hosts: &[Host], column: &str, expected: &[(&str, u64)]) {
    let query = format!("hosts=all&by={column}");
    for host in hosts {
        wait_until(&format!("{column} is {expected:?} at {}", host.port), || {
            usage(host, &query).status == 200 && {
                let rows = rows(host, &query, column);
                rows.iter().map(|(name, count)| (&**name, *count)).eq(expected.iter().copied())
            }
        });
    }
}

/// The sum over hosts is what clients have sent, after Redis was killed without persistence and
/// after hosts were killed and replaced.
#[test]
fn usage_of_all_hosts_is_what_clients_have_sent() {
    const LAST: u64 = 5;
    let mut redis = Redis::run(&[]);
    let mut hosts = hosts(&redis, "");
    scope(|scope| {
        for (number, host) in hosts.iter().enumerate() {
            scope.spawn(move || {
                serve(host, 0, 10 * (number + 1));
                serve(host, 1, 4);
            });
        }
    });
    wait_for_rows(&hosts, "tenant", &[("t", 60), ("u", 12)]);
    wait_for_rows(&hosts, "host", &[("gpu-1", 14), ("gpu-2", 24), ("gpu-3", 34)]);
    let report = usage(&hosts[0], "hosts=all").json();
    let ages = report["hosts"].as_array().unwrap().iter().map(|host| &host["age_seconds"]);
    let ages: Vec<f64> = ages.map(|age| age.as_f64().unwrap()).collect();
    assert!(ages.len() == 3 && ages[0] == 0.0 && ages.iter().all(|age| *age < 30.0), "{ages:?}");

    redis.kill();
    wait_until("the store is missed", || usage(&hosts[0], "hosts=all").status == 503);
    let refused = usage(&hosts[0], "hosts=all");
    assert_eq!(refused.error_code(), "shared_state_unavailable", "{}", refused.text());
    hosts.iter().for_each(|host| serve(host, 0, 2));
    hosts.iter().for_each(Host::assert_no_request_lost);
    assert_eq!(hosts.each_ref().map(|host| sum(host, "by=tenant")), [16, 26, 36]);
    redis.start();
    wait_for_rows(&hosts, "tenant", &[("t", 66), ("u", 12)]);

    // A host is killed within its interval, which may cost the last requests.
    let [one, two, three] = hosts;
    serve(&two, 1, usize::try_from(LAST).unwrap());
    let dir = two.into_dir();
    let known = sum(&one, "hosts=all");
    assert!((78..=78 + LAST).contains(&known), "{known}");
    let two = start(dir, NAMES[1], &redis, "");
    let own = sum(&two, "by=tenant");
    assert!((26..=26 + LAST).contains(&own), "{own}");
    hosts = [one, two, three];
    let by_host = [("gpu-1", 16), ("gpu-2", own), ("gpu-3", 36)];
    wait_for_rows(&hosts, "host", &by_host);

    // A host that begins anew, with the name of one that is gone.
    let [one, two, three] = hosts;
    drop(three);
    let three = start(tempfile::tempdir().unwrap(), NAMES[2], &redis, "");
    serve(&three, 1, 3);
    hosts = [one, two, three];
    wait_for_rows(&hosts, "host", &[by_host[0], by_host[1], ("gpu-3", 39)]);
    assert_eq!(sum(&hosts[2], "by=tenant"), 3);
    assert_eq!(usage(&hosts[0], "hosts=all").json()["hosts"].as_array().unwrap().len(), 3);

    let output = Command::new(program(FAKE_ENGINE))
        .args(["usage", "--all-hosts", "--from", "2026-01-01", "--by", "host", "--config"])
        .arg(hosts[0].dir.path().join("pointsman.toml"))
        .env("XDG_STATE_HOME", hosts[0].dir.path().join("state"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((lines[3][0], lines[3][1], lines[4][0]), ("gpu-3", "39", "hosts:"), "{text}");
}

/// Returns what a host knows of the requests that are used of the budget.
fn used(host: &Host) -> u64 {
    let keys = get_unix(host.admin_socket().unwrap(), "/keys").unwrap().json();
    let keys = keys["keys"].as_array().unwrap().clone();
    let key = keys.iter().find(|key| key["name"] == "k").unwrap();
    let limits = key["limits"].as_array().unwrap();
    let budget = limits.iter().find(|limit| limit["limit"] == "request-budget");
    budget.map_or(0, |budget| budget["used"].as_u64().unwrap())
}

fn wait_for_used(hosts: &[Host], expected: u64) {
    for host in hosts {
        wait_until(&format!("{expected} are used"), || used(host) == expected);
    }
}

/// Neither Redis nor any of the processes is the same afterwards.
#[test]
fn budgets_of_all_hosts_survive_the_restart_of_everything() {
    let mut redis = Redis::run(&[]);
    let limits = "limits = { budget = [{ period = \"month\", requests = 36 }] }";
    let hosts = hosts(&redis, limits);
    hosts.iter().for_each(|host| serve(host, 0, 10));
    wait_for_used(&hosts, 30);
    let dirs = hosts.map(|host| {
        // So that all is written.
        host.signal(rustix::process::Signal::TERM);
        let mut host = host;
        host.wait_for_exit();
        host.into_dir()
    });
    redis.kill();
    redis.start();
    let mut names = NAMES.into_iter();
    let hosts = dirs.map(|dir| start(dir, names.next().unwrap(), &redis, limits));
    hosts.iter().for_each(|host| serve(host, 0, 1));
    wait_for_used(&hosts, 33);
    hosts.iter().for_each(|host| serve(host, 0, 1));
    wait_for_used(&hosts, 36);
    for host in &hosts {
        let refused = ask(host, 0);
        assert_eq!((refused.status, refused.error_code()), (429, json!("budget_exceeded")));
    }
}

/// Copies the state directory of a host to that of a new one, which has not been started.
fn copy_state(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    let status = Command::new("cp").arg("-a").arg(from.join("kept")).arg(to.path()).status();
    assert!(status.unwrap().success());
    to
}

fn copied(host: &Host) -> Value {
    host.status()["shared_state"]["identity_copied"].clone()
}

/// A machine is cloned with all it has. Neither host's usage or budget is lost, or counts twice,
/// also after restarts.
#[test]
fn host_with_a_copied_state_directory_gets_an_identity_of_its_own() {
    let redis = Redis::run(&[]);
    let limits = "limits = { budget = [{ period = \"month\", requests = 40 }] }";
    let first = start(tempfile::tempdir().unwrap(), NAMES[0], &redis, limits);
    serve(&first, 0, 10);
    let mut clone_dir = None;
    let first = restart(first, NAMES[0], &redis, limits, |dir| clone_dir = Some(copy_state(dir)));
    serve(&first, 0, 3);
    wait_for_rows(std::slice::from_ref(&first), "host", &[("gpu-1", 13)]);
    assert_eq!(copied(&first), Value::Null);

    let clone = start(clone_dir.unwrap(), NAMES[1], &redis, limits);
    serve(&clone, 0, 4);
    let found = clone.wait_for_event("host_identity_copied", &[("is_renewed", "true")]);
    assert_eq!(found.text("other"), NAMES[0]);
    assert_eq!(
        (&copied(&clone)["other"], &copied(&clone)["is_renewed"]),
        (&json!(NAMES[0]), &json!(true))
    );
    serve(&clone, 1, 2);
    serve(&first, 0, 1);
    let hosts = [first, clone];
    let all = [("gpu-1", 14), ("gpu-2", 6)];
    wait_for_rows(&hosts, "host", &all);
    wait_for_used(&hosts, 18);
    // The clone reports all that its store has by itself.
    assert_eq!(hosts.each_ref().map(|host| sum(host, "by=tenant")), [14, 16]);

    let [first, clone] = hosts;
    let hosts = [
        restart(first, NAMES[0], &redis, limits, |_| {}),
        restart(clone, NAMES[1], &redis, limits, |_| {}),
    ];
    hosts.iter().for_each(|host| serve(host, 0, 1));
    wait_for_rows(&hosts, "host", &[("gpu-1", 15), ("gpu-2", 7)]);
    wait_for_used(&hosts, 20);
    for host in &hosts {
        assert_eq!(copied(host), Value::Null);
        assert!(host.events("host_identity_copied", &[]).is_empty(), "{}", host.log_text());
    }
}

/// Stops a host, and starts it again with its directory, of which `meanwhile` is told.
fn restart(
    mut host: Host,
    name: &str,
    redis: &Redis,
    limits: &str,
    meanwhile: impl FnOnce(&Path),
) -> Host {
    host.signal(rustix::process::Signal::TERM);
    host.wait_for_exit();
    let dir = host.into_dir();
    meanwhile(dir.path());
    start(dir, name, redis, limits)
}
