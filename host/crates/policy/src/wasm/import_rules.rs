//! What a component for a contract may import and must export, and the compatibility rules of the
//! versions of contracts.

use crate::wasm::error::ComponentError;

/// A contract between the host and a kind of guest: a package of interfaces in WIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImportRules {
    /// The package, with a trailing slash.
    pub(crate) package: &'static str,
    /// The name of the contract in messages.
    pub(crate) title: &'static str,
    /// The newest version of each track that this host implements.
    pub(crate) versions: &'static [&'static str],
    /// The name of a component for it in messages.
    pub(crate) guest: &'static str,
    /// Interfaces that a component has to export.
    pub(crate) exports: &'static [&'static str],
    /// Another namespace that a component may import from.
    pub(crate) extra_namespace: Option<&'static str>,
}

impl ImportRules {
    /// Returns an error if a component may not import the interface `import`.
    pub(crate) fn check_import(&self, import: &str) -> Option<ComponentError> {
        if import.starts_with(self.package) {
            return self.check_version(import);
        }
        match self.extra_namespace {
            None => Some(ComponentError::ForbiddenImport(import.to_owned())),
            Some(namespace) if import.starts_with(namespace) => None,
            Some(_) => Some(ComponentError::MiddlewareImport(import.to_owned())),
        }
    }

    /// Returns an error if this host does not implement the version of the interface `name`. Within
    /// a track, a later version may have functions that an earlier one lacks.
    pub(crate) fn check_version(&self, name: &str) -> Option<ComponentError> {
        let version = name.split_once('@').map_or("", |(_, version)| version);
        let name = name.to_owned();
        let served = self.versions.join(" and ");
        let Some(required) = Version::parse(version) else {
            return Some(ComponentError::UnservedVersion { name, contract: self.title, served });
        };
        let served_versions = || self.versions.iter().filter_map(|version| Version::parse(version));
        if served_versions().any(|ours| ours.track() == required.track() && ours >= required) {
            None
        } else if served_versions().all(|ours| ours < required)
            || served_versions().any(|ours| ours.track() == required.track())
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

    /// Returns the track: the first number that is not zero, and its position (semver). Versions of
    /// a track are compatible with earlier ones.
    fn track(self) -> (usize, u64) {
        let position = self.0.iter().position(|number| *number != 0).unwrap_or(2);
        (position, self.0[position])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Support {
        Served,
        Newer,
        Unserved,
    }
    use Support::{Newer, Served, Unserved};

    #[test]
    fn version_serves_earlier_ones_of_its_track() {
        let contract = ImportRules {
            package: "pointsman:policy/",
            title: "policy API",
            versions: &["0.1.3", "0.3.0", "1.2.0"],
            guest: "policy",
            exports: &[],
            extra_namespace: None,
        };
        for (version, expected) in [
            ("0.1.0", Served),
            ("0.1.3", Served),
            ("0.3.0", Served),
            ("1.0.9", Served),
            ("1.2.0", Served),
            ("0.1.4", Newer),
            ("0.1.10", Newer),
            ("0.3.1", Newer),
            ("1.10.0", Newer),
            ("2.0.0", Newer),
            ("0.0.9", Unserved),
            ("0.2.0", Unserved),
            ("0.1", Unserved),
            ("0.1.0-rc.1", Unserved),
            ("0.1.0.0", Unserved),
            ("18446744073709551616.0.0", Unserved),
            ("x", Unserved),
            ("", Unserved),
        ] {
            let found = match contract.check_version(&format!("pointsman:policy/request@{version}"))
            {
                None => Served,
                Some(ComponentError::NewerVersion { .. }) => Newer,
                Some(ComponentError::UnservedVersion { .. }) => Unserved,
                Some(error) => panic!("{version}: {error}"),
            };
            assert_eq!(found, expected, "{version}");
        }
        assert!(contract.check_version("pointsman:policy/request").is_some());
    }
}
