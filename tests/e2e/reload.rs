//! Policies change while the host serves: files, folders and links are swapped, the configuration is rewritten, and no request
//! and no engine notices.

mod configuration;
mod load;
mod restart;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pointsman_tests::guests::{Guest, build, component, swap};
use pointsman_tests::load::{Load, Seen};
use pointsman_tests::site::{Site, chain, folder, point};
use serde_json::Value;

use crate::{FAKE_ENGINE, lane};

/// Policies in this order, two lanes, and folders that are looked at often.
fn config(links: &str) -> String {
    let lanes = ["a", "b"].map(|name| lane(name, &[name, "auto"], &[]));
    format!("[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{links}{}", lanes.concat())
}

fn site(guests: &[Guest]) -> Site {
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    Site::start(FAKE_ENGINE, folder(guests), &config(&chain(&names, "")))
}

fn engines(site: &Site) -> [u32; 2] {
    ["a", "b"].map(|lane| site.host.engine_pid(lane))
}

/// Every answer was good, and each version always gave its own reason and lane.
fn assert_no_mix(seen: &BTreeMap<Seen, u64>) {
    let mut of_version: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    let mut of_reason: BTreeMap<&str, &str> = BTreeMap::new();
    for Seen { status, policy, lane, why } in seen.keys() {
        assert_eq!(*status, 200, "{policy} {why}");
        let known = of_version.entry(policy).or_insert((why, lane));
        assert_eq!(*known, (why.as_str(), lane.as_str()), "{policy} says two things");
        assert_eq!(of_reason.entry(why).or_insert(policy), policy, "two versions say `{why}`");
    }
}

/// Files of a policy, written as different people and programs do.
#[test]
fn a_new_version_is_taken_up_however_it_is_written() {
    let site = site(&[Guest::new("p").why("one").lane(0)]);
    let before = engines(&site);
    let load = Load::start(site.host.port, 2, "auto");
    let wasm = site.policies().join("p/policy.wasm");
    let new = |why: &str| Guest::new("p").why(why).lane(1).build();
    let mut versions = vec![site.wait_for_why("auto", "one")];
    // Copied over, as `cp` does: the file is there, and short for a while.
    fs::write(&wasm, new("copied")).unwrap();
    versions.push(site.wait_for_why("auto", "copied"));
    // Written in pieces.
    let bytes = new("in pieces");
    let mut file = fs::File::create(&wasm).unwrap();
    for piece in bytes.chunks(bytes.len() / 4) {
        std::io::Write::write_all(&mut file, piece).unwrap();
        load.more(5);
    }
    drop(file);
    versions.push(site.wait_for_why("auto", "in pieces"));
    swap(&wasm, &new("renamed"));
    versions.push(site.wait_for_why("auto", "renamed"));
    // An editor: the old file becomes a backup, and the new one gets its name.
    let beside = wasm.with_file_name("policy.wasm~");
    fs::rename(&wasm, &beside).unwrap();
    fs::write(&wasm, new("edited")).unwrap();
    fs::remove_file(beside).unwrap();
    versions.push(site.wait_for_why("auto", "edited"));
    // Touched, and written again with what is in it: no new version.
    let known = site.policy("p");
    fs::write(&wasm, new("edited")).unwrap();
    fs::File::options()
        .write(true)
        .open(&wasm)
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    site.reload();
    let now = site.policy("p");
    assert_eq!((&now["fingerprint"], &now["history"]), (&known["fingerprint"], &known["history"]));
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 5);
    assert_eq!(engines(&site), before);
    let seen = load.end();
    assert_no_mix(&seen);
    assert!(seen.keys().all(|seen| versions.contains(&seen.policy)), "{seen:?}");
    site.host.assert_nothing_lost();
}

