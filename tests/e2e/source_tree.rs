//! Rules for the files of the repository: length, style, frozen contracts, dependencies of crates.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use pointsman_tests::host::root;
use pointsman_xtask::{guest_inputs_sha256, sha256};
use toml::{Table, Value};

/// The maximum number of lines of a file with code, without blank lines and tests at its end. The
/// maximum length of a function is in `.clippy.toml`.
const MAX_CODE_LINES: usize = 400;
/// The maximum number of lines of a file with tests.
const MAX_TEST_LINES: usize = 600;
/// The maximum width of a line of Rust.
const MAX_COLUMNS: usize = 100;

/// Returns all files of the repository with this name ending.
pub(crate) fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let hidden =
                name.starts_with('.') && name != ".ci" && name != ".cargo" && name != ".config";
            if path.is_dir() && !hidden && name != "target" && name != "node_modules" {
                walk(&path, ending, found);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    assert!(!found.is_empty(), "no files end with {ending}");
    found
}

fn is_test(path: &Path) -> bool {
    let path = path.strip_prefix(root()).unwrap();
    path.to_string_lossy().ends_with("tests.rs")
        || path
            .components()
            .any(|part| ["tests", "benches"].iter().any(|name| part.as_os_str() == *name))
}

#[test]
fn files_are_short() {
    for path in files(".rs") {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
        let (max, lines) = match is_test(&path) {
            true => (MAX_TEST_LINES, text.lines().count()),
            false => (MAX_CODE_LINES, code.lines().filter(|line| !line.is_empty()).count()),
        };
        assert!(
            lines <= max,
            "{} has {lines} lines (maximum: {max}); split the file",
            path.display()
        );
    }
}

#[test]
fn code_has_no_unfinished_parts() {
    let markers =
        ["todo!(", "unimplemented!(", "#[ignore", "FIXME", "TODO"].map(|word| word.to_owned());
    for path in files(".rs").into_iter().filter(|path| !path.ends_with("source_tree.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        for marker in &markers {
            assert!(!text.contains(marker.as_str()), "{}: {marker}", path.display());
        }
        assert!(
            text.ends_with('\n') && !text.lines().any(|line| line.ends_with(' ')),
            "{}: trailing spaces, or no line break at the end",
            path.display()
        );
    }
}

#[test]
fn files_contain_no_paths_of_a_machine() {
    let home = ["/home/", "/root/"];
    for ending in [".rs", ".toml", ".md", ".py", ".mjs", ".jsonl", "run"] {
        for path in files(ending).into_iter().filter(|path| !path.ends_with("source_tree.rs")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!home.iter().any(|home| text.contains(home)), "{}", path.display());
        }
    }
    for path in files(".wasm") {
        let bytes = fs::read(&path).unwrap();
        // Panics of the standard library are in `/rustc/`, which is the same on all machines.
        for part in ["/root/", "/home/"] {
            assert!(
                !bytes.windows(part.len()).any(|window| window == part.as_bytes()),
                "{}: {part}",
                path.display()
            );
        }
    }
}

/// Files that open files without `pointsman-files`, and what they open. All else is read by its
/// functions, which never block and accept only regular files of a limited size: a named pipe or an
/// endless file in a policy's folder must not stop the host.
const OPENS_FILES_ITSELF: [(&str, &str); 16] = [
    ("fleet/src/process/listener.rs", "/proc"),
    ("fleet/src/process/proc.rs", "/proc"),
    ("fleet/src/process/shared.rs", "/proc"),
    ("fleet/src/process/cgroup.rs", "control groups"),
    ("fleet/src/process/state_dir.rs", "/proc"),
    ("fleet/src/process/state_dir/lock.rs", "options for `pointsman-files`"),
    ("fleet/src/process/pipes.rs", "/proc"),
    ("fleet/src/process/keeper/establish.rs", "a folder, for the path of its socket"),
    ("access/src/edit.rs", "a folder, to lock it"),
    ("gateway/src/audit_log.rs", "options for `pointsman-files`"),
    ("gateway/src/socket.rs", "a folder, to lock it"),
    ("record/src/file.rs", "decision records, which may be a pipe"),
    ("record/src/redact.rs", "/dev/urandom"),
    ("fleet/src/conversations/files.rs", "options for `pointsman-files`"),
    ("store/src/disk.rs", "options for `pointsman-files`"),
    ("src/telemetry/rotating_file.rs", "options for `pointsman-files`"),
];

