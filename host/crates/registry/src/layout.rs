//! The form of a policy as an artifact.
//!
//! It is the form of `wkg` and of the Wasm OCI artifacts of the CNCF: a manifest with one layer,
//! the component. Tools such as `wkg oci pull` refuse artifacts with more layers, or with layers of
//! other media types. So the other files, which are texts, are in the config, which those tools
//! read and of which they ignore members that they do not know. Everything is below one digest.

use std::collections::BTreeMap;

use bytes::Bytes;
use pointsman_spec::OciDigest;
use serde::{Deserialize, Serialize};

use crate::digest::digest;

/// The media type of the manifest.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of the config.
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// The media type of the component.
const LAYER_TYPE: &str = "application/wasm";
/// The annotation with the name of a file, or of the artifact.
const TITLE: &str = "org.opencontainers.image.title";
/// The annotation with the version of the artifact.
const VERSION: &str = "org.opencontainers.image.version";
/// The manifest of a policy, without which a component is not a policy.
const POLICY_MANIFEST: &str = "policy.toml";
/// The time at which artifacts were made, which readers expect: always the same,
/// so that equal files have equal digests.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Maximum size of a manifest in bytes.
pub(crate) const MAX_MANIFEST: usize = 1 << 20;
/// Maximum size of a config in bytes: the texts of a policy, of which golden cases may have 8 MiB,
/// as JSON.
pub(crate) const MAX_CONFIG: usize = 20 << 20;
/// Maximum size of a component in bytes.
pub(crate) const MAX_COMPONENT: usize = 32 << 20;
/// Maximum number of files besides the component.
const MAX_FILES: usize = 8;
/// Maximum length of the name of a file in bytes.
const MAX_NAME: usize = 128;

/// A policy as it is in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The name of the policy.
    pub name: String,
    /// The version in its manifest.
    pub version: String,
    /// The name of the component's file.
    pub component_name: String,
    /// The component.
    pub component: Bytes,
    /// The other files by name. All are texts.
    pub files: BTreeMap<String, String>,
    /// The interfaces that the component imports.
    pub imports: Vec<String>,
    /// The interfaces and functions that the component exports.
    pub exports: Vec<String>,
}

/// Why a manifest or config is not that of a policy.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// JSON that is not of the expected form.
    #[error("invalid {what}: {error}")]
    Json {
        /// What is invalid.
        what: &'static str,
        /// The error.
        error: serde_json::Error,
    },
    /// The manifest is of another media type, such as the index of an image.
    #[error("unexpected media type \"{0}\" of the manifest")]
    ManifestType(String),
    /// The config is of another media type.
    #[error("unexpected media type \"{0}\" of the config")]
    ConfigType(String),
    /// The artifact has not exactly one layer with a component.
    #[error("expected one layer of the type {LAYER_TYPE}, found {0}")]
    Layers(String),
    /// The config does not list the digest of the layer.
    #[error("the config belongs to another component")]
    LayerDigest,
    /// The artifact was not pushed as a policy.
    #[error("missing {POLICY_MANIFEST}; push it with `pointsman policy push`")]
    NoManifest,
    /// The name of a file may lead elsewhere, or is used twice.
    #[error("invalid name of a file: \"{0}\"")]
    Name(String),
    /// The artifact has too many files.
    #[error("more than {MAX_FILES} files")]
    TooManyFiles,
}

/// A manifest with what it refers to, ready to be pushed.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) manifest: Bytes,
    pub(crate) config: Bytes,
}

/// A reference to a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    schema_version: u32,
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigJson {
    created: String,
    author: Option<String>,
    architecture: String,
    os: String,
    layer_digests: Vec<String>,
    component: Option<ComponentJson>,
    pointsman: Option<PolicyJson>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct ComponentJson {
    #[serde(default)]
    exports: Vec<String>,
    #[serde(default)]
    imports: Vec<String>,
    target: Option<String>,
}

/// What tools for other components ignore.
#[derive(Debug, Serialize, Deserialize)]
struct PolicyJson {
    name: String,
    version: String,
    files: BTreeMap<String, String>,
}

/// A manifest that was read, whose blobs are still to be pulled.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Blob,
    pub(crate) layer: Blob,
    component_name: String,
}

/// A blob that a manifest refers to.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) what: &'static str,
    pub(crate) digest: OciDigest,
    /// Its size in bytes, as the manifest says.
    pub(crate) size: u64,
    /// Maximum size in bytes.
    pub(crate) max: usize,
}

