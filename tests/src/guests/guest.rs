//! Guest policies whose name, version, advice and code a test chooses.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ADVISE, component};
use crate::host::root;

/// A policy in WebAssembly text. By default it prefers no lane, and its note `why`, which becomes
/// the reason of the decision, has its name.
///
/// The code may use these macros and functions:
///
/// * `(ADVISE`, `(RECOVER`, `(OBSERVE` and `(TICK` are the heads of the hooks. Without `(ADVISE`,
///   the
///   policy returns [`ADVICE`].
/// * `(USE state.increment $name)` imports a function of the host.
/// * `(TEXT "…")` is the address and the length of a text.
/// * `$why_text` and `$why_number` set the note `why`; `$pair` stores two words, such as an address
///   and a
///   length.
#[derive(Debug, Clone)]
pub struct Guest {
    pub name: String,
    version: String,
    reason: String,
    lane: Option<u32>,
    /// The lane is the only one, and not a preferred one.
    filters: bool,
    rejects: bool,
    code: String,
    manifest: String,
    world: String,
}

/// The address of the default advice: `ok` with one note and, if the guest prefers a lane, the
/// score of that lane.
pub const ADVICE: u32 = 2048;
/// The addresses of the note, of the score, and of the texts.
const NOTE: u32 = 2184;
const SCORE: u32 = 2208;
const TEXTS: u32 = 4096;

/// The host functions that guests may import, with their core types.
const IMPORTS: [(&str, &str); 21] = [
    ("state.increment", "(param i32 i32 i64 i32 i32)"),
    ("state.get", "(param i32 i32 i32)"),
    ("state.put", "(param i32 i32 i32 i32 i32 i32)"),
    ("log.write", "(param i32 i32 i32)"),
    ("metrics.add", "(param i32 i32 i64)"),
    ("metrics.record-value", "(param i32 i32 i64)"),
    ("fleet.find", "(param i32 i32 i32)"),
    ("fleet.candidates", "(param i32)"),
    ("fleet.stats", "(param i32)"),
    ("request.header", "(param i32 i32 i32)"),
    ("request.text", "(param i32 i64 i32 i32)"),
    ("request.field", "(param i32 i32 i32 i32)"),
    ("request.contains", "(param i32 i32 i32) (result i32)"),
    ("request.prefix-hashes", "(param i32 i32 i32)"),
    ("request.endpoint-kind", "(param i32)"),
    ("request.key-group", "(param i32)"),
    ("request.key-name", "(param i32)"),
    ("request.allowance", "(param i32)"),
    ("request.deadline-ms", "(param i32)"),
    ("request.find-any", "(param i32 i32 i32 i32)"),
    ("fleet.lanes-left", "(param i32)"),
];

/// The heads of the optional hooks: macro, interface, function and its core type.
const HOOKS: [(&str, &str, &str, &str); 4] = [
    ("(RECOVER", "on-failure", "recover", "(param $failure i32) (result i32)"),
    ("(OBSERVE", "on-complete", "observe", "(param $now i64) (param $done i32) (param $count i32)"),
    ("(LEARN", "on-outcome", "learn", "(param $now i64) (param $done i32) (param $count i32)"),
    ("(TICK", "on-tick", "tick", "(param $now i64) (param $seed i64) (result i32)"),
];

/// The parts that every guest has.
const PRELUDE: &str = r#"
    (memory (export "memory") 32)
    (func (export "pointsman:policy/lifecycle@0.1.3#describe") (result i32) (i32.const 16))
    (func $why_text (param i32 i32)
      (i32.store8 (i32.const 2192) (i32.const 2))
      (i32.store (i32.const 2200) (local.get 0))
      (i32.store (i32.const 2204) (local.get 1)))
    (func $pair (param i32 i32 i32)
      (i32.store (local.get 0) (local.get 1))
      (i32.store offset=4 (local.get 0) (local.get 2)))
    (func $why_number (param i64)
      (i32.store8 (i32.const 2192) (i32.const 1))
      (i64.store (i32.const 2200) (local.get 0)))"#;

