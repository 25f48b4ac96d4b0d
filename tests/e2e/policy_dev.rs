//! `pointsman policy dev`.

use std::fs::{self, File};
use std::process::{Child, Stdio};

use pointsman_tests::host::root;
use pointsman_tests::wait_until;

use crate::policy_simulation::{command, guest, pointsman, text, write_case};
use crate::replay::recorded_dir;

/// A process that is killed when it is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn policy_dev_tests_again_after_each_change() {
    let dir = guest("no-opinion", "b");
    let folder = dir.path().join("no-opinion");
    let out = dir.path().join("out.txt");
    let mut dev = command(&["policy", "dev", text(&folder)]);
    dev.stdout(File::create(&out).unwrap()).stderr(Stdio::null());
    let _dev = Running(dev.spawn().unwrap());
    let has = |part: &str| fs::read_to_string(&out).unwrap().contains(part);
    wait_until("the first run has failed", || has("DIFFERS"));
    assert!(!has("ok "));
    write_case(&folder, "a");
    wait_until("the second run has passed", || has("ok "));
    // A broken file is reported, and does not end the loop.
    fs::write(folder.join("cases.jsonl"), "{").unwrap();
    write_case(&folder, "c");
    wait_until("the last run has failed", || has("expected  c"));
}

#[test]
fn policy_dev_ends_if_there_is_no_policy() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("mine");
    for folder in [missing.as_path(), dir.path()] {
        let (code, _, err) = pointsman(&["policy", "dev", text(folder)]);
        assert!(code == 1 && err.contains("policy.toml"), "{err}");
    }
}

#[test]
fn policy_dev_compares_with_records_and_installs() {
    let recorded = recorded_dir("");
    let records = recorded.path().join("records");
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("quota");
    fs::create_dir(&folder).unwrap();
    let source = root().join("policies/quota");
    let manifest = fs::read_to_string(source.join("policy.toml")).unwrap();
    fs::write(folder.join("policy.toml"), manifest.replace("5ms", "6ms")).unwrap();
    for file in ["policy.wasm", "cases.jsonl"] {
        fs::copy(source.join(file), folder.join(file)).unwrap();
    }
    let dev = |more: &[&str]| {
        let always = ["policy", "dev", text(&folder), "--once"];
        pointsman(&[&always[..], more].concat())
    };
    let (code, out, err) = dev(&["--records", text(&records), "--last", "4"]);
    assert!(code == 0 && out.contains("\n4 decisions of 1 file replayed\n"), "{out}{err}");

    // The configuration of the host names its records; its policies are those of another folder.
    let host = recorded.path();
    let config = fs::read_to_string(host.join("pointsman.toml")).unwrap();
    let policies = host.join("policies");
    fs::create_dir(&policies).unwrap();
    for name in ["quota", "cortex", "deadline"] {
        fs::create_dir(policies.join(name)).unwrap();
        for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
            let from = root().join("policies").join(name).join(file);
            fs::copy(from, policies.join(name).join(file)).unwrap();
        }
    }
    let config = config.replace(text(&root().join("policies")), text(&policies));
    fs::write(host.join("pointsman.toml"), config).unwrap();
    let config = host.join("pointsman.toml");
    let install = ["--config", text(&config), "--install"];
    let (code, out, err) = dev(&install);
    assert!(code == 0 && out.contains("10 decisions of 1 file replayed"), "{out}{err}");
    let installed = fs::read_to_string(policies.join("quota/policy.toml")).unwrap();
    assert!(installed.contains("6ms"), "{installed}");
    assert!(out.contains("files changed: 1"), "{out}");

    // A policy that fails is not installed.
    let broken = manifest.replace("5ms", "7ms");
    fs::write(folder.join("policy.toml"), broken).unwrap();
    let cases = fs::read_to_string(folder.join("cases.jsonl")).unwrap();
    fs::write(folder.join("cases.jsonl"), cases.replace("\"status\": 429", "\"status\": 430"))
        .unwrap();
    let (code, out, _) = dev(&install);
    assert!(code == 1 && out.contains("DIFFERS"), "{out}");
    let installed = fs::read_to_string(policies.join("quota/policy.toml")).unwrap();
    assert!(installed.contains("6ms"), "{installed}");
    let (code, _, err) = dev(&["--install"]);
    assert!(code == 2 && err.contains("--config"), "{err}");
}
