//! What `build` says when it cannot build.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use pointsman_build::{BuildError, Language, Tools, build, new_policy, vendor};

fn folder(build: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::write(dir.path().join("src/policy.js"), "export default {};").unwrap();
    fs::write(
        dir.path().join("policy.toml"),
        format!("name = \"a\"\nversion = \"1\"\napi = \"0.1\"\n{build}"),
    )
    .unwrap();
    dir
}

fn refused(folder: &Path, tools: &Tools) -> String {
    build(folder, tools, &mut |_| {}).unwrap_err().to_string()
}

#[test]
fn mistakes_in_the_manifest_are_named() {
    for (text, part) in [
        ("", "there is no [build]"),
        ("[build]\nlanguage = \"javascript\"", "missing field `source`"),
        ("[build]\nlanguage = \"cobol\"\nsource = \"src/policy.js\"", "line 5"),
        (
            "[build]\nlanguage = \"javascript\"\nsource = \"../policy.js\"",
            "must be a path within this folder",
        ),
        (
            "[build]\nlanguage = \"javascript\"\nsource = \"/etc/passwd\"",
            "must be a path within this folder",
        ),
        ("[build]\nlanguage = \"javascript\"\nsource = \"\"", "must be a path within this folder"),
        ("[build]\nlanguage = \"javascript\"\nsource = \"src/other.js\"", "there is no "),
        (
            "[build]\nlanguage = \"javascript\"\nsource = \"src/policy.js\"\ncolour = 5",
            "unknown field `colour`",
        ),
    ] {
        let dir = folder(text);
        let error = refused(dir.path(), &Tools::from_environment());
        assert!(error.contains(part) && error.contains("policy.toml"), "{text}: {error}");
    }
}

#[test]
fn a_tool_that_fails_is_quoted_and_the_old_component_stays() {
    let dir = tempfile::tempdir().unwrap();
    let policy = new_policy(dir.path(), "a", Language::JavaScript).unwrap();
    fs::write(policy.join("policy.wasm"), "the old one").unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let tool = bin.join("componentize-qjs");
    fs::write(&tool, "#!/bin/sh\necho 'policy.js:3: unexpected token' >&2\nexit 7\n").unwrap();
    fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut lines = Vec::new();
    let tools = Tools::from_environment().with_folder(&bin);
    let error = build(&policy, &tools, &mut |line| lines.push(line.to_owned())).unwrap_err();
    assert!(
        matches!(&error, BuildError::Failed { tool, .. } if tool == "componentize-qjs"),
        "{error}"
    );
    assert!(
        error.to_string().contains("exit status: 7")
            && error.to_string().contains("unexpected token")
    );
    assert!(lines[0].starts_with("$ ") && lines[0].contains("--stub-wasi"), "{lines:?}");
    assert_eq!(fs::read_to_string(policy.join("policy.wasm")).unwrap(), "the old one");
}

#[test]
fn a_component_that_wants_more_than_the_contract_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let policy = new_policy(dir.path(), "a", Language::JavaScript).unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let tool = bin.join("componentize-qjs");
    let wat = "(component (import \"wasi:cli/exit@0.2.0\" (instance)))";
    fs::write(dir.path().join("wasi.wasm"), wat::parse_str(wat).unwrap()).unwrap();
    // The component goes to where the last argument says.
    let copy = format!(
        "#!/bin/sh\nfor last; do :; done\ncp {:?} \"$last\"\n",
        dir.path().join("wasi.wasm")
    );
    fs::write(&tool, copy).unwrap();
    fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = refused(&policy, &Tools::from_environment().with_folder(&bin));
    assert!(error.contains("imports `wasi:cli/exit@0.2.0`, which policies may not use"), "{error}");
    assert!(!policy.join("policy.wasm").exists());
}

#[test]
fn what_a_build_needs_is_asked_for() {
    let dir = folder("[build]\nlanguage = \"c\"\nsource = \"src/policy.js\"");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("zig"), "").unwrap();
    let tools = Tools::from_environment().with_folder(&bin);
    let error = refused(dir.path(), &tools);
    assert!(
        error.contains("sdk is missing; `pointsman policy new` makes folders that have it"),
        "{error}"
    );
    vendor(dir.path(), Language::C).unwrap();
    assert!(
        dir.path().join("sdk/pointsman.h").exists() && dir.path().join(".build/policy.h").exists()
    );
}

#[test]
fn languages_are_known_by_their_usual_names() {
    for (name, language) in [
        ("rust", Language::Rust),
        ("js", Language::JavaScript),
        ("TypeScript", Language::JavaScript),
        ("py", Language::Python),
        ("C", Language::C),
    ] {
        assert_eq!(name.parse::<Language>().unwrap(), language);
    }
    let error = "go".parse::<Language>().unwrap_err().to_string();
    assert!(error.contains("there are rust, javascript, python and c"), "{error}");
}