/// The default allocator: a ring buffer of 2 MiB. Data that the host wrote one round earlier is no
/// longer read.
const REALLOC: &str = r#"
    (global $next (mut i32) (i32.const 131072))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (if (i32.gt_u (i32.add (local.get $at) (local.get 3)) (i32.const 2097152))
        (then (local.set $at (i32.const 131072))))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at))"#;
/// The default `configure`, which accepts every configuration.
const CONFIGURE: &str = r#"
    (func (export "pointsman:policy/lifecycle@0.1.3#configure") (param i32 i32) (result i32)
      (i32.const 1024))"#;

/// The texts in the memory of a guest, from the address [`TEXTS`].
#[derive(Debug, Default)]
struct Texts(Vec<u8>);

impl Texts {
    /// Adds a text; returns its address and length.
    fn add(&mut self, text: &str) -> (u32, u32) {
        let at = TEXTS + u32::try_from(self.0.len()).unwrap();
        self.0.extend_from_slice(text.as_bytes());
        (at, u32::try_from(text.len()).unwrap())
    }
}

impl Guest {
    /// Returns the policy with the code in `tests/guests/NAME.wat`.
    ///
    /// # Panics
    /// If the file does not exist.
    pub fn from_file(name: &str) -> Self {
        let file = root().join("tests/guests").join(format!("{name}.wat"));
        let code =
            fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self::new(name).code(&code)
    }

    /// Returns version 1 of a policy that prefers no lane.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: "1".to_owned(),
            reason: format!("reason of {name}"),
            lane: None,
            filters: false,
            rejects: false,
            code: String::new(),
            manifest: String::new(),
            world: String::new(),
        }
    }

    #[must_use]
    pub fn version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    #[must_use]
    pub fn reason(self, reason: &str) -> Self {
        Self { reason: reason.to_owned(), ..self }
    }

    /// Makes the policy prefer the lane with this index.
    #[must_use]
    pub fn lane(self, lane: u32) -> Self {
        Self { lane: Some(lane), ..self }
    }

    /// Makes the policy exclude all lanes except the one with this id.
    #[must_use]
    pub fn only(self, lane: u32) -> Self {
        Self { lane: Some(lane), filters: true, ..self }
    }

    /// Makes the policy reject all requests with status 403 and the code `blocked`.
    #[must_use]
    pub fn rejecting(self) -> Self {
        Self { rejects: true, ..self }
    }

    #[must_use]
    pub fn code(self, code: &str) -> Self {
        Self { code: code.to_owned(), ..self }
    }

    /// Adds imports or exports to the world of the policy.
    #[must_use]
    pub fn world(self, world: &str) -> Self {
        Self { world: world.to_owned(), ..self }
    }

    /// Adds text to the manifest.
    #[must_use]
    pub fn manifest(self, manifest: &str) -> Self {
        Self { manifest: manifest.to_owned(), ..self }
    }

    /// Returns the text of the manifest.
    pub fn manifest_text(&self) -> String {
        let Self { name, version, manifest, .. } = self;
        format!("name = {name:?}\nversion = {version:?}\napi = \"0.1\"\n{manifest}")
    }

    /// Builds the component.
    ///
    /// # Panics
    /// If the code is malformed.
    pub fn build(&self) -> Vec<u8> {
        let mut texts = Texts::default();
        let data = self.data(&mut texts);
        let mut code = expand_texts(&self.code, &mut texts);
        if !code.contains("(ADVISE") {
            code += &format!("(ADVISE (i32.const {ADVICE}))");
        }
        let (imports, mut code) = expand_imports(&code);
        code = code.replace("(ADVISE", ADVISE);
        let mut world = format!("world guest {{\n  include policy;\n  {}\n", self.world);
        for (word, interface, function, kind) in HOOKS {
            if code.contains(word) {
                let head = format!(
                    "(func (export \"pointsman:policy/{interface}@0.1.3#{function}\") {kind}"
                );
                code = code.replace(word, &head);
                world += &format!("  export {interface};\n");
            }
        }
        let default = |marker: &str, part| if code.contains(marker) { "" } else { part };
        let realloc = default("\"cabi_realloc\"", REALLOC);
        let configure = default("lifecycle@0.1.3#configure", CONFIGURE);
        let texts = bytes(&texts.0);
        let text = format!(
            "(module {imports} {PRELUDE} {realloc} {configure} {data} \
             (data (i32.const {TEXTS}) \"{texts}\") {code})"
        );
        let module = wat::parse_str(&text).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        component(&module, "guest", |wit| format!("{wit}\n{world}}}\n"))
    }

    /// Returns the data segments with the description and the default advice.
    fn data(&self, texts: &mut Texts) -> String {
        let mut describe = [0_u32; 6];
        (describe[0], describe[1]) = texts.add(&self.name);
        (describe[2], describe[3]) = texts.add(&self.version);
        // Indices count words of four bytes. The advice begins one word after the tag `ok`.
        let mut advice = [0_u32; 33];
        if self.lane.is_some() {
            (advice[9], advice[10], advice[11]) = (if self.filters { 1 } else { 3 }, SCORE, 1);
        }
        if self.rejects {
            (advice[1], advice[2]) = (1, 403);
            (advice[3], advice[4]) = texts.add("blocked");
            (advice[5], advice[6]) = texts.add("the policy rejects all requests");
        }
        (advice[29], advice[30]) = (NOTE, 1);
        let mut note = [0_u32; 6];
        (note[0], note[1]) = texts.add("why");
        note[2] = 2;
        (note[4], note[5]) = texts.add(&self.reason);
        let score = [self.lane.unwrap_or_default(), 1000];
        let segment = |at: u32, words: &[u32]| {
            let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            format!("(data (i32.const {at}) \"{}\") ", bytes(&words))
        };
        [
            segment(16, &describe),
            segment(ADVICE, &advice),
            segment(NOTE, &note),
            segment(SCORE, &score),
        ]
        .concat()
    }

    /// Writes the policy into its folder below `policies`; each file is replaced atomically.
    ///
    /// # Panics
    /// If a file cannot be written.
    pub fn write_to(&self, policies: &Path) -> PathBuf {
        let folder = policies.join(&self.name);
        fs::create_dir_all(&folder).unwrap();
        replace_file(&folder.join("policy.wasm"), &self.build());
        if fs::read_to_string(folder.join("policy.toml")).ok().as_ref()
            != Some(&self.manifest_text())
        {
            replace_file(&folder.join("policy.toml"), self.manifest_text().as_bytes());
        }
        folder
    }
}

