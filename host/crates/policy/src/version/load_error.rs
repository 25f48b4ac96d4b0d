//! Why a policy is not put into service.

use crate::cases::CaseError;
use crate::component::ComponentError;
use crate::manifest::ManifestError;

/// Why a policy is not put into service.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file is not there.
    #[error("{file} is missing")]
    Missing {
        /// The file.
        file: String,
    },
    /// A file cannot be read, or is not what it should be.
    #[error("{file}: {what}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// Its component is none that can be used.
    #[error("{file}: {error}")]
    Component {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: ComponentError,
    },
    /// It failed in its first calls.
    #[error("the policy failed when it was {doing}: {what}")]
    FirstCall {
        /// What was being done.
        doing: &'static str,
        /// What happened.
        what: String,
    },
    /// It is not what its manifest says.
    #[error("the manifest says {manifest}, and the component says {component}")]
    Description {
        /// Name and version in the manifest.
        manifest: String,
        /// Name and version in the component.
        component: String,
    },
    /// It does not decide as its golden cases say.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// It was taken out of service before, and has not changed.
    #[error(
        "version {version} was set aside: {reason}; change the policy, or promote that version"
    )]
    SetAside {
        /// The version.
        version: String,
        /// Why.
        reason: String,
    },
}
