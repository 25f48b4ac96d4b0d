//! How much tasks wait for memory: `/proc/pressure/memory`.

use crate::memory::Machine;

/// The part of the last 10 seconds in which tasks waited for memory, from 0 to 1. It rises before
/// a machine with unified memory hangs, where the kernel may end no process at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryPressure {
    /// At least one task waited.
    pub some: f64,
    /// All tasks waited.
    pub full: f64,
}

impl MemoryPressure {
    pub(super) fn measure(machine: &Machine) -> Option<Self> {
        let text = machine.text("proc/pressure/memory")?;
        let average = |kind: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(kind))?;
            let percent = rest.split_whitespace().find_map(|part| part.strip_prefix("avg10="))?;
            let percent: f64 = percent.parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
        };
        Some(Self { some: average("some ")?, full: average("full ")? })
    }
}
