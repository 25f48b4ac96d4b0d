//! Manifests that are accepted and rejected, by the reader and by the schema.

use pointsman_fuzz::json_schema::accepts;

use super::*;

/// Loads a manifest. The schema has to accept what can be loaded.
fn load(text: &str) -> Result<Manifest, ManifestError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), text).unwrap();
    let loaded = Manifest::load(dir.path());
    assert!(loaded.is_err() || is_accepted(text), "the schema rejects\n{text}");
    loaded
}

fn is_accepted(text: &str) -> bool {
    let Ok(table) = text.parse::<toml::Table>() else { return false };
    accepts(&manifest_schema(), &serde_json::to_value(table).unwrap())
}

#[test]
fn schema_accepts_the_manifests_of_all_policies() {
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../policies");
    let folders = std::fs::read_dir(policies).unwrap().map(|entry| entry.unwrap().path());
    let manifests = folders.filter_map(|dir| std::fs::read_to_string(dir.join(FILE)).ok());
    let manifests: Vec<String> = manifests.collect();
    assert!(manifests.len() > 5);
    for text in &manifests {
        assert!(is_accepted(text), "{text}");
        // Of the top level: an appended key would belong to the last table.
        assert!(!is_accepted(&format!("zzz = 1\n{text}")));
    }
    let minimal = "name = \"a\"\nversion = \"1\"\napi = \"0.1\"\n";
    for (keys, expected) in [
        ("limits = { deadline = \"5ms\" }", true),
        ("limits = { deadline = 5 }", false),
        ("limits = { deadlin = \"5ms\" }", false),
        ("allow = { headers = \"a\" }", false),
        ("allow = { priority = [-1, 1] }", true),
    ] {
        let text = format!("{minimal}{keys}");
        assert_eq!((is_accepted(&text), load(&text).is_ok()), (expected, expected), "{keys}");
    }
    assert!(!is_accepted("name = \"a\"\nversion = \"1\"\n"));
}

#[test]
fn minimal_manifest_has_strict_defaults() {
    let manifest = load("name = \"a\"\nversion = \"1\"\napi = \"0.1\"").unwrap();
    assert_eq!(manifest.file, Path::new("policy.wasm"));
    assert_eq!(manifest.allow(), Allow::default());
    assert_eq!(manifest.limits.deadline, None);
}

#[test]
fn other_files_are_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, secret) = (dir.path().join("policy"), dir.path().join("secret"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&secret, "# none\nroot:x:0:0:hunter2").unwrap();
    std::os::unix::fs::symlink(&secret, folder.join(FILE)).unwrap();
    let error = Manifest::load(&folder).unwrap_err();
    assert_eq!(error.code(), "manifest_invalid");
    assert!(!error.to_string().contains("root"), "{error}");
    // A link within the folder, as in a volume of Kubernetes.
    std::fs::rename(&secret, folder.join("data")).unwrap();
    std::fs::remove_file(folder.join(FILE)).unwrap();
    std::os::unix::fs::symlink("data", folder.join(FILE)).unwrap();
    assert!(Manifest::load(&folder).unwrap_err().to_string().contains("root"));
}

#[test]
fn only_regular_files_of_a_limited_size_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let code = || Manifest::load(dir.path()).unwrap_err().code();
    assert_eq!(code(), "file_missing");
    std::fs::create_dir(&file).unwrap();
    assert_eq!(code(), "file_not_regular");
    std::fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    assert_eq!(code(), "file_not_regular");
    std::fs::remove_file(&file).unwrap();
    std::fs::File::create(&file).unwrap().set_len(MAX_MANIFEST_BYTES + 1).unwrap();
    assert_eq!(code(), "file_too_large");
}

#[test]
fn errors_name_the_file_and_the_line_or_key() {
    for (text, part) in [
        ("name = \"a\"\nversion = \"1\"\napi = \"0.1\"\ncolour = 5", "line 4"),
        ("name = \"a\"\nversion = \"1\"\napi = \"0.1\"\n[limits]\ndeadline = \"5\"", "\"250ms\""),
        ("name = \"a\"\nversion = \"1\"\napi = \"0.1\"\nfile = \"../x.wasm\"", "file: "),
        ("name = \"a\"\nversion = \"1\"\napi = \"0.1\"\n[limits]\ndeadline = \"101ms\"", "line 5"),
        ("name = \"a\"\nversion = \"1\"\napi = \"0.1\"\n[limits]\n\nmemory = \"257MiB\"", "line 6"),
        ("name = \"a\"", "missing field `version`"),
    ] {
        let error = load(text).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.code(), "manifest_invalid", "{text}");
        assert!(message.contains(part) && message.contains(FILE), "{text}: {message}");
    }
}

const WHOLE: &str = r#"
    name = "a"
    version = "1"
    api = "0.1"
    description = "d"
    [limits]
    deadline = "5ms"
    budget = "300us"
    memory = "16MiB"
    calls = 1
    [allow]
    fields = ["/a"]
    headers = ["x-a"]
    system = true
    model = true
    body = true
    priority = [-1, 1]
    metrics = ["m"]
    interfaces = ["state"]
    [hooks]
    tick = "30s"
"#;

#[test]
fn complete_manifest_is_parsed() {
    let manifest = load(WHOLE).unwrap();
    assert_eq!(manifest.limits.budget, Some(Duration::from_micros(300)));
    assert_eq!(
        (manifest.limits.calls, manifest.hooks.tick),
        (Some(1), Some(Duration::from_secs(30)))
    );
    assert_eq!(manifest.interfaces(), ["state"]);
    assert!(manifest.allow().body && manifest.allow().priority == (-1, 1));
    let unknown = load(&WHOLE.replace("[\"state\"]", "[\"clock\"]")).unwrap_err();
    assert!(
        matches!(unknown.problem(), ManifestProblem::UnknownInterface(name) if name == "clock"),
        "{unknown}"
    );
}
