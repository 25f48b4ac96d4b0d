//! What the memory and the GPUs of a machine are used for, as its kernel measures it.
//!
//! A [`Hardware`] is a snapshot of the whole machine; [`Processes`] measure the memory of single
//! engines. Both only read files below a root, which is `/` except in tests, and take
//! milliseconds: call them on a blocking thread. All input is untrusted, as in the files of models.

mod clients;
mod pressure;
mod processes;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use self::pressure::MemoryPressure;
pub use self::processes::{Processes, TreeMemory};
use crate::memory::{Gpu, Holder, Machine};

/// A snapshot of the memory and the GPUs of a machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hardware {
    /// The AMD GPUs, ordered by render node.
    pub gpus: Vec<Gpu>,
    /// The processes that hold a GPU for computing, ordered by id.
    pub holders: Vec<Holder>,
    /// System memory in bytes, if the kernel reports it.
    pub memory_total: Option<u64>,
    /// System memory in bytes that is available without swapping, if the kernel reports it.
    pub memory_available: Option<u64>,
    /// How much tasks wait for memory; `None` if the kernel does not measure it.
    pub pressure: Option<MemoryPressure>,
}

impl Hardware {
    /// Reads the files of the kernel below `root`. What is missing or malformed there is left out.
    pub fn read(root: &Path) -> Self {
        Self::measure(&Machine::new(root))
    }

    pub(crate) fn measure(machine: &Machine) -> Self {
        Self {
            gpus: machine.gpus(),
            holders: machine.holders(),
            memory_total: machine.total(),
            memory_available: machine.available(),
            pressure: MemoryPressure::measure(machine),
        }
    }
}
