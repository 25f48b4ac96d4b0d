//! Reload: policy files, folders, symbolic links and the configuration change under load, and no
//! request or engine is affected.

mod commands;
mod configuration;
mod effects;
mod files;
mod load;
mod random;
mod restart;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pointsman_tests::deployment::{Deployment, chain, policy_dir, replace_symlink};
use pointsman_tests::guests::{Guest, build, component, replace_file};
use pointsman_tests::load::{LoadGenerator, ObservedDecision};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

/// Returns a configuration with two lanes, these links of the policy chain, and frequent polling.
fn config(links: &str) -> String {
    let lanes = ["a", "b"].map(|name| lane(name, &[name, "auto"], &[]));
    format!("[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{links}{}", lanes.concat())
}

fn start_deployment(guests: &[Guest]) -> Deployment {
    start_deployment_with(guests, "")
}

/// Starts a host with these policies and these keys for each of them.
fn start_deployment_with(guests: &[Guest], keys: &str) -> Deployment {
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    Deployment::start(FAKE_ENGINE, policy_dir(guests), &config(&chain(&names, keys)))
}

fn engines(deployment: &Deployment) -> [u32; 2] {
    ["a", "b"].map(|lane| deployment.host.engine_pid(lane))
}

/// Asserts that every response was successful, and that each version always gave its own reason and
/// lane.
fn assert_versions_not_mixed(seen: &BTreeMap<ObservedDecision, u64>) {
    let mut by_version: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    let mut by_reason: BTreeMap<&str, &str> = BTreeMap::new();
    for ObservedDecision { status, policy, lane, reason } in seen.keys() {
        assert_eq!(*status, 200, "{policy} {reason}");
        let first = by_version.entry(policy).or_insert((reason, lane));
        assert_eq!(*first, (reason.as_str(), lane.as_str()), "{policy} gave two decisions");
        assert_eq!(
            by_reason.entry(reason).or_insert(policy),
            policy,
            "two versions gave `{reason}`"
        );
    }
}

/// The component is replaced in the ways in which people and programs write files.
#[test]
fn new_version_is_loaded_however_file_is_written() {
    let deployment = start_deployment(&[Guest::new("p").reason("one").lane(0)]);
    let before = engines(&deployment);
    let load = LoadGenerator::start(deployment.host.port, 2, "auto");
    let wasm = deployment.policies().join("p/policy.wasm");
    let new = |reason: &str| Guest::new("p").reason(reason).lane(1).build();
    let mut versions = vec![deployment.wait_for_reason("auto", "one")];
    // Overwritten, as `cp` does: the file exists and is truncated for a while.
    fs::write(&wasm, new("copied")).unwrap();
    versions.push(deployment.wait_for_reason("auto", "copied"));
    // Written in chunks.
    let bytes = new("in chunks");
    let mut file = fs::File::create(&wasm).unwrap();
    for piece in bytes.chunks(bytes.len() / 4) {
        std::io::Write::write_all(&mut file, piece).unwrap();
        load.wait_for_requests(5);
    }
    drop(file);
    versions.push(deployment.wait_for_reason("auto", "in chunks"));
    replace_file(&wasm, &new("renamed"));
    versions.push(deployment.wait_for_reason("auto", "renamed"));
    // Saved by an editor: the old file becomes a backup, and the new file gets its name.
    let beside = wasm.with_file_name("policy.wasm~");
    fs::rename(&wasm, &beside).unwrap();
    fs::write(&wasm, new("edited")).unwrap();
    fs::remove_file(beside).unwrap();
    versions.push(deployment.wait_for_reason("auto", "edited"));
    // Touched, and written again with the same content: not a new version.
    let known = deployment.policy("p");
    fs::write(&wasm, new("edited")).unwrap();
    fs::File::options()
        .write(true)
        .open(&wasm)
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    deployment.reload();
    let now = deployment.policy("p");
    assert_eq!((&now["fingerprint"], &now["history"]), (&known["fingerprint"], &known["history"]));
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 5);
    assert_eq!(engines(&deployment), before);
    let seen = load.stop();
    assert_versions_not_mixed(&seen);
    assert!(seen.keys().all(|seen| versions.contains(&seen.policy)), "{seen:?}");
    deployment.host.assert_no_request_lost();
}

