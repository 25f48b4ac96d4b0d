//! Checks of the processor, of limits of processes, and of clocks.

use std::time::{Duration, SystemTime};

use pointsman_fleet::format_size;

use super::expected::Expected;
use super::finding::Finding;
use super::system::System;

/// Open files that a host with many clients and engines needs.
const FILES: u64 = 65_535;
/// Open files with which a host serves few clients.
const FEW_FILES: u64 = 4096;
/// 2026-01-01. No clock of this program's systems can be before it.
const RELEASED: Duration = Duration::from_secs(1_767_225_600);

pub(super) fn check(system: &System, expected: &Expected, now: SystemTime) -> Vec<Finding> {
    let mut findings = vec![processor(system), open_files(system)];
    findings.extend(locked_memory(system, expected));
    findings.extend([clock(system, now), clock_source(system)]);
    findings
}

/// Returns the soft and the hard limit of a resource.
fn limits(system: &System, name: &str) -> Option<(u64, u64)> {
    let limits = system.text("proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = line.split_whitespace();
    // `unlimited` is not a number.
    let mut limit = || words.next().map(|word| word.parse::<u64>().unwrap_or(u64::MAX));
    Some((limit()?, limit()?))
}

/// Checks how much memory an engine may lock, which inherits the soft limit.
fn locked_memory(system: &System, expected: &Expected) -> Option<Finding> {
    const CHECK: &str = "locked_memory";
    let (limit, _) = limits(system, "Max locked memory")?;
    if limit == u64::MAX {
        return Some(Finding::ok(CHECK, "memory may be locked without a limit"));
    }
    let fact = format!("{} may be locked (RLIMIT_MEMLOCK)", format_size(limit));
    let fix = "raise the limit (`LimitMEMLOCK=infinity` of systemd, `--ulimit memlock=-1` of \
               Docker)";
    let lane = expected.locking.iter().find(|(_, need)| *need > limit);
    Some(match lane {
        Some((lane, need)) => Finding::warning(
            CHECK,
            format!(
                "only {fact}, and the lane `{lane}` locks its model ({}): it is not locked, and \
                 may be swapped out",
                format_size(*need)
            ),
            fix,
        ),
        None if !system.gpus.is_empty() => {
            let fact = format!("only {fact}: ROCm may fail to pin memory for transfers");
            Finding::note(CHECK, fact, fix)
        }
        None => Finding::ok(CHECK, fact),
    })
}

fn processor(system: &System) -> Finding {
    const CHECK: &str = "cpu";
    let Some(flags) = system.field("proc/cpuinfo", "flags") else {
        return Finding::note(CHECK, "the features of the processor are unknown", "");
    };
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    match (has("avx2"), has("avx512f")) {
        (_, true) => Finding::ok(CHECK, "the processor has AVX-512"),
        (true, false) => Finding::note(
            CHECK,
            "the processor has AVX2, but not AVX-512",
            "a vLLM for CPUs that was built for AVX-512 ends with SIGILL (exit code 132): use a \
             build for AVX2",
        ),
        (false, false) => Finding::warning(
            CHECK,
            "the processor has no AVX2",
            "most builds of engines end with SIGILL (exit code 132): use builds for this processor",
        ),
    }
}

fn open_files(system: &System) -> Finding {
    const CHECK: &str = "open_files";
    // The host raises its soft limit to the hard one.
    let Some((_, hard)) = limits(system, "Max open files") else {
        return Finding::note(CHECK, "the limit of open files is unknown", "");
    };
    let fact = format!("{hard} files may be open");
    let fix =
        "raise the limit to 65535 (LimitNOFILE of systemd, `--ulimit nofile=65535` of Docker)";
    match hard {
        FILES.. => Finding::ok(CHECK, fact),
        FEW_FILES.. => Finding::note(CHECK, fact, fix),
        _ => Finding::warning(CHECK, format!("only {fact}"), fix),
    }
}

fn clock(system: &System, now: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    const SYNC: &str = "run/systemd/timesync";
    // Earlier times have no date.
    let now = now.max(SystemTime::UNIX_EPOCH);
    let time = humantime::format_rfc3339_seconds(now);
    let fix = "set the clock and enable its synchronisation (`timedatectl set-ntp true`): tokens, \
               certificates and limits of keys depend on it";
    if now < SystemTime::UNIX_EPOCH + RELEASED {
        return Finding::problem(CHECK, format!("the clock is wrong: {time}"), fix);
    }
    if system.exists(SYNC) && !system.exists(&format!("{SYNC}/synchronized")) {
        let fact = format!("systemd has not synchronised the clock ({time})");
        return Finding::warning(CHECK, fact, fix);
    }
    Finding::ok(CHECK, format!("the clock is {time}"))
}

fn clock_source(system: &System) -> Finding {
    const CHECK: &str = "clock_source";
    const FILE: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    match system.line(FILE).as_deref() {
        None => Finding::ok(CHECK, "the clock source is unknown"),
        Some(slow @ ("hpet" | "acpi_pm")) => Finding::note(
            CHECK,
            format!("the clock source is {slow}: each look at the clock is slow"),
            "check why the kernel does not use `tsc` (`dmesg | grep -i tsc`)",
        ),
        Some(source) => Finding::ok(CHECK, format!("the clock source is {source}")),
    }
}