/// Links as Kubernetes makes them: `policy.wasm` → `..data/policy.wasm`, `..data` → `..2026_1`.
#[test]
fn links_are_followed_and_their_swap_is_seen() {
    let dir = folder(&[]);
    let policies = dir.path().join("policies");
    let data = |name: &str, why: &str| {
        let folder = policies.join("p").join(name);
        fs::create_dir_all(&folder).unwrap();
        let guest = Guest::new("p").why(why);
        fs::write(folder.join("policy.toml"), guest.manifest_text()).unwrap();
        fs::write(folder.join("policy.wasm"), guest.build()).unwrap();
    };
    data("..2026_1", "one");
    for file in ["policy.toml", "policy.wasm"] {
        point(&policies.join("p").join(file), &Path::new("..data").join(file));
    }
    point(&policies.join("p/..data"), Path::new("..2026_1"));
    // The folder of the other policy is a link itself.
    let versions = dir.path().join("versions");
    for (name, why) in [("1", "first"), ("2", "second")] {
        let folder = Guest::new("q").why(why).put(&versions);
        fs::rename(folder, versions.join(name)).unwrap();
    }
    point(&policies.join("q"), &versions.join("1"));

    let site = Site::start(FAKE_ENGINE, dir, &config(&chain(&["p", "q"], "")));
    let load = Load::start(site.host.port, 1, "auto");
    site.wait_for_why("auto", "first");
    point(&site.policies().join("q"), &site.host.dir.path().join("versions/2"));
    site.wait_for_why("auto", "second");
    // The link to the folder leads nowhere for a while: what is in service stays there.
    fs::remove_file(site.policies().join("q")).unwrap();
    let gone = site.wait_for("the folder is missed", "q", |policy| !policy["error"].is_null());
    assert!(
        gone["error"]["what"].as_str().unwrap().ends_with("q/policy.toml is missing"),
        "{gone}"
    );
    assert_eq!((gone["state"].as_str(), site.why("auto")), (Some("active"), "second".into()));
    point(&site.policies().join("q"), &site.host.dir.path().join("versions/1"));
    site.wait_for_why("auto", "first");

    let first = site.policy("p");
    let data = |name: &str, why: &str| {
        let folder = site.policies().join("p").join(name);
        fs::create_dir_all(&folder).unwrap();
        let guest = Guest::new("p").why(why);
        fs::write(folder.join("policy.toml"), guest.manifest_text()).unwrap();
        fs::write(folder.join("policy.wasm"), guest.build()).unwrap();
    };
    data("..2026_2", "two");
    point(&site.policies().join("p/..data"), Path::new("..2026_2"));
    fs::remove_dir_all(site.policies().join("p/..2026_1")).unwrap();
    let second =
        site.wait_for("the data are swapped", "p", |policy| policy["version"] != first["version"]);
    assert_eq!(second["history"][0]["version"], first["version"]);
    assert!(load.end().keys().all(|seen| seen.status == 200));
    site.host.assert_nothing_lost();
}

#[test]
fn a_folder_that_is_deleted_and_put_back_keeps_its_policy() {
    let site = site(&[Guest::new("p").why("one").lane(0)]);
    let load = Load::start(site.host.port, 1, "auto");
    fs::remove_dir_all(site.policies().join("p")).unwrap();
    site.wait_for("the folder is missed", "p", |policy| !policy["error"].is_null());
    assert_eq!(site.why("auto"), "one");
    site.put(&Guest::new("p").why("one").lane(0));
    let back = site.wait_for("it is back", "p", |policy| policy["error"].is_null());
    assert_eq!(
        (back["state"].as_str(), back["history"].as_array().map(Vec::len)),
        (Some("active"), Some(0))
    );
    site.put(&Guest::new("p").why("two").lane(1));
    site.wait_for_why("auto", "two");
    assert_no_mix(&load.end());
    site.host.assert_nothing_lost();
}

const CASE: &str = r#"{"name": "NAME", "request": {"body": {"model": "auto", "messages": []}}, "fleet": {"lanes": [{"name": "x", "models": ["auto"]}, {"name": "y", "models": ["auto"]}]}, "expect": {"lane": "LANE"}}"#;

fn case(name: &str, lane: &str) -> String {
    CASE.replace("NAME", name).replace("LANE", lane) + "\n"
}

/// Something done to a policy's folder.
type Harm = Box<dyn Fn(&Path)>;

