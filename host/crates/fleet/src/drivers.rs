//! The drivers: one folder for each kind of engine.
//!
//! A driver declares its key, its section of the configuration, its defaults and its memory need in
//! a [`DriverInfo`], and implements `Driver`. `host/ARCHITECTURE.md` says how to add one.

pub mod command;
pub mod external;
pub mod llama_cpp;
pub mod pointsman;
mod process_section;
mod server;
pub mod vllm;

use crate::driver::DriverInfo;

/// All drivers, in the order in which messages name them.
pub static DRIVERS: &[&DriverInfo] =
    &[&vllm::DRIVER, &llama_cpp::DRIVER, &command::DRIVER, &external::DRIVER, &pointsman::DRIVER];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::DRIVERS;

    #[test]
    fn keys_are_unique() {
        let keys: BTreeSet<&str> = DRIVERS.iter().map(|driver| driver.key).collect();
        assert_eq!(keys.len(), DRIVERS.len());
    }
}
