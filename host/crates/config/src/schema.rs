//! The JSON Schema of a configuration, for editors. It is made from what the reader asks for, and
//! is looser than the reader: it knows keys, types, ranges and choices, but not how values depend
//! on each other.

use std::path::Path;

use pointsman_fleet::DRIVERS;
use pointsman_settings::{Shape, shape};
use serde_json::{Value, json};

use crate::read;

/// A document with every table but those of engines.
const TABLES: &str = r#"
server = { tls = {}, cors = {} }
listeners = [{ tls = {}, cors = {} }]
log = {}
queue = {}
switching = {}
access = { tokens = {} }
state = {}
responses = {}
usage = {}
records = { queue = {}, redact = {} }
admin = {}
conversations = {}
policies = { signers = [{}], chain = [{ canary = {}, probation = {} }] }
keys = [{ engine-admin = true }]
groups = [{}]
models = [{}]
guards = [{ when = {}, min-priority = 0, max-priority = 0 }]
registries = [{}]
pick = { hosts = [{}] }
lanes = [{ liveness = {}, timeouts = {}, unload-after = "1s", engine = { driver = "external" } }]
"#;

/// Keys that are only read if they are there.
const VALUES: &str = r#"
server.listen = "127.0.0.1:1"
listeners = [{ address = "127.0.0.1:2" }]
switching.drain-timeout = "1s"
[[groups]]
name = "g"
memory = "2GiB"
[[lanes]]
group = "g"
memory = "1GiB"
sleep-memory = "1GiB"
unload-after = "1s"
engine = { driver = "vllm", model = "m" }
"#;

/// Returns the schema, of draft 7.
///
/// # Errors
/// If a document of this module is not valid TOML: an error of the program.
pub fn schema() -> Result<Value, toml::de::Error> {
    let read = |document: &str| shape(document, true, |root| read(root, Path::new("p.toml")));
    // The root lacks `lanes` in the empty document only.
    let mut schema = read("")?
        .with(read(TABLES)?)
        .with(read(VALUES)?)
        // One of two keys is required.
        .optional("keys[]", "env")
        // Only required by some of the other keys.
        .optional("records", "dir")
        .schema("");
    let mut engines = Vec::new();
    for driver in DRIVERS {
        let document = |keys: &str| {
            let engine = format!("driver = {:?}\nbackoff = {{}}\n{keys}", driver.key);
            read(&format!("[[lanes]]\n[lanes.engine]\n{engine}"))
        };
        // A command line of the operator takes the place of other keys.
        let shape: Shape = document("")?.or(document("command = []")?);
        let mut engine = shape.schema("lanes[].engine");
        let own = json!({ "const": driver.key });
        // As a reference, it may be any driver.
        let reference = json!({ "type": "string", "pattern": r"\$\{" });
        engine["properties"]["driver"] = json!({ "anyOf": [own, reference] });
        engines.push(engine);
    }
    let engine = json!({ "type": "object", "required": ["driver"], "anyOf": engines });
    schema["properties"]["lanes"]["items"]["properties"]["engine"] = engine;
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Configuration of Pointsman");
    Ok(schema)
}
