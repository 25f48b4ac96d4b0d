//! The flake: evaluated by Nix, and not built, against the stub of nixpkgs in
//! `host/packaging/nix/stub`, without network.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pointsman_tests::host::{program, root};
use serde_json::Value;
use tempfile::TempDir;

const MACHINES: [&str; 2] = ["strix-halo", "mi50"];
const CONFIG: &str = "config.environment.etc.\"pointsman/pointsman.toml\".source.text";
const UNIT: &str = "config.systemd.units.\"pointsman.service\".text";
/// The attribute that NixOS builds, which checks all assertions.
const SYSTEM: &str = "config.system.build.toplevel.drvPath";

/// A copy of the flake, and a store of Nix.
struct Flake {
    dir: TempDir,
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

impl Flake {
    /// Copies what is evaluated: Nix copies a flake with all of its files, also built ones.
    fn new() -> Self {
        let flake = Self { dir: tempfile::tempdir().unwrap() };
        copy(&root().join("host/packaging"), &flake.source().join("host/packaging"));
        for file in ["flake.nix", "Cargo.toml", "Cargo.lock"] {
            fs::copy(root().join(file), flake.source().join(file)).unwrap();
        }
        flake
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// Runs `nix`. `attribute` is one of the flake, or empty for all of it.
    fn nix(&self, command: &[&str], attribute: &str, options: &[&str]) -> Output {
        let source = format!("path:{}", self.source().display());
        let installable = match attribute {
            "" => source.clone(),
            attribute => format!("{source}#{attribute}"),
        };
        let mut nix = Command::new("nix");
        nix.args(["--extra-experimental-features", "nix-command flakes", "--offline"])
            .args(command)
            .arg(installable)
            .args(["--no-write-lock-file", "--override-input", "nixpkgs"])
            .arg(format!("{source}/host/packaging/nix/stub"))
            .args(options)
            .env("HOME", self.dir.path().join("home"))
            .env("NIX_REMOTE", "local");
        for name in ["store", "state", "log", "conf"] {
            nix.env(format!("NIX_{}_DIR", name.to_uppercase()), self.dir.path().join(name));
        }
        nix.output().expect("nix is installed: apt-get install nix-bin")
    }

    fn success(&self, command: &[&str], attribute: &str, options: &[&str]) -> String {
        let output = self.nix(command, attribute, options);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} {attribute} {options:?}: {stderr}");
        self.without_hashes(&String::from_utf8(output.stdout).unwrap())
    }

    /// Replaces paths of this store by those of the usual one, without hashes.
    fn without_hashes(&self, text: &str) -> String {
        let store = format!("{}/", self.dir.path().join("store").display());
        let mut parts = text.split(&store);
        let mut result = parts.next().unwrap().to_owned();
        for part in parts {
            let (_hash, name) = part.split_once('-').unwrap();
            result.push_str("/nix/store/");
            result.push_str(name);
        }
        result
    }

    fn raw(&self, attribute: &str) -> String {
        self.success(&["eval", "--raw"], attribute, &[])
    }

    fn json(&self, attribute: &str, apply: &str) -> Value {
        let text = self.success(&["eval", "--json"], attribute, &["--apply", apply]);
        serde_json::from_str(&text).unwrap()
    }

    /// Evaluates an attribute of a machine with one more module.
    fn changed(&self, machine: &str, module: &str, attribute: &str) -> Output {
        let apply = format!("m: (m.extendModules {{ modules = [ {module} ]; }}).{attribute}");
        let machine = format!("nixosConfigurations.{machine}");
        self.nix(&["eval", "--raw"], &machine, &["--apply", &apply])
    }

    fn changed_text(&self, machine: &str, module: &str, attribute: &str) -> String {
        let output = self.changed(machine, module, attribute);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{module}: {stderr}");
        self.without_hashes(&String::from_utf8(output.stdout).unwrap())
    }
}

/// Compares a text with a file of `golden`, in which VERSION stands for that of the workspace.
fn assert_golden(name: &str, actual: &str) {
    let actual = actual.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let path = root().join("tests/packages/golden").join(name);
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected != actual {
        let seen = std::env::temp_dir().join(name);
        fs::write(&seen, &actual).unwrap();
        panic!("{} differs from what was evaluated: {}", path.display(), seen.display());
    }
}

fn machine(name: &str, attribute: &str) -> String {
    format!("nixosConfigurations.{name}.{attribute}")
}

/// Returns the lines `Section/key=value` of a unit, without comments.
fn unit_lines(text: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut lines = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[') {
            Some(header) => section = header.trim_end_matches(']'),
            None => {
                lines.insert(format!("{section}/{line}"));
            }
        }
    }
    lines
}

fn shipped_unit() -> BTreeSet<String> {
    unit_lines(&fs::read_to_string(root().join("host/packaging/pointsman.service")).unwrap())
}

