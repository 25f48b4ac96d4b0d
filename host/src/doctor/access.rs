//! Checks of the devices of GPUs, and of what containers and groups allow.

use super::finding::Finding;
use super::system::System;

const IN_CONTAINER: &str = "start the container with `--device /dev/kfd --device /dev/dri` \
    (compose: `devices`)";

pub(super) fn check(system: &System) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !system.gpus.is_empty() || system.exists("dev/kfd") {
        findings.push(node(system, "kfd", "dev/kfd"));
    }
    for gpu in &system.gpus {
        let path = format!("dev/dri/renderD{}", gpu.minor);
        findings.push(node(system, "render_node", &path));
    }
    findings.extend(sandbox(system));
    findings
}

/// Checks that the process may use a device.
fn node(system: &System, check: &'static str, path: &str) -> Finding {
    let Some(device) = system.device(path) else {
        let fact = format!("/{path} does not exist, although the kernel has a GPU");
        let fix = match system.is_container() {
            true => IN_CONTAINER,
            false => "load the driver (`modprobe amdgpu`), and read the kernel's log (`dmesg`)",
        };
        return Finding::problem(check, fact, fix);
    };
    let Some(user) = system.user() else {
        return Finding::note(check, format!("/{path} exists; the user is unknown"), "");
    };
    if system.may_use(&user, &device) {
        return Finding::ok(check, format!("/{path} can be read and written"));
    }
    let gids: Vec<String> = user.gids.iter().map(u32::to_string).collect();
    let (group, gid) = (system.group_name(device.gid), device.gid);
    let fact = format!(
        "/{path} belongs to the group {group} ({gid}), and the user {} is only in the groups {}",
        user.uid,
        gids.join(", ")
    );
    let name = system.variable("USER").unwrap_or("USER");
    let fix = match system.is_container() {
        // Names of groups differ between the host and the container.
        true => format!("start the container with `--group-add {gid}` (compose: `group_add`)"),
        false => format!("run `sudo usermod -aG render,video {name}`, and log in again"),
    };
    Finding::problem(check, fact, fix)
}

/// Checks what commonly keeps ROCm from working in containers.
fn sandbox(system: &System) -> Vec<Finding> {
    const CHECK: &str = "container";
    if !system.is_container() || system.gpus.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if system.field("proc/self/status", "Seccomp").as_deref() == Some("2") {
        findings.push(Finding::note(
            CHECK,
            "a seccomp filter is active",
            "if ROCm fails to map memory, use `--security-opt seccomp=unconfined`, and `--cap-add \
             SYS_PTRACE` for tools",
        ));
    }
    if system.number("sys/fs/selinux/enforce") == Some(1) {
        findings.push(Finding::note(
            CHECK,
            "SELinux is enforcing",
            "allow devices in containers: `setsebool -P container_use_devices 1`",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "a container without a seccomp filter"));
    }
    findings
}