#[test]
fn files_are_read_without_blocking() {
    let calls = [
        "fs::read(",
        "fs::read_to_string(",
        "fs::copy(",
        "File::open(",
        "File::options(",
        "OpenOptions::new(",
        "tokio::fs",
    ];
    let mut found = String::new();
    for path in files(".rs").into_iter().filter(|path| !is_test(path)) {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let is_host = name.starts_with("host/src/") || name.starts_with("host/crates/");
        let is_exempt = name.contains("crates/files/")
            || name.ends_with("build.rs")
            || name.ends_with("fuzz.rs")
            || name.ends_with("_tests.rs")
            || OPENS_FILES_ITSELF.iter().any(|(file, _)| name.ends_with(file));
        if !is_host || is_exempt {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        for (index, line) in code.lines().enumerate() {
            if calls.iter().any(|call| line.contains(call)) {
                writeln!(found, "{name}:{}: {}", index + 1, line.trim()).unwrap();
            }
        }
    }
    assert!(found.is_empty(), "use `pointsman-files` for:\n{found}");
}

/// The files that the style rules do not apply to: captures of engines, preserved policies,
/// released contracts, the contract of vLLM Router, and generated bindings.
const EXEMPT_FROM_STYLE: [&str; 5] = [
    "tests/captures/",
    "tests/compat/0",
    "wit/0.1/",
    "wit/vllm-router-middleware-0.1/",
    "plugins/sdk/python/bindings/",
];

/// A rule of the style lint: what it forbids, and a function that finds it in a line.
struct StyleRule {
    forbidden: String,
    is_violated: Box<dyn Fn(&str) -> bool>,
}

fn is_word_letter(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Returns the text before and after each place where `phrase` begins and ends at a word boundary.
fn phrases<'a>(line: &'a str, phrase: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    line.match_indices(phrase).filter_map(move |(index, _)| {
        let (before, after) = (&line[..index], &line[index + phrase.len()..]);
        let begins = !before.ends_with(is_word_letter);
        let ends = !phrase.ends_with(is_word_letter) || !after.starts_with(is_word_letter);
        (begins && ends).then_some((before, after))
    })
}

/// Returns the rules for all languages. The forbidden words are built from parts, so that this file
/// does not violate the rules.
fn style_rules() -> Vec<StyleRule> {
    let rule = |forbidden: String, is_violated: Box<dyn Fn(&str) -> bool>| StyleRule {
        forbidden,
        is_violated,
    };
    let phrase = |phrase: String| {
        let forbidden = phrase.clone();
        rule(forbidden, Box::new(move |line| phrases(line, &phrase).next().is_some()))
    };
    let word = |word: String| {
        let forbidden = word.clone();
        let find = move |line: &str| {
            line.split(|letter| !is_word_letter(letter))
                .any(|part| part.eq_ignore_ascii_case(&word))
        };
        rule(forbidden, Box::new(find))
    };
    let prefix = |prefix: String| {
        let forbidden = prefix.clone();
        rule(forbidden, Box::new(move |line: &str| line.contains(&prefix)))
    };
    // "There … no", "no longer" and "no more" are plain English.
    let negation = ["is", "no", ""].join(" ");
    let forbidden = format!("{negation}…");
    let negated_noun = move |line: &str| {
        phrases(line, &negation).any(|(before, after)| {
            let next = after.split(|letter| !is_word_letter(letter)).next().unwrap_or_default();
            !before.ends_with("there ")
                && next.starts_with(|letter: char| letter.is_ascii_lowercase())
                && !["longer", "more"].contains(&next)
        })
    };
    vec![
        rule(forbidden, Box::new(negated_noun)),
        word(["who", "ever"].concat()),
        word(["no", "body"].concat()),
        word(["some", "body"].concat()),
        word(["mis", "take"].concat()),
        word(["mis", "takes"].concat()),
        phrase(["for", "ever"].join(" ")),
        prefix(["const", "MOST_"].join(" ")),
        prefix(["const", "LONGEST_"].join(" ")),
        phrase(["fn", "of("].join(" ")),
    ]
}

#[test]
fn style_rules_find_violations() {
    let rules = style_rules();
    let violated = |line: &str| rules.iter().any(|rule| (rule.is_violated)(line));
    let verb = "is";
    for line in [
        format!("it {verb} no policy"),
        format!("// {} asks", ["Who", "ever"].concat()),
        format!("a {}, and", ["mis", "take"].concat()),
        format!("runs {} ever.", "for"),
        format!("pub(crate) const {}_LINES: usize = 1;", "MOST"),
        format!("    pub fn {}(value: u32) -> Self {{", "of"),
    ] {
        assert!(violated(&line), "{line}");
    }
    for line in [
        format!("there {verb} no policy"),
        format!("it {verb} no longer there"),
        format!("this {verb} no_std"),
        format!("{verb} NO way"),
        format!("let {}s_found = 1;", ["mis", "take"].concat()),
        "before ever, or forever".to_owned(),
        "fn off(".to_owned(),
    ] {
        assert!(!violated(&line), "{line}");
    }
}

/// Lists every violation of the style rules, so that one run shows all of them.
#[test]
fn files_follow_style_rules() {
    let rules = style_rules();
    let mut violations = String::new();
    let mut count = 0;
    for ending in [".rs", ".md", ".toml", ".js", ".mjs", ".ts", ".py", ".c", ".h", ".wit"] {
        for path in files(ending) {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            if EXEMPT_FROM_STYLE.iter().any(|exempt| name.starts_with(exempt)) {
                continue;
            }
            for (index, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
                let too_long = ending == ".rs" && line.chars().count() > MAX_COLUMNS;
                let broken = rules.iter().filter(|rule| (rule.is_violated)(line));
                let mut broken: Vec<&str> = broken.map(|rule| rule.forbidden.as_str()).collect();
                broken.extend(too_long.then_some("more than 100 columns"));
                for rule in broken {
                    count += 1;
                    let line = line.trim();
                    writeln!(violations, "{name}:{}: {rule:?}: {line}", index + 1).unwrap();
                }
            }
        }
    }
    assert!(count == 0, "{count} violations of the style rules:\n{violations}");
}

/// Reads a TOML file.
fn read_toml(path: &Path) -> Table {
    let text = fs::read_to_string(path).unwrap();
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn policies_are_small_tested_and_up_to_date() {
    for entry in fs::read_dir(root().join("policies")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let manifest = read_toml(&folder.join("policy.toml"));
        let value = |table: &Table, key: &str| {
            let value = table.get(key).and_then(Value::as_str);
            value.unwrap_or_else(|| panic!("{name}: no {key}")).to_owned()
        };
        let build = manifest["build"].as_table().unwrap();
        let wasm = fs::read(folder.join("policy.wasm")).unwrap();
        assert!(wasm.len() < 140_000, "{name}: {} bytes", wasm.len());
        let cases = fs::read_to_string(folder.join("cases.jsonl")).unwrap().lines().count();
        assert!(cases >= 10, "{name} has {cases} golden cases");
        let stale = "its sources have changed; run `cargo xtask guests`";
        assert_eq!(
            guest_inputs_sha256(&root(), &value(build, "source"), &value(&manifest, "api"))
                .unwrap(),
            value(build, "inputs-sha256"),
            "{name}: {stale}"
        );
        assert_eq!(sha256(&wasm), value(build, "component-sha256"), "{name}: {stale}");
    }
}

/// A released contract never changes: additions make a new version.
#[test]
fn released_contract_is_unchanged() {
    let list = fs::read_to_string(root().join("wit/0.1/wit.sha256")).unwrap();
    assert_eq!(list.lines().count(), 3);
    for line in list.lines() {
        let (digest, file) = line.split_once("  ").unwrap();
        let text = fs::read(root().join("wit/0.1").join(file)).unwrap();
        assert_eq!(sha256(&text), digest, "{file} has changed; see wit/README.md");
    }
}

/// The dependencies between the host's crates are exactly the allowed ones, and only `policy`
/// depends on Wasmtime.
#[test]
fn crate_dependencies_point_one_way() {
    let crates = [
        ("build", vec!["files", "spec"]),
        ("domain", vec![]),
        ("files", vec![]),
        ("openai", vec!["domain"]),
        ("otlp", vec![]),
        ("peers", vec!["domain"]),
        ("pick", vec!["fleet"]),
        ("spec", vec!["domain"]),
        ("policy", vec!["domain", "files", "spec"]),
        ("fleet", vec!["domain", "files", "peers", "settings"]),
        ("record", vec!["domain", "files"]),
        ("registry", vec!["files", "fleet", "spec"]),
        ("replay", vec!["domain", "openai", "policy", "record", "report"]),
        ("report", vec!["domain"]),
        (
            "gateway",
            vec!["access", "domain", "files", "fleet", "openai", "peers", "record", "store"],
        ),
        ("shared", vec!["spec"]),
        ("store", vec!["files"]),
        ("access", vec!["domain", "files", "settings", "store"]),
        ("settings", vec!["domain", "files", "spec"]),
        ("config", vec!["access", "domain", "files", "fleet", "record", "settings", "spec"]),
        (
            "simulate",
            vec![
                "config", "domain", "files", "fleet", "openai", "policy", "record", "report",
                "settings",
            ],
        ),
    ];
    for (name, allowed) in &crates {
        let manifest = read_toml(&root().join("host/crates").join(name).join("Cargo.toml"));
        let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
        let depends_on = |other: &str| {
            tables.iter().any(|table| {
                let table = manifest.get(*table).and_then(Value::as_table);
                table.is_some_and(|dependencies| dependencies.contains_key(other))
            })
        };
        for (other, _) in &crates {
            let depends = depends_on(&format!("pointsman-{other}"));
            assert_eq!(depends, allowed.contains(other), "{name} -> {other}");
        }
        assert_eq!(depends_on("wasmtime"), *name == "policy", "{name} -> wasmtime");
        let dependencies = manifest["dependencies"].as_table().unwrap();
        assert!(!dependencies.contains_key("pointsman-fuzz"), "{name}: only for tests");
    }
}
