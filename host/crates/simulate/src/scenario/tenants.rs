//! `[[tenants]]`: the weights of tenants.

use std::collections::BTreeMap;

use pointsman_settings::{Code, Section};

/// Reads the weights of tenants, by name.
pub(super) fn read(root: &Section<'_>) -> BTreeMap<String, u32> {
    let mut weights = BTreeMap::new();
    for section in root.sections("tenants") {
        let weight = section.integer("weight", 1..=1000, 1);
        let name = section.required_string("name", "\"acme\"");
        if let Some(name) = name
            && weights.insert(name.to_owned(), weight).is_some()
        {
            let message = format!("another tenant has the name \"{name}\"");
            section.error_at("name", Code::Duplicate.with(message));
        }
        section.report_unknown();
    }
    weights
}
