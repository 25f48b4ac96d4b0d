//! The inner loop of a policy author: the time from an edit of the source to a decision of a
//! running host, with `pointsman policy dev --install` in between. `host/docs/performance.md` has
//! results.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pointsman_tests::deployment::{Deployment, chain};
use pointsman_xtask::wait::poll;

use crate::clients::prepared_dir;
use crate::policy_cli::policy;
use crate::policy_dev::Running;
use crate::policy_simulation::{command, text};
use crate::{FAKE_ENGINE, lane};

/// Measured edits of each language.
const EDITS: usize = 2;
/// Maximum time of the first build, which compiles the dependencies of a policy in Rust.
const MAX_FIRST: Duration = Duration::from_secs(100);
/// Maximum time of an edit, ten times what a quiet machine needs for the slowest language with
/// unoptimized programs. Compiling the interpreter of JavaScript for each edit takes about as long.
const MAX_EDIT: Duration = Duration::from_secs(30);
/// Time between requests. The log of the host is in a watched folder, and changes in it that follow
/// each other closely put off the next look at the policies.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// The reason in the templates' advice, which each edit replaces.
const REASON: &str = "the shortest wait";

/// Provides the tools of the language to the policy in `folder`, as an author has them.
fn provide_tools(language: &str, folder: &Path, dev: &mut Command) {
    match language {
        "javascript" => {
            let modules = prepared_dir("POINTSMAN_NODE", "node").join("node_modules");
            symlink(modules, folder.join("node_modules")).unwrap();
        }
        "c" => {
            let path = env::var_os("PATH").unwrap();
            let tools = prepared_dir("POINTSMAN_VENV", "venv").join("bin");
            let folders = [tools].into_iter().chain(env::split_paths(&path));
            dev.env("PATH", env::join_paths(folders).unwrap());
        }
        "rust" => {
            // The dependencies have been built for the templates.
            let target = prepared_dir("POINTSMAN_FRESH_GUESTS", "target/guests/fresh");
            symlink(target.with_file_name("new"), folder.join("target")).unwrap();
        }
        other => panic!("no tools for {other}"),
    }
}

/// Returns the times from edits of a new policy's source to a decision by the edited version.
fn measure(language: &str, source: &str) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("loop-{language}");
    let (code, _, err) = policy(&["new", &name, "--lang", language, "--dir", text(dir.path())]);
    assert_eq!(code, 0, "{err}");
    let folder = dir.path().join(&name);
    let cases = fs::read_to_string(folder.join("cases.jsonl")).unwrap();
    let cases = cases.replace(&format!(", \"why\": {REASON:?}"), "");
    fs::write(folder.join("cases.jsonl"), cases).unwrap();

    let cache = dir.path().join("pointsman/policies");
    let chain = chain(&[&name], "probation = { duration = \"0s\" }");
    let lane = lane("a", &["auto"], &[]);
    let config = format!("[policies]\ncache = {cache:?}\n{chain}{lane}");
    let deployment = Deployment::start(FAKE_ENGINE, tempfile::tempdir().unwrap(), &config);
    let config = deployment.host.dir.path().join("pointsman.toml");
    let mut dev =
        command(&["policy", "dev", text(&folder), "--config", text(&config), "--install"]);
    provide_tools(language, &folder, &mut dev);
    // Like an author and a host of the same user, both have one cache of compiled policies.
    dev.env("XDG_CACHE_HOME", dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let _dev = Running(dev.spawn().unwrap());
    let wait_for = |limit: Duration, reason: &str| {
        let is_decided = || (deployment.reason("auto") == reason).then_some(());
        let found = poll(limit, POLL_INTERVAL, is_decided);
        assert!(found.is_some(), "{language}: timed out waiting for the reason `{reason}`");
    };
    wait_for(MAX_FIRST, REASON);

    let source = folder.join(source);
    let original = fs::read_to_string(&source).unwrap();
    let edit = |number: usize| {
        let reason = format!("edit {number}");
        let start = Instant::now();
        fs::write(&source, original.replace(REASON, &reason)).unwrap();
        wait_for(MAX_EDIT, &reason);
        start.elapsed()
    };
    let times = (1..=EDITS).map(edit).collect();
    deployment.host.assert_no_request_lost();
    times
}

/// Measures and prints; `wait_for` has the limits.
fn print_times(language: &str, source: &str) {
    let mut times = measure(language, source);
    times.sort();
    println!("{language}: from an edit to a decision: {times:.1?}");
}

#[test]
fn edit_of_c_reaches_a_running_host() {
    print_times("c", "src/policy.c");
}

#[test]
fn edit_of_javascript_reaches_a_running_host() {
    print_times("javascript", "src/policy.js");
}

#[test]
fn edit_of_rust_reaches_a_running_host() {
    print_times("rust", "src/lib.rs");
}
