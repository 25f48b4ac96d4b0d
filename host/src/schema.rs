//! `pointsman schema`: JSON Schemas of the files that people write, for editors.

use anyhow::{Context as _, Result};

use crate::cli::SchemaKind;
use crate::output::print;

/// Prints the schema of a kind of file.
pub(crate) fn print_schema(kind: SchemaKind) -> Result<()> {
    print(&schema(kind)?)
}

fn schema(kind: SchemaKind) -> Result<String> {
    let schema = match kind {
        SchemaKind::Config => pointsman_config::schema().context("invalid document")?,
        SchemaKind::Policy => pointsman_policy::manifest_schema(),
        SchemaKind::Scenario => pointsman_simulate::schema().context("invalid document")?,
        SchemaKind::Case => pointsman_policy::case_schema(),
    };
    Ok(format!("{schema:#}\n"))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn committed_schemas_are_current() {
        for kind in SchemaKind::value_variants() {
            let name = kind.to_possible_value().unwrap();
            let name = name.get_name();
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schemas");
            let file = format!("{dir}/{name}.schema.json");
            let committed = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(
                committed == schema(*kind).unwrap(),
                "{file} is old: write what `pointsman schema {name}` prints"
            );
        }
    }
}
