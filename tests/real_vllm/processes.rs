//! The processes of an engine, read from `/proc`.

use std::fs;

use pointsman_tests::host::is_alive;

/// Returns the living processes of a session. All processes of vLLM stay in the session of the
/// first one, even if they are reparented.
pub(crate) fn session_members(session: u32) -> Vec<u32> {
    let session_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name: state, parent, group, session.
        stat.rsplit(") ").next()?.split(' ').nth(3)?.parse().ok()
    };
    let all = fs::read_dir("/proc").unwrap();
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| session_of(pid) == Some(session) && is_alive(pid)).collect()
}

/// Returns the name of a process, which the kernel truncates to 15 bytes.
pub(crate) fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Returns the process with this name, which is truncated to 15 bytes.
pub(crate) fn named(pids: &[u32], full_name: &str) -> Option<u32> {
    let full_name = full_name.get(..15).unwrap_or(full_name);
    pids.iter().copied().find(|pid| name(*pid) == full_name)
}

/// Returns the arguments of a process, separated by spaces.
pub(crate) fn command_line(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Returns the resident memory of a process in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