#[test]
fn flake_is_valid_and_has_the_documented_outputs() {
    let flake = Flake::new();
    flake.success(&["flake", "check", "--no-build"], "", &[]);
    let shown = flake.success(&["flake", "show", "--json"], "", &[]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_golden("nix-outputs.json", &format!("{shown:#}\n"));
}

#[test]
fn packages_have_the_version_of_the_workspace() {
    let flake = Flake::new();
    let version = env!("CARGO_PKG_VERSION");
    let host = flake.json("packages.x86_64-linux.default", "p: p.version");
    assert_eq!(host, version);
    let image = flake.json("packages.x86_64-linux.vllm-container", "p: p.tag");
    assert_eq!(image, version);
}

#[test]
fn image_and_shells_are_as_documented() {
    let flake = Flake::new();
    let attributes =
        "all: builtins.mapAttrs (_: one: removeAttrs one [ \"drvPath\" \"outPath\" ]) all";
    let shells = flake.json("devShells.x86_64-linux", attributes);
    assert_golden("nix-shells.json", &format!("{shells:#}\n"));
    let image = flake.json(
        "packages.x86_64-linux.vllm-container",
        "d: { inherit (d) name tag created contents fakeRootCommands config; }",
    );
    assert_golden("nix-image.json", &format!("{image:#}\n"));
}

#[test]
fn source_of_the_package_is_a_complete_workspace() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(root().join("host/packaging/nix/pointsman.nix")).unwrap();
    let (_, list) = text.split_once("\"/${name}\") [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    let names: Vec<&str> = list.split_whitespace().map(|name| name.trim_matches('"')).collect();
    assert!(names.contains(&"Cargo.toml"), "{names:?}");
    for name in names {
        std::os::unix::fs::symlink(root().join(name), dir.path().join(name)).unwrap();
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--no-deps", "--format-version", "1"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn configurations_are_accepted_by_the_host() {
    let flake = Flake::new();
    for name in MACHINES {
        let config = flake.raw(&machine(name, CONFIG));
        assert_golden(&format!("nix-{name}.toml"), &config);
        let package = format!("/nix/store/pointsman-{}/share/pointsman", env!("CARGO_PKG_VERSION"));
        let path = flake.dir.path().join(format!("{name}.toml"));
        fs::write(&path, config.replace(&package, root().to_str().unwrap())).unwrap();
        let output = Command::new(program(env!("CARGO_BIN_EXE_fake-engine")))
            .arg("check")
            .arg(&path)
            .env("POINTSMAN_KEY", "0123456789abcdef0123456789abcdef")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {text}");
    }
}

#[test]
fn units_are_the_shipped_one_but_for_options() {
    let flake = Flake::new();
    let shipped = shipped_unit();
    for name in MACHINES {
        let unit = unit_lines(&flake.raw(&machine(name, UNIT)));
        // Whether the shipped unit lists devices is its own matter.
        let is_device = |line: &str| line.starts_with("Service/Device");
        let mut difference = String::new();
        for line in shipped.difference(&unit).filter(|line| !is_device(line)) {
            difference.push_str(&format!("-{line}\n"));
        }
        for line in unit.difference(&shipped).filter(|line| !is_device(line)) {
            difference.push_str(&format!("+{line}\n"));
        }
        assert_golden(&format!("nix-{name}.unit.diff"), &difference);
        for line in ["DevicePolicy=closed", "DeviceAllow=char-drm rw", "DeviceAllow=char-kfd rw"] {
            assert!(unit.contains(&format!("Service/{line}")), "{name}: {line}");
        }
    }
}

#[test]
fn units_pass_verification() {
    let flake = Flake::new();
    let program = flake.dir.path().join("pointsman");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for name in MACHINES {
        let text = flake.raw(&machine(name, UNIT));
        let package = format!("/nix/store/pointsman-{}/bin/pointsman", env!("CARGO_PKG_VERSION"));
        let unit = flake.dir.path().join("pointsman.service");
        fs::write(&unit, text.replace(&package, program.to_str().unwrap())).unwrap();
        let verify = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&unit)
            .output()
            .expect("systemd is installed");
        let stderr = String::from_utf8_lossy(&verify.stderr);
        // A unit of the machine itself may be wrong; messages name the unit.
        let own: Vec<&str> = stderr.lines().filter(|line| line.contains("pointsman")).collect();
        assert!(verify.status.success() && own.is_empty(), "{name}: {stderr}");
    }
}

#[test]
fn wrong_options_are_errors() {
    let flake = Flake::new();
    let lanes = "services.pointsman.lanes";
    let cases = [
        (format!("{{ {lanes}.a.engine.driver = \"vlm\"; }}"), format!("{lanes}.a.engine.driver")),
        (format!("{{ {lanes}.a.engine.driver = \"vllm\"; }}"), "`model`".to_owned()),
        (format!("{{ {lanes}.a.engine.driver = \"external\"; }}"), "`url`".to_owned()),
        (format!("{{ {lanes}.coder.slots = 0; }}"), format!("{lanes}.coder.slots")),
        (
            format!("{{ {lanes}.governance.memory = \"6GB\"; }}"),
            format!("{lanes}.governance.memory"),
        ),
        (format!("{{ {lanes}.governance.group = \"gpu1\"; }}"), "\"gpu1\"".to_owned()),
        (
            format!("{{ {lanes}.governance = {{ group = \"gpu0\"; memory = \"49GiB\"; }}; }}"),
            format!("{lanes}.governance.memory"),
        ),
        (
            "{ services.pointsman.groups.gpu1 = { memory = \"17GiB\"; pool = \"gpu\"; }; }"
                .to_owned(),
            "gpuMemory.ttmSizeGiB".to_owned(),
        ),
        ("{ services.pointsman.lane.a = { }; }".to_owned(), "services.pointsman.lane".to_owned()),
        ("{ services.pointsman.settings.queue = x: x; }".to_owned(), "settings".to_owned()),
    ];
    for (module, named) in cases {
        let output = flake.changed("strix-halo", &module, SYSTEM);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{module} is accepted");
        assert!(stderr.contains(&named), "{module}: {named} is not in: {stderr}");
    }
    let output = flake.changed("mi50", "{ services.pointsman.openFirewall = true; }", SYSTEM);
    assert!(String::from_utf8_lossy(&output.stderr).contains("services.pointsman.openFirewall"));
}

#[test]
fn options_change_what_they_are_for() {
    let flake = Flake::new();
    // No key of the unit by which the service is confined is left.
    let open = flake.changed_text("mi50", "{ services.pointsman.hardening = false; }", UNIT);
    for word in ["Protect", "Private", "SystemCall", "Device", "NoNewPrivileges", "Restrict"] {
        assert!(!open.contains(&format!("\n{word}")), "{word}: {open}");
    }
    assert!(open.contains("\nRestartPreventExitStatus="), "{open}");

    let module = "{ services.pointsman = { user = \"llm\"; devices = [ \"char-drm rw\" ]; \
                  upgradeInPlace = true; }; }";
    let unit = unit_lines(&flake.changed_text("mi50", module, UNIT));
    for line in ["Service/User=llm", "Unit/X-ReloadIfChanged=true"] {
        assert!(unit.contains(line), "{line}: {unit:?}");
    }
    assert!(!unit.contains("Service/DeviceAllow=char-kfd rw"), "{unit:?}");

    let config = "config.boot.kernelParams";
    let parameters = flake.json(&machine("strix-halo", config), "list: list");
    assert_eq!(parameters, serde_json::json!(["ttm.pages_limit=16777216"]));
    assert_eq!(flake.json(&machine("mi50", config), "list: list"), serde_json::json!([]));
    let ports = "config.networking.firewall.allowedTCPPorts";
    assert_eq!(flake.json(&machine("strix-halo", ports), "l: l"), serde_json::json!([11434]));

    // Lanes of `settings` are added, and a default gives way.
    let module = "{ services.pointsman.settings = { \
                  server.listen = \"127.0.0.1:1\"; \
                  lanes = [ { name = \"b\"; engine.driver = \"external\"; } ]; }; }";
    let text = flake.changed_text("mi50", module, CONFIG);
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["server"]["listen"].as_str(), Some("127.0.0.1:1"));
    assert_eq!(config["lanes"].as_array().map(Vec::len), Some(2), "{text}");
}