/// What a folder can have that is no policy, and the sentence about it.
fn mistakes() -> Vec<(&'static str, Harm, &'static str)> {
    let good = || Guest::new("p").why("never seen");
    let wasm = |bytes: Vec<u8>| -> Harm {
        Box::new(move |folder: &Path| swap(&folder.join("policy.wasm"), &bytes))
    };
    let manifest = |text: &'static str| -> Harm {
        Box::new(move |folder: &Path| swap(&folder.join("policy.toml"), text.as_bytes()))
    };
    let importing =
        wat::parse_str(r#"(module (import "wasi:http/outgoing@0.2.0" "send" (func)))"#).unwrap();
    let importing = component(&importing, "w", |_| {
        "package wasi:http@0.2.0;\ninterface outgoing { send: func(); }\nworld w { import outgoing; }".into()
    });
    let half = good().build();
    let looping = "(func (export \"pointsman:policy/lifecycle@0.1.0#configure\") (param i32 i32) (result i32)\n\
                   (loop $again (br $again)) (i32.const 0))";
    vec![
        (
            "garbage",
            wasm(vec![7; 5000]),
            "p/policy.wasm: it is no WebAssembly component that this host can run",
        ),
        (
            "truncated",
            wasm(half[..half.len() / 2].to_vec()),
            "p/policy.wasm: it is no WebAssembly component",
        ),
        (
            "wrong name",
            wasm(Guest::new("q").build()),
            "the manifest says `p` version `1`, and the component says `q`",
        ),
        (
            "wrong version",
            wasm(good().version("2").build()),
            "and the component says `p` version `2`",
        ),
        (
            "golden case",
            Box::new(move |folder| {
                swap(
                    &folder.join("cases.jsonl"),
                    (case("one", "y") + &case("two", "x")).as_bytes(),
                );
                swap(&folder.join("policy.wasm"), &good().lane(1).build());
            }),
            "p/cases.jsonl: golden case 2 (`two`): expected lane x, got y",
        ),
        (
            "wasi",
            wasm(importing),
            "it imports `wasi:http/outgoing@0.2.0`, which policies may not use",
        ),
        (
            "loop in configure",
            wasm(good().code(looping).build()),
            "failed when it was configured: it did not finish within 50 ms",
        ),
        (
            "trap in configure",
            wasm(build("trap-in-configure")),
            "the component says `trap-in-configure` version `1`",
        ),
        (
            "manifest",
            manifest("name = \"p\"\nversion = 1\napi = \"0.1\"\n"),
            "p/policy.toml: TOML parse error at line 2",
        ),
        (
            "another api",
            manifest("name = \"p\"\nversion = \"1\"\napi = \"0.9\"\n"),
            "it is for policy API 0.9, and this host serves",
        ),
        (
            "no manifest",
            Box::new(|folder| fs::remove_file(folder.join("policy.toml")).unwrap()),
            "p/policy.toml is missing",
        ),
        (
            "oversize",
            Box::new(|folder| {
                let file = fs::File::create(folder.join("policy.wasm")).unwrap();
                file.set_len((32 << 20) + 1).unwrap();
            }),
            "p/policy.wasm: is longer than 33554432 bytes, which is the limit",
        ),
    ]
}

/// Whatever cannot be used leaves the old version in service, and is shown in its words; when it is healed, that is forgotten.
#[test]
fn what_fails_keeps_the_old_version_in_service_and_is_shown() {
    let first = Guest::new("p").why("one").lane(0);
    let site = site(std::slice::from_ref(&first));
    let load = Load::start(site.host.port, 1, "auto");
    let version = site.policy("p")["version"].clone();
    for (number, (what, harm, sentence)) in mistakes().iter().enumerate() {
        harm(&site.policies().join("p"));
        site.reload();
        let shown = site.policy("p");
        let error = shown["error"]["what"].as_str().unwrap_or("none");
        assert!(error.contains(sentence), "{what}: {error}");
        assert_eq!(
            (&shown["version"], shown["state"].as_str()),
            (&version, Some("active")),
            "{what}"
        );
        let status = site.host.status();
        assert_eq!(status["policies"][0]["error"]["what"], error, "{what}");
        let (code, out, err) = site.cli(&["list"]);
        let told = error.lines().next().unwrap_or_default();
        assert!(code == 0 && out.contains("p ") && out.contains(told), "{what}: {out}{err}");
        assert_eq!(site.why("auto"), "one", "{what}");
        let failures = site.host.metric("pointsman_policy_load_failures_total", "policy=\"p\"");
        assert!(failures > number as f64, "{what}: {failures}");
        drop(fs::remove_file(site.policies().join("p/cases.jsonl")));
        let healed = site.take_up(&first);
        assert_eq!((&healed["error"], &healed["version"]), (&Value::Null, &version), "{what}");
    }
    let seen = load.end();
    assert_eq!(seen.len(), 1, "{seen:?}");
    site.host.assert_nothing_lost();
}
