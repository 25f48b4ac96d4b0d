//! Places that have to be written by hand for every function or field.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::wit::{Contract, camel, snake};

/// Files that have every member of some interfaces or records.
struct Place {
    files: &'static [&'static str],
    /// Interfaces and records.
    of: &'static [&'static str],
    /// Returns the texts of which one is in the line of a member.
    forms: fn(of: &str, member: &str) -> Vec<String>,
}

const HOST: [&str; 5] = ["request", "fleet", "log", "metrics", "state"];

const PLACES: [Place; 14] = [
    Place {
        files: &["host/crates/policy/src/contract/host_api.rs"],
        of: &["request", "fleet", "state"],
        forms: |_, member| vec![format!("fn {}(", snake(member))],
    },
    Place {
        files: &["host/crates/policy/src/contract/live_api.rs"],
        of: &["request", "fleet", "state"],
        forms: |_, member| vec![format!("fn {}(", snake(member))],
    },
    Place {
        files: &["host/crates/policy/src/contract/journal_api.rs"],
        of: &["request", "fleet", "state"],
        forms: |_, member| vec![format!("fn {}(", snake(member))],
    },
    Place {
        files: &["host/crates/policy/src/contract/v0_1/host_functions.rs"],
        of: &HOST,
        forms: |_, member| vec![format!("fn {}(", snake(member))],
    },
    Place {
        files: &["host/crates/policy/src/contract/v0_1/host_functions.rs"],
        of: &["message-info"],
        forms: |_, member| vec![format!("{}:", snake(member)), format!("{},", snake(member))],
    },
    Place {
        files: &["host/crates/policy/src/contract/v0_1/convert.rs"],
        of: &[
            "context",
            "lane-info",
            "lane-stat",
            "failure",
            "outcome",
            "attempt",
            "finished",
            "text-match",
        ],
        forms: |_, member| vec![format!("{}:", snake(member)), format!("{},", snake(member))],
    },
    Place {
        files: &["host/crates/domain/src/fleet_view.rs"],
        of: &["lane-info", "lane-stat"],
        forms: |_, member| vec![format!("pub {}:", snake(member))],
    },
    Place {
        files: &["plugins/sdk/rust/src/lib.rs"],
        of: &["request", "fleet"],
        forms: |_, member| vec![format!("fn {}(", snake(member))],
    },
    Place {
        files: &["plugins/sdk/rust/src/guest.rs"],
        of: &HOST,
        forms: |of, member| vec![format!("{of}::{}(", snake(member))],
    },
    Place {
        files: &["plugins/sdk/rust/src/testing/request.rs"],
        of: &["request"],
        forms: |_, member| vec![format!("fn {}(", snake(member))],
    },
    Place {
        files: &["plugins/sdk/rust/src/testing/fleet.rs"],
        of: &["fleet"],
        forms: |_, member| vec![format!("fn {}(", snake(member))],
    },
    Place {
        files: &["plugins/sdk/javascript/pointsman.d.ts"],
        of: &HOST,
        forms: |_, member| vec![format!("{}(", camel(member))],
    },
    Place {
        files: &["plugins/sdk/javascript/testing.js", "plugins/sdk/javascript/fakes.js"],
        of: &["request", "fleet", "log", "metrics", "state", "context", "lane-info"],
        forms: |_, member| {
            let member = camel(member);
            vec![format!(" {member}:"), format!(" {member},"), format!(" {member}(")]
        },
    },
    Place {
        files: &[
            "plugins/sdk/python/pointsman/testing.py",
            "plugins/sdk/python/pointsman/fakes.py",
        ],
        of: &["request", "fleet", "log", "metrics", "state", "context", "lane-info"],
        forms: |_, member| {
            let member = snake(member);
            vec![format!("def {member}("), format!(" {member} ="), format!(" {member}=")]
        },
    },
];

/// Returns the places that members of the contract lack, each with the line of its neighbour.
pub(crate) fn missing(root: &Path, contract: &Contract) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for place in &PLACES {
        let read = |file: &&str| fs::read_to_string(root.join(file)).context((*file).to_owned());
        let texts: Vec<String> = place.files.iter().map(read).collect::<Result<_>>()?;
        for of in place.of {
            // The place of a member is after its predecessor.
            let mut after = (place.files[0], 1);
            for member in members(contract, of)? {
                let forms = (place.forms)(of, &member);
                let has_member = |line: &str| {
                    forms.iter().any(|form| format!(" {line}").contains(form.as_str()))
                };
                let mut found = place.files.iter().zip(&texts).filter_map(|(file, text)| {
                    Some((*file, text.lines().position(has_member)? + 1))
                });
                match found.next() {
                    Some(place) => after = place,
                    None => missing.push(format!("{}:{}: {of}.{member}", after.0, after.1)),
                }
            }
        }
    }
    Ok(missing)
}

/// Returns the names of the functions of an interface, or of the fields of a record.
fn members(contract: &Contract, of: &str) -> Result<Vec<String>> {
    let interface = contract.interfaces().find(|interface| interface.name == of);
    Ok(match interface {
        Some(interface) => {
            interface.functions.iter().map(|function| function.name.clone()).collect()
        }
        None => contract.record(of)?.fields.iter().map(|(field, _)| field.clone()).collect(),
    })
}
