//! The memory of engines: the processes of each, and what each of them holds.

use std::collections::{HashMap, HashSet};

use super::clients::Clients;
use crate::memory::Machine;
use crate::proc_stat;

/// The measured memory of an engine with everything that it has started, in bytes. Pages that
/// several of its processes share are counted for each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeMemory {
    /// Number of processes.
    pub processes: u32,
    /// System memory of their own.
    pub anonymous: u64,
    /// Pages of mapped files, such as a model that llama.cpp maps.
    pub file: u64,
    /// Shared memory, such as that of `/dev/shm`.
    pub shared: u64,
    /// Dedicated memory of GPUs, according to the graphics driver.
    pub vram: u64,
    /// System memory that GPUs use (GTT), according to the graphics driver.
    pub gtt: u64,
    /// Memory of GPUs that only the compute driver (KFD) reports.
    pub compute: u64,
}

impl TreeMemory {
    /// Returns the system memory of the processes in bytes, without what GPUs use.
    pub fn system(&self) -> u64 {
        self.anonymous.saturating_add(self.file).saturating_add(self.shared)
    }

    /// Returns the memory of GPUs in bytes.
    pub fn gpu(&self) -> u64 {
        self.vram.saturating_add(self.gtt).saturating_add(self.compute)
    }

    /// Returns each kind of memory with its name.
    pub fn kinds(&self) -> [(&'static str, u64); 6] {
        [
            ("anonymous", self.anonymous),
            ("file", self.file),
            ("shared", self.shared),
            ("vram", self.vram),
            ("gtt", self.gtt),
            ("compute", self.compute),
        ]
    }
}

/// The processes of a machine at one moment.
#[derive(Debug)]
pub struct Processes {
    machine: Machine,
    /// The session of each process.
    sessions: HashMap<u32, u32>,
    children: HashMap<u32, Vec<u32>>,
}

impl Processes {
    /// Reads which processes a machine has.
    pub fn read(machine: &Machine) -> Self {
        let mut processes =
            Self { machine: machine.clone(), sessions: HashMap::new(), children: HashMap::new() };
        for name in machine.names("proc") {
            let Ok(pid) = name.parse() else { continue };
            let Some(text) = machine.text(&format!("proc/{pid}/stat")) else { continue };
            let Some(stat) = proc_stat::parse(text.as_bytes()) else { continue };
            if let (Ok(parent), Ok(session)) = (stat.ppid.try_into(), stat.session.try_into()) {
                processes.sessions.insert(pid, session);
                processes.children.entry(parent).or_default().push(pid);
            }
        }
        processes
    }

    /// Measures the processes of the session that `leader` leads, and their descendants; `None` if
    /// the leader has ended.
    pub fn tree(&self, leader: u32) -> Option<TreeMemory> {
        let pids = self.members(leader)?;
        let mut memory = TreeMemory::default();
        let mut clients = Clients::default();
        let mut computing: u64 = 0;
        for pid in pids {
            memory.processes = memory.processes.saturating_add(1);
            self.add_resident(pid, &mut memory);
            clients.add(&self.machine, pid);
            let held = self.machine.holder(pid).bytes.unwrap_or_default();
            computing = computing.saturating_add(held);
        }
        (memory.vram, memory.gtt) = clients.memory();
        // Depending on the kernel, both drivers report the same memory, or only one does.
        memory.compute = computing.saturating_sub(memory.vram.saturating_add(memory.gtt));
        Some(memory)
    }

    fn members(&self, leader: u32) -> Option<HashSet<u32>> {
        self.sessions.get(&leader)?;
        let in_session = self.sessions.iter().filter(|(_, session)| **session == leader);
        let mut open: Vec<u32> = in_session.map(|(pid, _)| *pid).chain([leader]).collect();
        let mut members = HashSet::new();
        while let Some(pid) = open.pop() {
            if members.insert(pid) {
                open.extend(self.children.get(&pid).into_iter().flatten());
            }
        }
        Some(members)
    }

    /// Adds the resident memory of a process. Sandboxes may only report the sum of its kinds.
    fn add_resident(&self, pid: u32, memory: &mut TreeMemory) {
        let text = self.machine.text(&format!("proc/{pid}/status")).unwrap_or_default();
        let kind = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key))?;
            // The value is in KiB, although the kernel writes "kB".
            value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let anonymous = kind("RssAnon:").or_else(|| kind("VmRSS:")).unwrap_or_default();
        memory.anonymous = memory.anonymous.saturating_add(anonymous);
        memory.file = memory.file.saturating_add(kind("RssFile:").unwrap_or_default());
        memory.shared = memory.shared.saturating_add(kind("RssShmem:").unwrap_or_default());
    }
}
