//! The Debian package: installation, upgrade, removal and purge in a system of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use crate::artifacts::{artifact, commands, output};
use crate::debian_root::DebianRoot;

const CONFIG: &str = "etc/pointsman/pointsman.toml";
/// What an administrator adds to the configuration.
const EDIT: &str = "\n# edited\n";

/// Installs the package as the page says.
fn installed() -> DebianRoot {
    let root = DebianRoot::new();
    root.copy(&artifact(".deb"));
    root.copy(&artifact("SHA256SUMS"));
    root.walk(&commands("debian.md"));
    root
}

/// Replaces `systemctl` by a program that writes down its arguments, as if systemd ran.
fn record_systemctl(root: &DebianRoot) {
    let program = root.path("usr/local/bin/systemctl");
    fs::write(&program, "#!/bin/sh\necho \"$*\" >>/tmp/calls\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(root.path("run/systemd/system")).unwrap();
}

/// Returns how `systemctl` was called since the last time.
fn systemctl_calls(root: &DebianRoot) -> Vec<String> {
    let calls = root.path("tmp/calls");
    let text = fs::read_to_string(&calls).unwrap();
    fs::remove_file(calls).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Makes a package of the next version, with another configuration and the unit as it is.
fn upgrade(root: &DebianRoot) {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    output(Command::new("dpkg-deb").arg("-R").arg(artifact(".deb")).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let version = text.lines().find(|line| line.starts_with("Version: ")).unwrap();
    fs::write(&control, text.replace(version, &format!("{version}+next"))).unwrap();
    let config = tree.join(CONFIG);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("# of the next version\n{text}")).unwrap();
    let package = dir.path().join("next.deb");
    output(
        Command::new("dpkg-deb")
            .args(["-Znone", "--root-owner-group", "-b"])
            .arg(&tree)
            .arg(&package),
    );
    root.copy(&package);
}

#[test]
fn newcomer_installs_the_package() {
    let root = installed();
    assert!(root.run("pointsman --version").starts_with("pointsman "));
    // All files are as packed.
    assert_eq!(root.run("dpkg --verify pointsman"), "");
    let state = fs::metadata(root.path("var/lib/pointsman")).unwrap();
    assert_eq!(state.permissions().mode() & 0o777, 0o700);
    assert_eq!(state.uid().to_string(), root.run("id -u pointsman").trim());
    let unit = root.path("usr/lib/systemd/system/pointsman.service");
    let mut service = root.start(&unit);
    assert_eq!(service.ask(), 200);
    service.stop();
}

#[test]
fn installation_neither_enables_nor_starts_the_service() {
    let root = DebianRoot::new();
    root.copy(&artifact(".deb"));
    root.run("dpkg --install pointsman_*.deb");
    assert_eq!(root.run("systemctl is-enabled pointsman.service || true").trim(), "disabled");
    assert_eq!(
        root.run("pointsman check /etc/pointsman/pointsman.toml; echo $?").lines().last(),
        Some("0")
    );
}

#[test]
fn upgrade_keeps_the_configuration_and_the_running_service() {
    let root = installed();
    let unit = root.path("usr/lib/systemd/system/pointsman.service");
    let mut service = root.start(&unit);
    let edited = fs::read_to_string(root.path(CONFIG)).unwrap() + EDIT;
    fs::write(root.path(CONFIG), &edited).unwrap();
    upgrade(&root);
    record_systemctl(&root);
    root.run("dpkg --force-confdef --force-confold --install next.deb");
    assert_eq!(fs::read_to_string(root.path(CONFIG)).unwrap(), edited);
    let next = fs::read_to_string(root.path(&format!("{CONFIG}.dpkg-dist"))).unwrap();
    assert!(next.starts_with("# of the next version\n"));
    assert_eq!(root.run("/bin/systemctl is-enabled pointsman.service").trim(), "enabled");
    let calls = systemctl_calls(&root);
    assert!(calls.iter().any(|call| call.ends_with("reload pointsman.service")), "{calls:?}");
    let interrupts = ["stop", "start", "restart", "disable"];
    let is_left_alone = |call: &String| !call.split(' ').any(|word| interrupts.contains(&word));
    assert!(calls.iter().all(is_left_alone), "{calls:?}");
    assert_eq!(service.ask(), 200);
    service.stop();

    root.run("dpkg --remove pointsman");
    let calls = systemctl_calls(&root);
    let stop = |call: &String| {
        call.split(' ').any(|word| word == "stop") && call.contains("pointsman.service")
    };
    assert!(calls.iter().any(stop), "{calls:?}");
}

#[test]
fn removal_keeps_the_configuration_and_purge_deletes_it() {
    let root = installed();
    let edited = fs::read_to_string(root.path(CONFIG)).unwrap() + EDIT;
    fs::write(root.path(CONFIG), &edited).unwrap();
    fs::write(root.path("etc/pointsman/environment"), "KEY=secret\n").unwrap();
    fs::write(root.path("var/lib/pointsman/state"), "").unwrap();

    root.run("dpkg --remove pointsman");
    assert!(!root.path("usr/bin/pointsman").exists());
    assert!(
        !root.path("etc/systemd/system/multi-user.target.wants/pointsman.service").is_symlink()
    );
    assert_eq!(fs::read_to_string(root.path(CONFIG)).unwrap(), edited);
    assert!(root.path("var/lib/pointsman/state").exists());

    root.run("dpkg --purge pointsman");
    assert!(!root.path(CONFIG).exists());
    assert!(!root.path("var/lib/pointsman").exists());
    assert!(!root.path("var/cache/pointsman").exists());
    // Not of the package: it is the administrator's.
    assert!(root.path("etc/pointsman/environment").exists());
}

#[test]
fn lintian_finds_nothing() {
    let mut lintian = Command::new("lintian");
    lintian.args(["--no-cfg", "--allow-root", "--fail-on", "error,warning"]).arg(artifact(".deb"));
    output(&mut lintian);
}
