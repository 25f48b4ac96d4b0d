//! Errors of `build`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use pointsman_build::{BuildError, Language, Template, Tools, build, new_policy, vendor};

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

fn build_error(folder: &Path, tools: &Tools) -> BuildError {
    build(folder, tools, &mut |_| {}).unwrap_err()
}

#[test]
fn manifest_errors_name_the_key() {
    for (text, part) in [
        ("", "[build]"),
        ("[build]\nlanguage = \"javascript\"", "missing field `source`"),
        ("[build]\nlanguage = \"cobol\"\nsource = \"src/policy.js\"", "line 5"),
        (
            "[build]\nlanguage = \"javascript\"\nsource = \"../policy.js\"",
            "build.source: invalid path \"../policy.js\"",
        ),
        (
            "[build]\nlanguage = \"javascript\"\nsource = \"/etc/passwd\"",
            "build.source: invalid path \"/etc/passwd\"",
        ),
        ("[build]\nlanguage = \"javascript\"\nsource = \"\"", "build.source: invalid path \"\""),
        ("[build]\nlanguage = \"javascript\"\nsource = \"src/other.js\"", "build.source: "),
        (
            "[build]\nlanguage = \"javascript\"\nsource = \"src/policy.js\"\ncolour = 5",
            "unknown field `colour`",
        ),
    ] {
        let dir = folder(text);
        let error = build_error(dir.path(), &Tools::from_environment());
        let BuildError::Manifest { file, problem } = &error else { panic!("{text}: {error}") };
        assert!(file.ends_with("policy.toml") && problem.contains(part), "{text}: {error}");
    }
}

#[test]
fn failed_build_reports_tool_output_and_keeps_the_old_component() {
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
        matches!(&error, BuildError::ToolFailed { tool, .. } if tool == "componentize-qjs"),
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
fn component_with_imports_outside_the_contract_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let policy = new_policy(dir.path(), "a", Language::JavaScript).unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let tool = bin.join("componentize-qjs");
    let wat = "(component (import \"wasi:cli/exit@0.2.0\" (instance)))";
    fs::write(dir.path().join("wasi.wasm"), wat::parse_str(wat).unwrap()).unwrap();
    // The last argument is the output path.
    let copy = format!(
        "#!/bin/sh\nfor last; do :; done\ncp {:?} \"$last\"\n",
        dir.path().join("wasi.wasm")
    );
    fs::write(&tool, copy).unwrap();
    fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = build_error(&policy, &Tools::from_environment().with_folder(&bin));
    let is_import_error =
        matches!(&error, BuildError::Component(text) if text.contains("`wasi:cli/exit@0.2.0`"));
    assert!(is_import_error, "{error}");
    assert!(!policy.join("policy.wasm").exists());
}

#[test]
fn missing_sdk_is_reported() {
    let dir = folder("[build]\nlanguage = \"c\"\nsource = \"src/policy.js\"");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("zig"), "").unwrap();
    let tools = Tools::from_environment().with_folder(&bin);
    let error = build_error(dir.path(), &tools);
    let is_missing = matches!(&error, BuildError::Usage(text) if text.contains("sdk is missing"));
    assert!(is_missing, "{error}");
    vendor(dir.path(), Language::C).unwrap();
    assert!(
        dir.path().join("sdk/pointsman.h").exists() && dir.path().join(".build/policy.h").exists()
    );
}

#[test]
fn language_aliases_are_accepted() {
    for (name, language) in [
        ("rust", Template::Plain(Language::Rust)),
        ("js", Template::Plain(Language::JavaScript)),
        ("TypeScript", Template::TypeScript),
        ("py", Template::Plain(Language::Python)),
        ("C", Template::Plain(Language::C)),
    ] {
        assert_eq!(name.parse::<Template>().unwrap(), language);
    }
    let error = "go".parse::<Template>().unwrap_err();
    assert!(matches!(&error, BuildError::Usage(text) if text.contains("`go`")), "{error}");
}

/// Returns a folder whose component is written by this shell command.
fn folder_with_command(script: &str) -> tempfile::TempDir {
    folder(&format!("[build]\ncommand = [\"sh\", \"-c\", {script:?}]"))
}

#[test]
fn command_of_the_author_writes_the_component() {
    let dir =
        folder_with_command("test -e $POINTSMAN_WIT/types.wit && cp a.bin $POINTSMAN_COMPONENT");
    let write = |wat: &str| fs::write(dir.path().join("a.bin"), wat::parse_str(wat).unwrap());
    let tools = Tools::from_environment();
    write("(component)").unwrap();
    let built = build(dir.path(), &tools, &mut |_| {}).unwrap();
    assert_eq!(fs::read(built.component).unwrap(), wat::parse_str("(component)").unwrap());
    // A core module has to export what the contract's world does.
    write("(module)").unwrap();
    let error = build_error(dir.path(), &tools);
    assert!(matches!(&error, BuildError::Component(_)), "{error}");
}

#[test]
fn failing_commands_are_reported() {
    let tools = Tools::from_environment();
    let error = build_error(folder_with_command("exit 7").path(), &tools);
    assert!(matches!(&error, BuildError::ToolFailed { tool, .. } if tool == "sh"), "{error}");
    let error = build_error(folder_with_command("true").path(), &tools);
    let names_variable =
        matches!(&error, BuildError::Usage(text) if text.contains("POINTSMAN_COMPONENT"));
    assert!(names_variable, "{error}");
    for invalid in ["command = []", "command = [\"true\"]\nlanguage = \"c\""] {
        let error = build_error(folder(&format!("[build]\n{invalid}")).path(), &tools);
        let names_key = matches!(&error, BuildError::Manifest { problem, .. }
            if problem.contains("build.command"));
        assert!(names_key, "{error}");
    }
}
