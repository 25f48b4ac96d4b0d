//! The JSON Schema of a scenario, for editors. It is made from what the reader asks for, and is
//! looser than the reader: it knows keys, types, ranges and choices, but not how values depend on
//! each other.

use std::path::Path;

use pointsman_settings::{Shape, shape};
use serde_json::{Value, json};

/// Keys that every document has.
const EMPTY: &str = "";
/// Every table, with the keys that are only read if they are there.
const TABLES: &str = r#"
seeds = 1
fleet = { queue = {}, switching = {}, groups = [{}], lanes = [{ unload-after = "1s" }] }
tenants = [{}]
policies = [{ canary = {}, probation = {} }]
variants = [{ policies = [] }]
[engines.default]
kv-tokens = 1
prefix-cache = true
hang-detection-time = "1s"
first-byte-timeout = "1s"
service-time = { first-token = 1 }
"#;
/// Forms of tables that exclude each other.
const FORMS: [&str; 13] = [
    "fleet = { config = \"p.toml\", set = {} }",
    "traffic = [{ rate = \"1/h\", model = \"m\", client-timeout = \"1s\" }]",
    "traffic = [{ daily = { peak = \"1/h\", trough = \"1/h\", peak-at = \"1:00\" }, models = {} }]",
    "traffic = [{ every = 1, tenants = 1, skew = 1 }]",
    "traffic = [{ bursts = {} }]",
    "traffic = [{ sessions = {}, turn-models = [] }]",
    "traffic = [{ sessions = { daily = {} } }]",
    "traffic = [{ sessions = { every = 1 } }]",
    "traffic = [{ sessions = { bursts = {} } }]",
    "traffic = [{ file = \"f\", format = \"azure\", speed = 1, limit = 1 }]",
    "failures = [{ lane = \"a\", at = \"1s\", kind = \"slow-load\" }]",
    "failures = [{ lanes = [], every = 1, kind = \"slowdown\" }]",
    "failures = [{ lane = \"a\", at = [\"1s\"], kind = \"crash\" }]",
];

/// Returns the schema, of draft 7.
///
/// # Errors
/// If a document of this module is not valid TOML: an error of the program.
pub fn schema() -> Result<Value, toml::de::Error> {
    let read = |document: &str| -> Result<Shape, toml::de::Error> {
        shape(document, false, |root| super::read(root, Path::new("s.toml")))
    };
    let mut all = read(EMPTY)?.with(read(TABLES)?).optional("", "traffic");
    for form in FORMS {
        all = all.or(read(form)?);
    }
    let mut schema = all.schema("");
    // All tables of `[engines]` have the same keys.
    let engines = &mut schema["properties"]["engines"];
    let lane = engines["properties"]["default"].clone();
    engines["additionalProperties"] = lane;
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Scenario of Pointsman");
    Ok(schema)
}
