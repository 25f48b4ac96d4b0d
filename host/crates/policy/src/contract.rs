//! The contracts that a component may be written for, and the rules of their versions.

use crate::abi::{PACKAGE, REQUIRED_EXPORTS, VERSION};
use crate::component::ComponentError;

/// A contract between the host and a kind of guest: a package of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contract {
    /// The package, and the slash behind it.
    pub(crate) package: &'static str,
    /// What people call it.
    pub(crate) title: &'static str,
    /// The newest version of each track that this host serves.
    pub(crate) versions: &'static [&'static str],
    /// What people call a component for it.
    pub(crate) guest: &'static str,
    /// Interfaces that a component for it has to export.
    pub(crate) exports: &'static [&'static str],
    /// Another namespace that it may import from.
    pub(crate) beside: Option<&'static str>,
}

/// Our own.
pub(crate) const POLICY: Contract = Contract {
    package: PACKAGE,
    title: "policy API",
    versions: &[VERSION],
    guest: "policy",
    exports: &REQUIRED_EXPORTS,
    beside: None,
};

/// That of vLLM Router's middleware.
pub(crate) const MIDDLEWARE: Contract = Contract {
    package: "vllm:router-middleware/",
    title: "vLLM Router's middleware API",
    versions: &["0.1.0"],
    guest: "vLLM Router middleware",
    exports: &["on-request"],
    beside: Some("wasi:"),
};

impl Contract {
    /// Why a component may not import this.
    pub(crate) fn forbidden(&self, import: &str) -> Option<ComponentError> {
        if import.starts_with(self.package) {
            return self.unserved(import);
        }
        match self.beside {
            None => Some(ComponentError::ForbiddenImport(import.to_owned())),
            Some(beside) if import.starts_with(beside) => None,
            Some(_) => Some(ComponentError::MiddlewareImport(import.to_owned())),
        }
    }

    /// Why the version of this name is none that we serve. Within a track, a later version may have what we do not.
    pub(crate) fn unserved(&self, name: &str) -> Option<ComponentError> {
        let version = name.split_once('@').map_or("", |(_, version)| version);
        let name = name.to_owned();
        let served = self.versions.join(" and ");
        let Some(theirs) = Version::parse(version) else {
            return Some(ComponentError::UnservedVersion { name, contract: self.title, served });
        };
        let ours = || self.versions.iter().filter_map(|version| Version::parse(version));
        if ours().any(|ours| ours.track() == theirs.track() && ours >= theirs) {
            None
        } else if ours().all(|ours| ours < theirs)
            || ours().any(|ours| ours.track() == theirs.track())
        {
            Some(ComponentError::NewerVersion { name, contract: self.title, served })
        } else {
            Some(ComponentError::UnservedVersion { name, contract: self.title, served })
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version([u64; 3]);

impl Version {
    fn parse(version: &str) -> Option<Self> {
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        let parsed = Self([numbers.next()??, numbers.next()??, numbers.next()??]);
        numbers.next().is_none().then_some(parsed)
    }

    /// Versions of one track can stand for earlier ones: the first number that is not zero, and its place (semver).
    fn track(self) -> (usize, u64) {
        let place = self.0.iter().position(|number| *number != 0).unwrap_or(2);
        (place, self.0[place])
    }
}

#[cfg(test)]
mod tests {
    use super::{Contract, POLICY};

    #[test]
    fn a_version_serves_earlier_ones_of_its_track() {
        let contract = Contract { versions: &["0.1.3", "0.3.0", "1.2.0"], ..POLICY };
        for (version, sentence) in [
            ("0.1.0", ""),
            ("0.1.3", ""),
            ("0.3.0", ""),
            ("1.0.9", ""),
            ("1.2.0", ""),
            ("0.1.4", "use a newer host"),
            ("0.1.10", "use a newer host"),
            ("0.3.1", "use a newer host"),
            ("1.10.0", "use a newer host"),
            ("2.0.0", "use a newer host"),
            ("0.0.9", "which this host does not serve"),
            ("0.2.0", "which this host does not serve"),
            ("0.1", "which this host does not serve"),
            ("0.1.0-rc.1", "which this host does not serve"),
            ("0.1.0.0", "which this host does not serve"),
            ("18446744073709551616.0.0", "which this host does not serve"),
            ("x", "which this host does not serve"),
            ("", "which this host does not serve"),
        ] {
            let error = contract.unserved(&format!("pointsman:policy/request@{version}"));
            let said = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(
                if sentence.is_empty() { said.is_empty() } else { said.contains(sentence) },
                "{version}: {said}"
            );
        }
        assert!(contract.unserved("pointsman:policy/request").is_some());
    }
}
