//! Fuzzing of TOML files that people write.

use pointsman_fuzz::Fuzz;

use crate::{Override, read};

/// Every error has a line of the file, and a file without errors has the keys that any reader of
/// TOML finds, after an override too.
#[test]
fn toml_files() {
    let fuzz = Fuzz::new("toml_files").files("examples", ".toml").files("policies", ".toml");
    fuzz.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let keys = |overrides: &[Override]| read(text, overrides, |root| Some(root.keys().len()));
        let found = match keys(&[]) {
            Ok(found) => found,
            Err(errors) => {
                assert!(!errors.is_empty());
                let lines = text.lines().count() + 1;
                assert!(errors.iter().all(|error| error.line <= lines), "{errors:?}");
                return false;
            }
        };
        // Integers of any size are TOML, and rejected only when the key is read.
        let Ok(table) = text.parse::<toml::Table>() else { return true };
        assert_eq!(found, table.len());
        // The path of an override has no quotes: a key with other characters cannot be overridden.
        let bare = |key: &&String| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let path = table.keys().find(bare).map_or("new", |key| key.as_str());
        if let Ok(over) = Override::key(path, "1") {
            let added = usize::from(!table.contains_key(path));
            assert_eq!(keys(&[over]).ok(), Some(found + added));
        }
        true
    });
}