impl Artifact {
    /// Makes the manifest and the config. Equal artifacts have equal ones.
    pub(crate) fn pack(&self) -> Result<Packed, LayoutError> {
        check_names(&self.component_name, &self.files)?;
        let layer = digest(&self.component).to_string();
        let config = ConfigJson {
            created: CREATED.to_owned(),
            author: None,
            architecture: "wasm".to_owned(),
            os: "wasip2".to_owned(),
            layer_digests: vec![layer.clone()],
            component: Some(ComponentJson {
                exports: self.exports.clone(),
                imports: self.imports.clone(),
                target: None,
            }),
            pointsman: Some(PolicyJson {
                name: self.name.clone(),
                version: self.version.clone(),
                files: self.files.clone(),
            }),
        };
        let to_json = |what| move |error| LayoutError::Json { what, error };
        let config = serde_json::to_vec(&config).map_err(to_json("config"))?;
        let manifest = ManifestJson {
            schema_version: 2,
            media_type: Some(MANIFEST_TYPE.to_owned()),
            config: Descriptor {
                media_type: CONFIG_TYPE.to_owned(),
                digest: digest(&config).to_string(),
                size: config.len() as u64,
                annotations: BTreeMap::new(),
            },
            layers: vec![Descriptor {
                media_type: LAYER_TYPE.to_owned(),
                digest: layer,
                size: self.component.len() as u64,
                annotations: BTreeMap::from([(TITLE.to_owned(), self.component_name.clone())]),
            }],
            annotations: BTreeMap::from([
                (TITLE.to_owned(), self.name.clone()),
                (VERSION.to_owned(), self.version.clone()),
            ]),
        };
        let manifest = serde_json::to_vec(&manifest).map_err(to_json("manifest"))?;
        Ok(Packed { manifest: manifest.into(), config: config.into() })
    }
}

impl Manifest {
    /// Reads a manifest.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, LayoutError> {
        let manifest: ManifestJson = serde_json::from_slice(bytes)
            .map_err(|error| LayoutError::Json { what: "manifest", error })?;
        if let Some(media_type) = manifest.media_type.filter(|found| found != MANIFEST_TYPE) {
            return Err(LayoutError::ManifestType(media_type));
        }
        if manifest.config.media_type != CONFIG_TYPE {
            return Err(LayoutError::ConfigType(manifest.config.media_type));
        }
        let [layer] = manifest.layers.as_slice() else {
            return Err(LayoutError::Layers(format!("{} layers", manifest.layers.len())));
        };
        if layer.media_type != LAYER_TYPE {
            return Err(LayoutError::Layers(format!("\"{}\"", layer.media_type)));
        }
        let component_name = layer.annotations.get(TITLE).map_or("policy.wasm", String::as_str);
        Ok(Self {
            config: blob("config", &manifest.config, MAX_CONFIG)?,
            layer: blob("component", layer, MAX_COMPONENT)?,
            component_name: component_name.to_owned(),
        })
    }

    /// Makes the artifact of the blobs, whose digests have been verified.
    pub(crate) fn unpack(self, config: &[u8], component: Bytes) -> Result<Artifact, LayoutError> {
        let config: ConfigJson = serde_json::from_slice(config)
            .map_err(|error| LayoutError::Json { what: "config", error })?;
        if config.layer_digests != [self.layer.digest.to_string()] {
            return Err(LayoutError::LayerDigest);
        }
        let PolicyJson { name, version, files } =
            config.pointsman.ok_or(LayoutError::NoManifest)?;
        check_names(&self.component_name, &files)?;
        let ComponentJson { exports, imports, target: _ } = config.component.unwrap_or_default();
        let component_name = self.component_name;
        Ok(Artifact { name, version, component_name, component, files, imports, exports })
    }
}

fn blob(what: &'static str, found: &Descriptor, max: usize) -> Result<Blob, LayoutError> {
    let digest = found.digest.parse().map_err(|error| LayoutError::Json {
        what: "manifest",
        error: serde::de::Error::custom(error),
    })?;
    Ok(Blob { what, digest, size: found.size, max })
}

/// Checks that all names are those of files in one folder, without which no artifact is written.
fn check_names(component: &str, files: &BTreeMap<String, String>) -> Result<(), LayoutError> {
    if files.len() > MAX_FILES {
        return Err(LayoutError::TooManyFiles);
    }
    if !files.contains_key(POLICY_MANIFEST) {
        return Err(LayoutError::NoManifest);
    }
    let is_plain = |name: &str| {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_known)
    };
    let mut names = files.keys().map(String::as_str).chain([component]);
    if let Some(name) = names.find(|name| !is_plain(name)) {
        return Err(LayoutError::Name(name.to_owned()));
    }
    if files.contains_key(component) {
        return Err(LayoutError::Name(component.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
