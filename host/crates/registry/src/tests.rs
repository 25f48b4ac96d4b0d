//! Tests with a registry in this process, which may be hostile.

mod fake;
mod hostile;
mod pulling;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::layout::Artifact;

/// Returns a policy `p`.
pub(crate) fn artifact(version: &str) -> Artifact {
    let manifest = format!("name = \"p\"\nversion = \"{version}\"\n");
    Artifact {
        name: "p".to_owned(),
        version: version.to_owned(),
        component_name: "policy.wasm".to_owned(),
        component: Bytes::from_static(b"\0asm\x0d\0\x01\0"),
        files: BTreeMap::from([("policy.toml".to_owned(), manifest)]),
        imports: vec!["pointsman:policy/host@0.1.0".to_owned()],
        exports: vec!["pointsman:policy/router@0.1.0".to_owned()],
    }
}
