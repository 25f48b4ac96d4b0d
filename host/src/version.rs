//! What `pointsman --version` says.

use std::sync::LazyLock;

/// The exact version of wasmtime in `Cargo.lock`, which no crate tells at run time; a test compares
/// them.
const WASMTIME: &str = "48.0.8";

/// Returns version, commit and wasmtime's version, one a line; the first line is that of
/// `pointsman -V`, for scripts.
///
/// The commit is set by the builds of packages, and not read from Git: otherwise each commit would
/// have the binary linked again.
pub(crate) fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("POINTSMAN_COMMIT").unwrap_or("unknown");
        format!("{}\ncommit {commit}\nwasmtime {WASMTIME}", env!("CARGO_PKG_VERSION"))
    });
    &LONG
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn wasmtime_is_the_locked_one() {
        let manifest = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        let lock = std::fs::read_to_string(Path::new(&manifest).join("../Cargo.lock")).unwrap();
        let entry = "name = \"wasmtime\"\nversion = \"";
        let versions: Vec<&str> =
            lock.split(entry).skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(versions, [WASMTIME]);
    }

    #[test]
    fn scripts_find_the_version_in_the_first_line() {
        let long = long();
        let lines: Vec<&str> = long.lines().collect();
        assert_eq!(lines[0], env!("CARGO_PKG_VERSION"));
        assert!(lines[1].starts_with("commit "), "{long}");
        assert_eq!(lines[2], format!("wasmtime {WASMTIME}"));
        assert_eq!(lines.len(), 3);
    }
}
