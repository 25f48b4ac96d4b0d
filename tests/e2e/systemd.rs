//! The files for systemd, as systemd reads them. `cargo xtask test` installs its tools; how the
//! host works under the restrictions of the unit is tested in `tests/packages`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_tests::host::root;

/// What the service may be exposed to, by systemd's rating in tenths: 26 with systemd 252. A
/// restriction that is removed raises it.
const MAX_EXPOSURE: u32 = 26;

/// Returns a file of the packages.
fn packaging(name: &str) -> String {
    fs::read_to_string(root().join("host/packaging").join(name)).unwrap()
}

fn has_line(text: &str, wanted: &str) -> bool {
    text.lines().any(|line| line == wanted)
}

/// Runs `systemd-analyze`, and returns whether it has succeeded, and what it has printed.
fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(unit);
    let output = command.output();
    let output = output.expect("systemd-analyze is missing: install Debian's package `systemd`");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Writes a unit whose program and manual exist on every machine.
fn write_unit(dir: &Path, name: &str, text: &str) -> PathBuf {
    let lines = text.lines().filter(|line| !line.starts_with("Documentation="));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let path = dir.join(name);
    fs::write(&path, text.replace("/usr/local/bin/pointsman", "/bin/true")).unwrap();
    path
}

#[test]
fn units_are_valid() {
    let service = packaging("pointsman.service");
    for line in ["Type=notify", "NotifyAccess=all", "RestartPreventExitStatus=78"] {
        assert!(has_line(&service, line), "{line}");
    }
    let dir = tempfile::tempdir().unwrap();
    let unit = write_unit(dir.path(), "pointsman.service", &service);
    write_unit(dir.path(), "pointsman.socket", &packaging("pointsman.socket"));
    let (valid, text) = analyze(&["verify"], &unit);
    assert!(valid && text.trim().is_empty(), "{text}");
    let threshold = format!("--threshold={MAX_EXPOSURE}");
    let (rated, text) = analyze(&["security", "--offline=yes", "--no-pager", &threshold], &unit);
    let score = text.lines().find(|line| line.contains("exposure level"));
    let score = score.unwrap_or_else(|| panic!("{text}"));
    println!("{}", score.trim_start_matches(|letter: char| !letter.is_ascii_alphabetic()));
    assert!(rated, "{text}");
}

/// A list of devices, also the one that `ProtectClock=` implies, denies all others.
#[test]
fn service_may_use_the_devices_of_engines() {
    let service = packaging("pointsman.service");
    for driver in ["char-drm", "char-kfd", "char-accel", "char-nvidia*"] {
        assert!(has_line(&service, &format!("DeviceAllow={driver} rw")), "{driver}");
    }
    for line in ["PrivateDevices=yes", "MemoryDenyWriteExecute=yes", "ProcSubset=pid"] {
        assert!(!has_line(&service, line), "{line}");
    }
}

/// The user and the groups of the unit are those that sysusers.d makes.
#[test]
fn users_and_groups_of_the_service_are_made() {
    let service = packaging("pointsman.service");
    let value = |key: &str| service.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("usr/lib/sysusers.d");
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(folder.join("pointsman.conf"), packaging("pointsman.sysusers")).unwrap();
    let mut command = Command::new("systemd-sysusers");
    command.arg(format!("--root={}", dir.path().display()));
    let output = command.output().expect("systemd-sysusers is missing");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let made = |file: &str, name: &str| {
        let text = fs::read_to_string(dir.path().join("etc").join(file)).unwrap();
        text.lines().any(|line| line.starts_with(&format!("{name}:")))
    };
    assert!(made("passwd", value("User=")));
    let groups = value("SupplementaryGroups=").split_whitespace();
    for group in groups.chain([value("Group=")]) {
        assert!(made("group", group), "{group}");
    }
}
