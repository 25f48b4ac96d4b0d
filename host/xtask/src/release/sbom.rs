//! The software bill of materials, in CycloneDX 1.6.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use pointsman_xtask::command::{cargo, output};
use pointsman_xtask::sha256;
use serde_json::{Value, json};

use super::source::Source;
use super::tree::read;
use crate::dist::FEATURES;

/// Name and version of a crate.
type Crate = (String, String);

/// Returns the bill of materials of a binary and the policies: all crates that cargo builds for it,
/// with their licences, checksums and dependencies, in alphabetical order.
pub(super) fn sbom(root: &Path, source: &Source, binary: &Path) -> Result<String> {
    let linked = crates(root, "normal")?;
    let all = crates(root, "normal,build")?;
    let metadata = metadata(root)?;
    let checksums = checksums(&read(&root.join("Cargo.lock"))?)?;
    let (mut components, mut ids) = (Vec::new(), BTreeMap::new());
    let mut packages: Vec<(Crate, &Value)> =
        array(&metadata["packages"]).map(|package| (name_of(package), package)).collect();
    packages.retain(|(name, _)| all.contains(name));
    packages.sort_by(|one, other| one.0.cmp(&other.0));
    for (name, package) in &packages {
        ids.insert(text(&package["id"]), name);
        // The product is the subject of the bill, and not a part of it.
        if name.0 != "pointsman" {
            components.push(component(name, package, linked.contains(name), checksums.get(name)));
        }
    }
    components.extend(policies(root)?);
    let sbom = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": source.date("+%Y-%m-%dT%H:%M:%SZ")?,
            "component": {
                "type": "application",
                "bom-ref": purl(&("pointsman".to_owned(), source.version.clone())),
                "name": "pointsman",
                "version": source.version,
                "hashes": hashes(&sha256(&std::fs::read(binary)?)),
                "licenses": [{ "expression": "Apache-2.0" }],
                "properties": [{ "name": "pointsman:commit", "value": source.commit }],
            },
        },
        "components": components,
        "dependencies": dependencies(&metadata, &ids),
    });
    Ok(format!("{sbom:#}\n"))
}

/// Returns the crates of the host on this architecture that are reached by these kinds of edges.
///
/// `cargo tree` resolves features as a build of the host alone does; those of `cargo metadata` are
/// the union over the workspace.
fn crates(root: &Path, edges: &str) -> Result<BTreeSet<Crate>> {
    let mut tree = cargo(root)?;
    tree.args(["tree", "--locked", "--package", "pointsman", "--features", FEATURES]);
    tree.args(["--edges", edges]);
    tree.args(["--target", &target(), "--prefix", "none", "--format", "{p}"]);
    let lines = output(&mut tree).context("`cargo tree` failed")?;
    let crates = lines.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" v")?;
        Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
    });
    Ok(crates.collect())
}

fn metadata(root: &Path) -> Result<Value> {
    let mut metadata = cargo(root)?;
    metadata.args(["metadata", "--locked", "--format-version", "1", "--features", FEATURES]);
    metadata.arg("--filter-platform").arg(target());
    let json = output(&mut metadata).context("`cargo metadata` failed")?;
    serde_json::from_str(&json).context("the output of `cargo metadata`")
}

fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Returns the checksums of the archives of crates in the registry.
fn checksums(lock: &str) -> Result<BTreeMap<Crate, String>> {
    let lock: toml::Table = lock.parse().context("Cargo.lock")?;
    let packages = lock["package"].as_array().into_iter().flatten();
    let checksums = packages.filter_map(|package| {
        let field = |name: &str| Some(package.get(name)?.as_str()?.to_owned());
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    Ok(checksums.collect())
}

fn component(name: &Crate, package: &Value, is_linked: bool, checksum: Option<&String>) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": purl(name),
        "name": name.0,
        "version": name.1,
        "purl": purl(name),
        // What only runs while the host is built is not part of it.
        "scope": if is_linked { "required" } else { "excluded" },
    });
    if let Some(checksum) = checksum {
        component["hashes"] = hashes(checksum);
    }
    if let Some(license) = package["license"].as_str() {
        // Old crates separate alternatives by a slash.
        let expression = license.replace(" / ", "/").replace('/', " OR ");
        component["licenses"] = json!([{ "expression": expression }]);
    }
    component
}

/// Returns the policies that are shipped. The crates that they are made of are not listed.
fn policies(root: &Path) -> Result<Vec<Value>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root.join("policies"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let component = |name: &String| {
        let path = format!("policies/{name}/policy.wasm");
        let content = std::fs::read(root.join(&path)).with_context(|| path.clone())?;
        let hashes = hashes(&sha256(&content));
        Ok(json!({ "type": "file", "bom-ref": path, "name": path, "hashes": hashes }))
    };
    names.iter().map(component).collect()
}

/// Returns what each crate needs, as far as it is part of the build.
fn dependencies(metadata: &Value, ids: &BTreeMap<&str, &Crate>) -> Vec<Value> {
    let mut dependencies = BTreeMap::new();
    for node in array(&metadata["resolve"]["nodes"]) {
        let Some(name) = ids.get(text(&node["id"])) else { continue };
        // Dependencies of tests are not part of the build.
        let used = array(&node["deps"])
            .filter(|dep| array(&dep["dep_kinds"]).any(|kind| kind["kind"] != "dev"));
        let needs: BTreeSet<String> =
            used.filter_map(|dep| ids.get(text(&dep["pkg"]))).map(|name| purl(name)).collect();
        dependencies.insert(purl(name), needs);
    }
    let entry = |(name, needs)| json!({ "ref": name, "dependsOn": needs });
    dependencies.into_iter().map(entry).collect()
}

fn hashes(sha256: &str) -> Value {
    json!([{ "alg": "SHA-256", "content": sha256 }])
}

/// Returns the package URL of a crate.
fn purl((name, version): &Crate) -> String {
    // `+` of build metadata is reserved in such URLs.
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

fn name_of(package: &Value) -> Crate {
    (text(&package["name"]).to_owned(), text(&package["version"]).to_owned())
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
