//! The processes of an engine, as the kernel has them.

use std::fs;

use pointsman_tests::host::alive;

/// The living members of a session. vLLM's processes stay in that of the first one, whoever their parent is.
pub(crate) fn of_session(session: u32) -> Vec<u32> {
    let of_one = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name: state, parent, group, session.
        stat.rsplit(") ").next()?.split(' ').nth(3)?.parse().ok()
    };
    let all = fs::read_dir("/proc").unwrap();
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| of_one(pid) == Some(session) && alive(pid)).collect()
}

/// The kernel's name of a process, which is cut after 15 bytes.
pub(crate) fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The one with this name; names are cut after 15 bytes.
pub(crate) fn named(pids: &[u32], wanted: &str) -> Option<u32> {
    let wanted = wanted.get(..15).unwrap_or(wanted);
    pids.iter().copied().find(|pid| name(*pid) == wanted)
}

/// Arguments, with spaces between them.
pub(crate) fn command_line(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Resident bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
