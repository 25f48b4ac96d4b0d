//! The configuration that an import makes, and how it is written.

use pointsman_settings::escape_references;
use toml_edit::{Array, InlineTable, Value};

use super::kind::Kind;
use super::report::one_line;
use super::words::is_plain;

/// Memory of a group that only says which lanes take turns, in MiB. The sources do not say how much
/// memory their models need.
pub(crate) const GROUP_MIB: usize = 64 << 10;
/// Maximum length of the name of a lane in bytes.
const MAX_NAME: usize = 64;

/// Marks of references to variables, which are written as `${NAME}`. Any other `${` of a source is
/// text. They are of the private use area, and removed from sources.
const MARKS: [char; 2] = ['\u{f8f0}', '\u{f8f1}'];

/// Returns the mark of a reference to an environment variable, which may have a default after `:-`.
/// `None` if it is not the name of a variable.
pub(crate) fn reference(inner: &str) -> Option<String> {
    let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
    let is_name = !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_simple = is_plain(default) && !default.contains(['$', '{', '}']);
    let [open, close] = MARKS;
    (is_name && is_simple).then(|| format!("{open}{inner}{close}"))
}

/// Returns true for a text that begins with a reference, so that only the host knows what it is.
pub(crate) fn is_reference(text: &str) -> bool {
    text.starts_with(MARKS)
}

/// Removes the letters that mark references.
pub(crate) fn without_marks(text: &str) -> String {
    text.replace(MARKS, "")
}