#[test]
fn warnings_name_what_crashes_the_gpu() {
    let flake = Flake::new();
    assert_eq!(
        flake.json(&machine("strix-halo", "config.warnings"), "w: w"),
        serde_json::json!([])
    );
    let old = "({ lib, ... }: { \
               boot.kernelPackages = lib.mkForce { kernel.version = \"6.12.1\"; }; \
               services.pointsman.environment.HSA_OVERRIDE_GFX_VERSION = \"11.0.0\"; })";
    let warnings = flake.changed_text("strix-halo", old, "config.system.build.toplevel.warnings");
    for word in ["HSA_OVERRIDE_GFX_VERSION", "6.18.4"] {
        assert!(warnings.contains(word), "{warnings}");
    }
}

/// Serves one response with this status, and returns its port.
fn serve_once(status: &str) -> (u16, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let response = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let length = stream.read(&mut request).unwrap();
        stream.write_all(response.as_bytes()).unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (port, thread)
}

#[test]
fn scripts_are_clean_and_vllm_health_reports_the_status() {
    let flake = Flake::new();
    let script = |name: &str| {
        let path = flake.dir.path().join(name);
        fs::write(&path, flake.raw(&format!("packages.x86_64-linux.{name}.text"))).unwrap();
        path
    };
    // `writeShellApplication` runs shellcheck when it is built.
    for name in ["vllm-server", "vllm-health"] {
        let output = Command::new("shellcheck").arg(script(name)).output();
        let output = output.expect("shellcheck is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let health = |port: u16| {
        let output = Command::new("bash")
            .arg(script("vllm-health"))
            .env("VLLM_PORT", port.to_string())
            .env("VLLM_HOST", "0.0.0.0")
            .output()
            .unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    };
    for (status, printed, is_healthy) in
        [("200 OK", "200\n", true), ("503 Service Unavailable", "503\n", false)]
    {
        let (port, server) = serve_once(status);
        assert_eq!(health(port), (printed.to_owned(), is_healthy));
        assert!(server.join().unwrap().starts_with("GET /health "));
    }
    // The port is free again once its listener is closed.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(health(closed), ("000\n".to_owned(), false));
}