/// Symbolic links as Kubernetes makes them: `policy.wasm` → `..data/policy.wasm` and `..data` →
/// `..2026_1`.
#[test]
fn symlinks_are_followed_and_watched() {
    let dir = policy_dir(&[]);
    let policies = dir.path().join("policies");
    let data = |name: &str, reason: &str| {
        let folder = policies.join("p").join(name);
        fs::create_dir_all(&folder).unwrap();
        let guest = Guest::new("p").reason(reason);
        fs::write(folder.join("policy.toml"), guest.manifest_text()).unwrap();
        fs::write(folder.join("policy.wasm"), guest.build()).unwrap();
    };
    data("..2026_1", "one");
    for file in ["policy.toml", "policy.wasm"] {
        replace_symlink(&policies.join("p").join(file), &Path::new("..data").join(file));
    }
    replace_symlink(&policies.join("p/..data"), Path::new("..2026_1"));
    // The folder of the other policy is itself a link.
    let versions = dir.path().join("versions");
    for (name, reason) in [("1", "first"), ("2", "second")] {
        let folder = Guest::new("q").reason(reason).write_to(&versions);
        fs::rename(folder, versions.join(name)).unwrap();
    }
    replace_symlink(&policies.join("q"), &versions.join("1"));

    let deployment = Deployment::start(FAKE_ENGINE, dir, &config(&chain(&["p", "q"], "")));
    let load = LoadGenerator::start(deployment.host.port, 1, "auto");
    deployment.wait_for_reason("auto", "first");
    replace_symlink(
        &deployment.policies().join("q"),
        &deployment.host.dir.path().join("versions/2"),
    );
    deployment.wait_for_reason("auto", "second");
    // While the link to the folder is missing, the active version stays in service.
    fs::remove_file(deployment.policies().join("q")).unwrap();
    let gone = deployment.wait_for_policy("the missing folder is reported", "q", |policy| {
        !policy["error"].is_null()
    });
    assert_eq!(gone["error"]["code"], "file_missing", "{gone}");
    assert!(gone["error"]["message"].as_str().unwrap().contains("q/policy.toml"), "{gone}");
    assert_eq!(
        (gone["state"].as_str(), deployment.reason("auto")),
        (Some("active"), "second".into())
    );
    replace_symlink(
        &deployment.policies().join("q"),
        &deployment.host.dir.path().join("versions/1"),
    );
    deployment.wait_for_reason("auto", "first");

    let first = deployment.policy("p");
    let data = |name: &str, reason: &str| {
        let folder = deployment.policies().join("p").join(name);
        fs::create_dir_all(&folder).unwrap();
        let guest = Guest::new("p").reason(reason);
        fs::write(folder.join("policy.toml"), guest.manifest_text()).unwrap();
        fs::write(folder.join("policy.wasm"), guest.build()).unwrap();
    };
    data("..2026_2", "two");
    replace_symlink(&deployment.policies().join("p/..data"), Path::new("..2026_2"));
    fs::remove_dir_all(deployment.policies().join("p/..2026_1")).unwrap();
    let second = deployment.wait_for_policy("the new version is active", "p", |policy| {
        policy["version"] != first["version"]
    });
    assert_eq!(second["history"][0]["version"], first["version"]);
    assert!(load.stop().keys().all(|seen| seen.status == 200));
    deployment.host.assert_no_request_lost();
}

#[test]
fn deleted_and_restored_folder_keeps_policy() {
    let deployment = start_deployment(&[Guest::new("p").reason("one").lane(0)]);
    let load = LoadGenerator::start(deployment.host.port, 1, "auto");
    fs::remove_dir_all(deployment.policies().join("p")).unwrap();
    deployment.wait_for_policy("the missing folder is reported", "p", |policy| {
        !policy["error"].is_null()
    });
    assert_eq!(deployment.reason("auto"), "one");
    deployment.write_policy(&Guest::new("p").reason("one").lane(0));
    let back = deployment
        .wait_for_policy("the folder is found again", "p", |policy| policy["error"].is_null());
    assert_eq!(
        (back["state"].as_str(), back["history"].as_array().map(Vec::len)),
        (Some("active"), Some(0))
    );
    deployment.write_policy(&Guest::new("p").reason("two").lane(1));
    deployment.wait_for_reason("auto", "two");
    assert_versions_not_mixed(&load.stop());
    deployment.host.assert_no_request_lost();
}

/// Returns a golden case that expects one of the lanes `x` and `y`.
fn case(name: &str, lane: &str) -> String {
    let lanes = ["x", "y"].map(|name| json!({ "name": name, "models": ["auto"] }));
    let case = json!({
        "name": name,
        "request": { "body": { "model": "auto", "messages": [] } },
        "fleet": { "lanes": lanes },
        "expect": { "lane": lane },
    });
    format!("{case}\n")
}

/// A change that breaks a policy's folder.
type Damage = Box<dyn Fn(&Path)>;

