//! `cargo xtask release`: its artifacts, and an installation from the archive.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, fake_lane, root};
use serde_json::Value;

use crate::FAKE_ENGINE;
use crate::artifacts::{artifact, artifacts, commands, names, output, pack};
use crate::debian_root::DebianRoot;

/// Returns the name and version in a table of `Cargo.lock`.
fn locked(name: &str) -> String {
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"].as_str() == Some(name)).unwrap();
    package["version"].as_str().unwrap().to_owned()
}

#[test]
fn packing_twice_gives_the_same_bytes() {
    let again = tempfile::tempdir().unwrap();
    pack(again.path());
    assert_eq!(names(again.path()), names(artifacts()));
    for name in names(artifacts()) {
        let is_same = fs::read(again.path().join(&name)).unwrap()
            == fs::read(artifacts().join(&name)).unwrap();
        assert!(is_same, "{name} differs");
    }
}

#[test]
fn checksums_are_those_of_all_artifacts() {
    let mut check = Command::new("sha256sum");
    output(check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(artifacts()));
    let sums = fs::read_to_string(artifacts().join("SHA256SUMS")).unwrap();
    let mut listed: Vec<&str> = sums.lines().filter_map(|line| line.split("  ").nth(1)).collect();
    listed.push("SHA256SUMS");
    listed.sort_unstable();
    assert_eq!(listed, names(artifacts()));
}

#[test]
fn folder_with_other_files_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("other"), "").unwrap();
    let xtask = Path::new(FAKE_ENGINE).with_file_name("pointsman-xtask");
    let status = Command::new(xtask).arg("release").arg("--out").arg(folder.path()).output();
    assert!(!status.unwrap().status.success());
    assert_eq!(names(folder.path()), ["other"]);
}

#[test]
fn bill_of_materials_is_valid_and_has_exact_versions() {
    let file = artifact(".cdx.json");
    let python = Path::new(&std::env::var("POINTSMAN_VENV").unwrap()).join("bin/python");
    let code = "import sys\n\
                from cyclonedx.schema import SchemaVersion\n\
                from cyclonedx.validation.json import JsonStrictValidator\n\
                text = open(sys.argv[1]).read()\n\
                sys.exit(JsonStrictValidator(SchemaVersion.V1_6).validate_str(text))";
    output(Command::new(python).args(["-c", code]).arg(&file));

    let sbom: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let all = sbom["components"].as_array().unwrap();
    let components: BTreeMap<&str, &Value> =
        all.iter().map(|component| (component["name"].as_str().unwrap(), component)).collect();
    let wasmtime = components["wasmtime"];
    assert_eq!(wasmtime["version"], locked("wasmtime"));
    assert_eq!(wasmtime["scope"], "required");
    assert_eq!(wasmtime["hashes"][0]["content"].as_str().unwrap().len(), 64);
    assert!(components.contains_key("policies/cortex/policy.wasm"));
    // Not what only tests use, nor what other programs of the workspace do.
    for absent in ["vt100", "proptest", "ctrlc", "pointsman-xtask", "pointsman-tests"] {
        assert!(!components.contains_key(absent), "{absent}");
    }
    let without_licence: Vec<_> = all
        .iter()
        .filter(|component| component["type"] == "library" && component["licenses"].is_null())
        .collect();
    assert!(without_licence.is_empty(), "{without_licence:?}");
    let dependencies = sbom["dependencies"].as_array().unwrap();
    let host = dependencies
        .iter()
        .find(|entry| entry["ref"] == sbom["metadata"]["component"]["bom-ref"])
        .unwrap();
    assert!(host["dependsOn"].as_array().unwrap().len() > 20);
}

#[test]
fn archive_has_regular_modes_and_no_traces_of_the_machine() {
    let list = output(Command::new("tar").arg("-tvzf").arg(artifact(".tar.gz")));
    for line in list.lines() {
        let is_plain = ["drwxr-xr-x 0/0 ", "-rw-r--r-- 0/0 ", "-rwxr-xr-x 0/0 "]
            .iter()
            .any(|start| line.starts_with(start));
        assert!(is_plain, "{line}");
        assert_eq!(line.starts_with("-rwx"), line.ends_with("/bin/pointsman"), "{line}");
    }
    for part in [
        "share/man/man1/pointsman-serve.1",
        "share/bash-completion/completions/pointsman",
        "share/zsh/site-functions/_pointsman",
        "share/fish/vendor_completions.d/pointsman.fish",
        "share/doc/pointsman/LICENSE",
        "share/doc/pointsman/README.md",
        "share/doc/pointsman/examples/pointsman.toml",
        "share/pointsman/policies/cortex/policy.wasm",
        "lib/systemd/system/pointsman.socket",
    ] {
        assert!(list.lines().any(|line| line.ends_with(&format!("/{part}"))), "{part}");
    }
}

#[test]
fn binary_needs_only_the_c_library() {
    let dir = unpacked();
    let binary = dir.path().join("bin/pointsman");
    let dynamic = output(Command::new("readelf").args(["-W", "--dynamic"]).arg(&binary));
    let mut libraries: Vec<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .map(|line| line.split(['[', ']']).nth(1).unwrap())
        .filter(|library| !library.starts_with("ld-linux"))
        .collect();
    libraries.sort_unstable();
    assert_eq!(libraries, ["libc.so.6", "libgcc_s.so.1", "libm.so.6"]);
    let sections = output(Command::new("readelf").args(["-W", "--sections"]).arg(&binary));
    assert!(!sections.contains(".symtab") && !sections.contains(".debug_info"));
}

#[test]
fn unpacked_program_serves_with_its_policies() {
    let dir = unpacked();
    let policies = dir.path().join("share/pointsman/policies");
    let config = format!(
        "[policies]\ndir = {policies:?}\n[[policies.chain]]\nname = \"spread\"\n{}",
        fake_lane(FAKE_ENGINE, "a", &["a"], "", &[])
    );
    let host = Host::start(&dir.path().join("bin/pointsman"), &config).wait_until_ready();
    let response = post(host.port, "/v1/chat/completions", &chat("a", Value::Null));
    assert_eq!(response.status, 200, "{}", response.text());
    host.stop();
}

#[test]
fn newcomer_installs_the_archive() {
    let root = DebianRoot::new();
    root.copy(&artifact(".tar.gz"));
    root.copy(&artifacts().join("SHA256SUMS"));
    root.walk(&commands("tarball.md"));
    let unit = root.path("usr/local/lib/systemd/system/pointsman.service");
    let mut service = root.start(&unit);
    assert_eq!(service.ask(), 200);
    service.stop();
}

/// Unpacks the archive without the folder that it has.
fn unpacked() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(artifact(".tar.gz")).arg("-C").arg(dir.path());
    output(tar.arg("--strip-components=1"));
    let mode = fs::metadata(dir.path().join("bin/pointsman")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    dir
}
