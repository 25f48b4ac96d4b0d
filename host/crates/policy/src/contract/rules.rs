//! The contracts that a component may implement.

use crate::contract_version::{PACKAGE, VERSION};
use crate::wasm::import_rules::ImportRules;

/// The interfaces that a policy has to export.
const REQUIRED_EXPORTS: [&str; 2] = ["lifecycle", "on-request"];

/// The contract of policies.
pub(crate) const POLICY: ImportRules = ImportRules {
    package: PACKAGE,
    title: "policy API",
    versions: &[VERSION],
    guest: "policy",
    exports: &REQUIRED_EXPORTS,
    extra_namespace: None,
};

/// The contract of vLLM Router's middlewares.
pub(crate) const MIDDLEWARE: ImportRules = ImportRules {
    package: "vllm:router-middleware/",
    title: "vLLM Router's middleware API",
    versions: &["0.1.0"],
    guest: "vLLM Router middleware",
    exports: &["on-request"],
    extra_namespace: Some("wasi:"),
};
