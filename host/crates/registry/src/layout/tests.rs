use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::tests::artifact;

fn parsed(manifest: &Value) -> Result<Manifest, LayoutError> {
    Manifest::parse(manifest.to_string().as_bytes())
}

fn manifest() -> Value {
    serde_json::from_slice(&artifact("1.0.0").pack().unwrap().manifest).unwrap()
}

#[test]
fn artifact_has_one_layer_and_the_config_of_components() {
    let artifact = artifact("1.0.0");
    let packed = artifact.pack().unwrap();
    let manifest: Value = serde_json::from_slice(&packed.manifest).unwrap();
    let layer = digest(&artifact.component).to_string();
    assert_eq!(
        manifest,
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.wasm.config.v0+json",
                "digest": digest(&packed.config).to_string(),
                "size": packed.config.len(),
            },
            "layers": [{
                "mediaType": "application/wasm",
                "digest": layer,
                "size": artifact.component.len(),
                "annotations": { "org.opencontainers.image.title": "policy.wasm" },
            }],
            "annotations": {
                "org.opencontainers.image.title": "p",
                "org.opencontainers.image.version": "1.0.0",
            },
        })
    );
    let config: Value = serde_json::from_slice(&packed.config).unwrap();
    for (pointer, expected) in [
        ("/architecture", json!("wasm")),
        ("/os", json!("wasip2")),
        ("/layerDigests", json!([layer])),
        ("/component/imports", json!(["pointsman:policy/host@0.1.0"])),
        ("/component/exports", json!(["pointsman:policy/router@0.1.0"])),
        ("/pointsman/files/policy.toml", json!("name = \"p\"\nversion = \"1.0.0\"\n")),
    ] {
        assert_eq!(config.pointer(pointer), Some(&expected), "{pointer}");
    }
    assert!(config["created"].is_string());
}

#[test]
fn equal_artifacts_have_equal_digests_and_are_unpacked_as_they_were() {
    let artifact = artifact("1.0.0");
    let packed = artifact.pack().unwrap();
    assert_eq!(packed.manifest, artifact.pack().unwrap().manifest);
    let manifest = Manifest::parse(&packed.manifest).unwrap();
    let unpacked = manifest.unpack(&packed.config, artifact.component.clone()).unwrap();
    assert_eq!(unpacked, artifact);
}

#[test]
fn manifests_of_other_artifacts_are_rejected() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = manifest();
        change(&mut manifest);
        parsed(&manifest).map(drop)
    };
    with(&|manifest| manifest["other"] = json!(1)).unwrap();
    assert!(matches!(
        with(&|manifest| manifest["mediaType"] = json!("application/vnd.oci.image.index.v1+json")),
        Err(LayoutError::ManifestType(_))
    ));
    let image = json!("application/vnd.oci.image.config.v1+json");
    assert!(matches!(
        with(&|manifest| manifest["config"]["mediaType"] = image.clone()),
        Err(LayoutError::ConfigType(_))
    ));
    let two = |manifest: &mut Value| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"].as_array_mut().unwrap().push(layer);
    };
    assert!(matches!(with(&two), Err(LayoutError::Layers(_))));
    assert!(matches!(
        with(&|manifest| manifest["layers"] = json!([])),
        Err(LayoutError::Layers(_))
    ));
    assert!(matches!(
        with(&|manifest| manifest["layers"][0]["mediaType"] = json!("application/x-tar")),
        Err(LayoutError::Layers(_))
    ));
    assert!(matches!(
        with(&|manifest| manifest["layers"][0]["digest"] = json!("sha256:../..")),
        Err(LayoutError::Json { .. })
    ));
    assert!(matches!(
        with(&|manifest| manifest["layers"][0]["size"] = json!(-1)),
        Err(LayoutError::Json { .. })
    ));
}

#[test]
fn configs_of_other_artifacts_are_rejected() {
    let artifact = artifact("1.0.0");
    let packed = artifact.pack().unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut config: Value = serde_json::from_slice(&packed.config).unwrap();
        change(&mut config);
        let manifest = Manifest::parse(&packed.manifest).unwrap();
        manifest.unpack(config.to_string().as_bytes(), artifact.component.clone()).map(drop)
    };
    with(&|config| config["component"] = Value::Null).unwrap();
    assert!(matches!(
        with(&|config| config["pointsman"] = Value::Null),
        Err(LayoutError::NoManifest)
    ));
    assert!(matches!(
        with(&|config| config["pointsman"]["files"] = json!({"cases.jsonl": ""})),
        Err(LayoutError::NoManifest)
    ));
    assert!(matches!(
        with(&|config| config["layerDigests"] = json!([digest(b"other").to_string()])),
        Err(LayoutError::LayerDigest)
    ));
    let many = |config: &mut Value| {
        (0..MAX_FILES).for_each(|n| config["pointsman"]["files"][format!("f{n}")] = json!(""));
    };
    assert!(matches!(with(&many), Err(LayoutError::TooManyFiles)));
    for name in ["../policy.sig", "a/b", "", ".hidden", "..", "a\0b", "policy.wasm", "ä"] {
        let add = |config: &mut Value| config["pointsman"]["files"][name] = json!("");
        assert!(matches!(with(&add), Err(LayoutError::Name(found)) if found == name), "{name:?}");
    }
}

proptest! {
    #[test]
    fn names_that_are_accepted_stay_in_their_folder(name in "\\PC{0,12}|[./a]{0,6}") {
        let files = BTreeMap::from([
            (POLICY_MANIFEST.to_owned(), String::new()),
            (name.clone(), String::new()),
        ]);
        if check_names("policy.wasm", &files).is_ok() {
            let path = std::path::Path::new("folder").join(&name);
            prop_assert_eq!(path.parent(), Some(std::path::Path::new("folder")));
            prop_assert_eq!(path.file_name().and_then(|found| found.to_str()), Some(&*name));
        }
    }
}