/// Keys and values in the order in which they are written.
#[derive(Debug, Default, Clone)]
pub(crate) struct Table(Vec<(&'static str, Value)>);

impl Table {
    /// Sets a key, which keeps its place if it is there.
    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        let value = value.into();
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// Sets a key to a text in which `${` has no meaning.
    pub(crate) fn set_text(&mut self, key: &'static str, text: &str) {
        self.set(key, escape_references(text).as_ref());
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.0.retain(|(known, _)| *known != key);
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Appends words to a list.
    pub(crate) fn extend(&mut self, key: &'static str, words: impl IntoIterator<Item = String>) {
        let mut list = match self.get(key) {
            Some(Value::Array(list)) => list.clone(),
            _ => Array::new(),
        };
        list.extend(words.into_iter().map(|word| escape_references(&word).into_owned()));
        if !list.is_empty() {
            self.set(key, Value::Array(list));
        }
    }

    fn write(&self, toml: &mut String) {
        for (key, value) in &self.0 {
            let value = value.clone().decorated("", "");
            toml.push_str(&format!("{key} = {value}\n"));
        }
    }
}

/// A lane.
#[derive(Debug, Default, Clone)]
pub(crate) struct Lane {
    pub(crate) name: String,
    /// The names that clients use.
    pub(crate) models: Vec<String>,
    /// What the operator should know when reading the lane.
    pub(crate) comments: Vec<String>,
    pub(crate) settings: Table,
    pub(crate) engine: Table,
    /// Variables of the engine.
    env: Vec<(String, String)>,
}

impl Lane {
    /// Creates a lane that answers to `model`. Its name is made of the letters of `model` that a
    /// name may have.
    pub(crate) fn new(model: &str) -> Self {
        let clean = |letter: char| match letter {
            _ if letter.is_ascii_alphanumeric() => letter,
            '.' | '_' | '-' => letter,
            _ => '-',
        };
        let name: String = model.chars().map(clean).take(MAX_NAME).collect();
        let name = name.trim_matches('-');
        let mut lane = Self {
            name: if name.is_empty() { "lane" } else { name }.to_owned(),
            ..Self::default()
        };
        lane.add_model(model);
        lane
    }

    /// Adds a name that clients use. One with a dash in front would be a flag of the engine.
    pub(crate) fn add_model(&mut self, model: &str) {
        let model = model.trim();
        if !model.is_empty()
            && !model.starts_with('-')
            && is_plain(model)
            && !self.models.iter().any(|known| known == model)
        {
            self.models.push(model.to_owned());
        }
    }

    /// Sets a variable of the engine. Returns false if no variable can have this name and value.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) -> bool {
        let is_valid = !name.is_empty() && !name.contains('=') && is_plain(name) && is_plain(value);
        if is_valid {
            self.env.retain(|(known, _)| known != name);
            self.env.push((name.to_owned(), value.to_owned()));
        }
        is_valid
    }

    fn write(&self, toml: &mut String) {
        toml.push('\n');
        for comment in &self.comments {
            toml.push_str(&format!("# {}\n", one_line(comment)));
        }
        let mut table = Table::default();
        table.set("name", self.name.as_str());
        if self.models != [self.name.clone()] {
            table.extend("models", self.models.iter().cloned());
        }
        toml.push_str("[[lanes]]\n");
        table.write(toml);
        self.settings.write(toml);
        toml.push_str("[lanes.engine]\n");
        self.engine.write(toml);
        if !self.env.is_empty() {
            let mut env = InlineTable::new();
            for (name, value) in &self.env {
                env.insert(name, escape_references(value).as_ref().into());
            }
            toml.push_str(&format!("env = {env}\n"));
        }
    }
}

/// A configuration.
#[derive(Debug, Default)]
pub(crate) struct Document {
    /// The port for clients.
    pub(crate) port: Option<u16>,
    pub(crate) server: Table,
    pub(crate) log: Table,
    /// Variables with the keys of clients.
    keys: Vec<String>,
    /// Further ports, and the lane that each of them is for.
    pub(crate) listeners: Vec<(u16, String)>,
    /// Names and comments of groups.
    groups: Vec<(String, String)>,
    pub(crate) lanes: Vec<Lane>,
}

impl Document {
    /// Adds a lane, whose name becomes unique, and returns the name.
    pub(crate) fn add(&mut self, mut lane: Lane) -> String {
        lane.name = self.unique(&lane.name);
        let name = lane.name.clone();
        self.lanes.push(lane);
        name
    }

    /// Returns the name that a lane gets: `base`, with a number if other lanes have it.
    pub(crate) fn unique(&self, base: &str) -> String {
        let is_taken = |name: &str| self.lanes.iter().any(|known| known.name == name);
        let mut name = base.to_owned();
        let mut number = 1;
        while is_taken(&name) {
            number += 1;
            name = format!("{base}-{number}");
        }
        name
    }

    /// Requires clients to send the key in this environment variable.
    pub(crate) fn require_key(&mut self, variable: &str) {
        if !self.keys.iter().any(|known| known == variable) {
            self.keys.push(variable.to_owned());
        }
    }

    /// Puts a lane into a group in which lanes take turns; `share` of such lanes fit together.
    pub(crate) fn group(&mut self, lane: &mut Lane, name: &str, share: usize, comment: &str) {
        if !self.groups.iter().any(|(known, _)| known == name) {
            self.groups.push((name.to_owned(), comment.to_owned()));
        }
        lane.settings.set("group", name);
        lane.settings.set("memory", format!("{}MiB", (GROUP_MIB / share.max(1)).max(1)));
    }

    /// Returns the text of the configuration.
    pub(crate) fn to_toml(&self, file: &str, kind: Kind) -> String {
        let name = file.rsplit('/').next().unwrap_or(file);
        let mut toml = format!(
            "# Imported by `pointsman import --from {}` from {}.\n\
             # Read the report of the import, review this file, and validate it with\n\
             # `pointsman check`.\n\n[server]\n",
            kind.name(),
            one_line(name)
        );
        let port = self.port.unwrap_or(8000);
        toml.push_str(&format!("listen = \"127.0.0.1:{port}\"  # only this machine\n"));
        self.server.write(&mut toml);
        if !self.log.0.is_empty() {
            toml.push_str("\n[log]\n");
            self.log.write(&mut toml);
        }
        for (index, variable) in self.keys.iter().enumerate() {
            let tenant =
                if index == 0 { "default".to_owned() } else { format!("key-{}", index + 1) };
            let mut table = Table::default();
            table.set("tenant", tenant);
            table.set("env", variable.as_str());
            toml.push_str("\n[[keys]]\n");
            table.write(&mut toml);
        }
        for (port, lane) in &self.listeners {
            let mut table = Table::default();
            table.set("address", format!("127.0.0.1:{port}"));
            table.set("default-model", lane.as_str());
            toml.push_str("\n[[listeners]]\n");
            table.write(&mut toml);
        }
        for (name, comment) in &self.groups {
            let mut table = Table::default();
            table.set("name", name.as_str());
            table.set("memory", format!("{}GiB", GROUP_MIB >> 10));
            toml.push_str(&format!(
                "\n# {}\n# To do: replace `memory` here and of the lanes by the real sizes; lanes \
                 that\n# fit together then stay loaded together.\n[[groups]]\n",
                one_line(comment)
            ));
            table.write(&mut toml);
        }
        self.lanes.iter().for_each(|lane| lane.write(&mut toml));
        let [open, close] = MARKS;
        toml.replace(open, "${").replace(close, "}")
    }
}