/// Replaces a file atomically.
///
/// # Panics
/// If the file cannot be written.
pub fn replace_file(file: &Path, content: &[u8]) {
    let new = file.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(&new, file).unwrap();
}

fn expand_texts(code: &str, texts: &mut Texts) -> String {
    let mut parts = code.split("(TEXT \"");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (text, rest) = part.split_once("\")").expect("(TEXT \"…\")");
        let (at, length) = texts.add(text);
        out += &format!("(i32.const {at}) (i32.const {length}){rest}");
    }
    out
}

/// Expands `(USE …)`; returns the imports, which must come first in a module, and the other code.
fn expand_imports(code: &str) -> (String, String) {
    let mut parts = code.split("(USE ");
    let mut rest = parts.next().unwrap_or_default().to_owned();
    let mut imports = String::new();
    for part in parts {
        let (used, after) = part.split_once(')').expect("(USE interface.function $name)");
        let (function, name) = used.split_once(' ').expect("a name for it");
        let (_, kind) =
            IMPORTS.iter().find(|(known, _)| *known == function).expect("a function of the host");
        let (interface, function) = function.split_once('.').expect("an interface");
        imports += &format!(
            "(import \"pointsman:policy/{interface}@0.1.3\" \"{function}\" (func {name} {kind})) "
        );
        rest += after;
    }
    let (own, rest): (Vec<&str>, Vec<&str>) =
        rest.lines().partition(|line| line.starts_with("(import"));
    (imports + &own.concat(), rest.join("\n"))
}

fn bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}
