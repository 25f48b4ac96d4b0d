//! Checks of the processor, of limits of processes, and of clocks.

use std::time::{Duration, SystemTime};

use super::finding::Finding;
use super::system::System;

/// Open files that a host with many clients and engines needs.
const FILES: u64 = 65_535;
/// Open files with which a host serves few clients.
const FEW_FILES: u64 = 4096;
/// 2026-01-01. No clock of this program's systems can be before it.
const RELEASED: Duration = Duration::from_secs(1_767_225_600);

pub(super) fn check(system: &System, now: SystemTime) -> Vec<Finding> {
    vec![processor(system), open_files(system), clock(system, now), clock_source(system)]
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
    let limits = system.text("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    // `unlimited` is not a number.
    let limit = |word: &&str| word.parse::<u64>().unwrap_or(u64::MAX);
    // The host raises its soft limit to the hard one.
    let Some(hard) = words.get(1).map(limit) else {
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
