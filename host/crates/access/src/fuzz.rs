//! Fuzzing of keys files.

use std::collections::HashSet;

use pointsman_fuzz::Fuzz;

use crate::{Definitions, KeySet};

const SMALL: &str = r#"
[[tenants]]
name = "acme"
weight = 3
limits = { tokens-per-minute = 200, budget = [{ period = "month", tokens = 5 }] }
[[groups]]
name = "staff"
shared-limits = { requests-per-minute = 600 }
[[groups]]
name = "interns"
parent = "staff"
models = ["coder", "fast_*"]
endpoints = ["chat-completions"]
listeners = ["127.0.0.1:8000"]
priority = { min = -10, max = 10 }
[[keys]]
id = "k_1"
hash = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
tenant = "acme"
group = "interns"
expires = "2027-01-01T00:00:00Z"
"#;

/// Every error has a line of the file, and an accepted file makes a set of keys with unique names.
#[test]
fn keys_files() {
    let fuzz = Fuzz::new("keys_files").input(SMALL);
    let words = ["hashes", "week", "engine-seconds", "messages", "unix:/a", "parent", "expires"];
    fuzz.words(&words).run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        match Definitions::parse(text) {
            Ok(definitions) => {
                let ids: HashSet<&str> =
                    definitions.keys.iter().map(|key| key.id.as_str()).collect();
                assert_eq!(ids.len(), definitions.keys.len());
                assert!(definitions.keys.iter().all(|key| !key.hashes.is_empty()));
                let set = KeySet::from_definitions(&definitions);
                assert!(!set.is_open());
                true
            }
            Err(errors) => {
                let lines = text.lines().count() + 1;
                assert!(!errors.is_empty());
                assert!(errors.iter().all(|error| (1..=lines).contains(&error.line)), "{errors:?}");
                false
            }
        }
    });
}
