//! Why records cannot be written.

use std::io;
use std::path::PathBuf;

/// The reason why a recorder cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory of the records cannot be created.
    #[error("failed to create the records directory {}: {source}", path.display())]
    CreateDir {
        /// The directory.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The writer thread cannot be started.
    #[error("failed to start the thread that writes records: {0}")]
    SpawnThread(#[source] io::Error),
}