/// Returns a component that imports an interface that policies may not use.
fn component_with_wasi_import() -> Vec<u8> {
    let module =
        wat::parse_str(r#"(module (import "wasi:http/outgoing@0.2.0" "send" (func)))"#).unwrap();
    component(&module, "w", |_| {
        "package wasi:http@0.2.0;\ninterface outgoing { send: func(); }\n\
         world w { import outgoing; }"
            .into()
    })
}

/// Returns invalid contents of a policy folder, the code of the error, and a value that its message
/// must contain.
fn invalid_folders() -> Vec<(&'static str, Damage, &'static str, &'static str)> {
    let good = || Guest::new("p").reason("never seen");
    let wasm = |bytes: Vec<u8>| -> Damage {
        Box::new(move |folder: &Path| replace_file(&folder.join("policy.wasm"), &bytes))
    };
    let manifest = |text: &'static str| -> Damage {
        Box::new(move |folder: &Path| replace_file(&folder.join("policy.toml"), text.as_bytes()))
    };
    let half = good().build();
    let looping = "(func (export \"pointsman:policy/lifecycle@0.1.3#configure\") (param i32 i32) \
        (result i32)\n\
                   (loop $again (br $again)) (i32.const 0))";
    vec![
        ("garbage", wasm(vec![7; 5000]), "component_invalid", "p/policy.wasm"),
        ("truncated", wasm(half[..half.len() / 2].to_vec()), "component_invalid", "p/policy.wasm"),
        ("wrong name", wasm(Guest::new("q").build()), "description_mismatch", "q"),
        ("wrong version", wasm(good().version("2").build()), "description_mismatch", "2"),
        (
            "golden case",
            Box::new(move |folder| {
                replace_file(
                    &folder.join("cases.jsonl"),
                    (case("one", "y") + &case("two", "x")).as_bytes(),
                );
                replace_file(&folder.join("policy.wasm"), &good().lane(1).build());
            }),
            "case_failed",
            "two",
        ),
        (
            "wasi",
            wasm(component_with_wasi_import()),
            "import_forbidden",
            "wasi:http/outgoing@0.2.0",
        ),
        ("loop in configure", wasm(good().code(looping).build()), "configure_failed", "50 ms"),
        (
            "trap in configure",
            wasm(build("trap-in-configure")),
            "description_mismatch",
            "trap-in-configure",
        ),
        (
            "manifest",
            manifest("name = \"p\"\nversion = 1\napi = \"0.1\"\n"),
            "manifest_invalid",
            "p/policy.toml",
        ),
        (
            "another api",
            manifest("name = \"p\"\nversion = \"1\"\napi = \"0.9\"\n"),
            "contract_mismatch",
            "0.9",
        ),
        (
            "no manifest",
            Box::new(|folder| fs::remove_file(folder.join("policy.toml")).unwrap()),
            "file_missing",
            "p/policy.toml",
        ),
        (
            "oversize",
            Box::new(|folder| {
                let file = fs::File::create(folder.join("policy.wasm")).unwrap();
                file.set_len((32 << 20) + 1).unwrap();
            }),
            "file_too_large",
            "33554432",
        ),
    ]
}

/// An invalid folder leaves the active version in service and is reported with its error. The error
/// disappears when the folder is valid again.
#[test]
fn invalid_folder_keeps_active_version_and_is_reported() {
    let first = Guest::new("p").reason("one").lane(0);
    let deployment = start_deployment(std::slice::from_ref(&first));
    let load = LoadGenerator::start(deployment.host.port, 1, "auto");
    let version = deployment.policy("p")["version"].clone();
    for (number, (what, damage, code, value)) in invalid_folders().iter().enumerate() {
        damage(&deployment.policies().join("p"));
        deployment.reload();
        let policy = deployment.policy("p");
        let error = &policy["error"];
        assert_eq!(error["code"], *code, "{what}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(value), "{what}: {message}");
        assert_eq!(
            (&policy["version"], policy["state"].as_str()),
            (&version, Some("active")),
            "{what}"
        );
        let status = deployment.host.status();
        assert_eq!(status["policies"][0]["error"], *error, "{what}");
        let (code, out, err) = deployment.policy_command(&["list"]);
        let summary = message.lines().next().unwrap_or_default();
        assert!(code == 0 && out.contains("p ") && out.contains(summary), "{what}: {out}{err}");
        assert_eq!(deployment.reason("auto"), "one", "{what}");
        let failures =
            deployment.host.metric("pointsman_policy_load_failures_total", "policy=\"p\"");
        assert!(failures > number as f64, "{what}: {failures}");
        // Only one of the cases has written this file.
        fs::remove_file(deployment.policies().join("p/cases.jsonl")).ok();
        let repaired = deployment.deploy(&first);
        assert_eq!((&repaired["error"], &repaired["version"]), (&Value::Null, &version), "{what}");
    }
    let seen = load.stop();
    assert_eq!(seen.len(), 1, "{seen:?}");
    deployment.host.assert_no_request_lost();
}
