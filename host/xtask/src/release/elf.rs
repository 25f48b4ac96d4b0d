//! What a binary requires of the system.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::output;

/// Libraries that the binary may need: those of the C library and the unwinder of GCC, which every
/// distribution with glibc has. Compared up to `.so`.
const ALLOWED: [&str; 4] = ["ld-linux", "libc", "libgcc_s", "libm"];

/// The shared libraries of a binary, and the version of glibc.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Requirements {
    libraries: BTreeSet<String>,
    /// Major and minor version of the oldest glibc that has all symbols.
    glibc: (u32, u32),
}

impl Requirements {
    /// Reads the requirements of a binary.
    ///
    /// # Errors
    /// If it is not an ELF file, or needs other libraries than those of every glibc system.
    pub(super) fn read(binary: &Path) -> Result<Self> {
        let readelf = |option: &str| {
            output(Command::new("readelf").env("LC_ALL", "C").args(["-W", option]).arg(binary))
                .with_context(|| format!("`readelf {option} {}` failed", binary.display()))
        };
        let requirements = Self::parse(&readelf("--dynamic")?, &readelf("--version-info")?);
        for library in &requirements.libraries {
            let is_allowed = ALLOWED.iter().any(|name| {
                library.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', '-']))
            });
            if !is_allowed {
                bail!("unexpected shared library {library}; expected {}", ALLOWED.join(", "));
            }
        }
        Ok(requirements)
    }

    /// Reads the output of readelf's `--dynamic` and `--version-info`.
    fn parse(dynamic: &str, versions: &str) -> Self {
        let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
        let libraries = needed
            .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
            .collect();
        let numbers = versions.split_whitespace().filter_map(|word| {
            let mut parts = word.strip_prefix("GLIBC_")?.split('.');
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        });
        Self { libraries, glibc: numbers.max().unwrap_or_default() }
    }

    /// Returns the version of glibc, for example `2.34`.
    pub(super) fn glibc(&self) -> String {
        format!("{}.{}", self.glibc.0, self.glibc.1)
    }
}

impl fmt::Display for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let libraries = self.libraries.iter().map(String::as_str).collect::<Vec<_>>();
        write!(f, "glibc {} or newer: {}", self.glibc(), libraries.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_symbol_decides_the_version() {
        let dynamic = " 0x1 (NEEDED)   Shared library: [libm.so.6]\n\
                       0x1 (NEEDED)   Shared library: [libc.so.6]\n 0x1e (FLAGS) BIND_NOW\n";
        let versions = "0x10: Name: GLIBC_2.9  Flags: none\n0x20: Name: GLIBC_2.34  Flags: none\n\
                        0x30: Name: GLIBC_2.2.5\n0x40: Name: GCC_3.0\n";
        let found = Requirements::parse(dynamic, versions);
        assert_eq!(found.glibc(), "2.34");
        assert_eq!(found.to_string(), "glibc 2.34 or newer: libc.so.6, libm.so.6");
    }

    #[test]
    fn file_that_is_not_elf_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#!/bin/sh\n").unwrap();
        assert!(Requirements::read(file.path()).is_err());
    }
}
