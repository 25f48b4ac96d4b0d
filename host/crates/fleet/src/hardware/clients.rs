//! The memory that a process has allocated through graphics drivers: `/proc/<pid>/fdinfo`.

use std::collections::HashMap;

use crate::memory::Machine;

/// An open render node. Descriptors that were duplicated or inherited have the same number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientId {
    /// The address of the GPU; client ids are unique per GPU.
    device: String,
    number: u64,
}

/// The memory of one client in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ClientMemory {
    vram: u64,
    gtt: u64,
}

/// The clients of graphics drivers that the processes of a tree have, each once.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<ClientId, ClientMemory>);

impl Clients {
    /// Adds the clients of a process. Those of other users are not visible.
    pub(super) fn add(&mut self, machine: &Machine, pid: u32) {
        let folder = format!("proc/{pid}/fdinfo");
        for name in machine.names(&folder) {
            let text = machine.text(&format!("{folder}/{name}")).unwrap_or_default();
            if let Some((id, memory)) = parse(&text) {
                self.0.insert(id, memory);
            }
        }
    }

    /// Returns the dedicated memory and the system memory (GTT) of all clients in bytes.
    pub(super) fn memory(&self) -> (u64, u64) {
        let sum =
            |part: fn(&ClientMemory) -> u64| self.0.values().map(part).fold(0, u64::saturating_add);
        (sum(|memory| memory.vram), sum(|memory| memory.gtt))
    }
}

/// Parses the description of a descriptor; `None` unless it is one of a graphics driver.
fn parse(text: &str) -> Option<(ClientId, ClientMemory)> {
    let value = |key: &str| {
        let of_key = |line: &str| {
            let (found, value) = line.split_once(':')?;
            (found == key).then(|| value.trim().to_owned())
        };
        text.lines().find_map(of_key)
    };
    let number = value("drm-client-id")?.parse().ok()?;
    let device = value("drm-pdev").unwrap_or_default();
    // Kernels since 6.11 have `resident`; before, `memory` meant the same.
    let region = |name: &str| {
        let text = value(&format!("drm-resident-{name}"))
            .or_else(|| value(&format!("drm-memory-{name}")))?;
        size(&text)
    };
    let memory = ClientMemory {
        vram: region("vram").unwrap_or_default(),
        gtt: region("gtt").unwrap_or_default(),
    };
    Some((ClientId { device, number }, memory))
}

/// Parses a size such as `1024 KiB`; without a unit, it is in bytes.
fn size(text: &str) -> Option<u64> {
    let mut parts = text.split_whitespace();
    let number: u64 = parts.next()?.parse().ok()?;
    let unit = match parts.next() {
        None => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some(_) => return None,
    };
    number.checked_mul(unit)
}
