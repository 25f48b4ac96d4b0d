//! What the files of a local model say about it.

use std::path::Path;

use pointsman_files::read_regular;
use serde_json::Value;

/// Maximum size of a file with the description of a model in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What the files of a local model say about it; nothing of a model on the hub.
#[derive(Debug, Default)]
pub(super) struct ModelFolder {
    /// The model reads images.
    pub(super) has_vision: bool,
    /// Names of its architecture.
    pub(super) architectures: Vec<String>,
    /// It is made for embeddings, also if its architecture is that of a model that generates text:
    /// the files are those of Sentence Transformers.
    pub(super) is_embedding: bool,
}

impl ModelFolder {
    pub(super) fn read(folder: &Path) -> Self {
        let json = |name: &str| {
            let file = read_regular(&folder.join(name), MAX_BYTES).ok()?;
            serde_json::from_slice::<Value>(&file).ok()
        };
        let Some(config) = json("config.json") else { return Self::default() };
        let names = config["architectures"].as_array().into_iter().flatten();
        let modules = json("modules.json");
        let modules = modules.as_ref().and_then(Value::as_array).into_iter().flatten();
        let is_pooling =
            |module: &Value| module["type"].as_str().is_some_and(|kind| kind.ends_with(".Pooling"));
        Self {
            has_vision: config.get("vision_config").is_some_and(|vision| !vision.is_null()),
            architectures: names.filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            is_embedding: modules.into_iter().any(is_pooling),
        }
    }
}
