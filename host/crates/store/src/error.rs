//! Errors of the store.

use std::path::PathBuf;

/// The reason why the file of the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A later version of the host has written the file.
    #[error("{path}: format version {found}, but this host knows versions up to {known}")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// The latest version that this host knows.
        known: u64,
    },
    /// Another process has the file open.
    #[error("{0}: in use by another process")]
    InUse(PathBuf),
    /// The file is not one of a store, or is broken.
    #[error("{path}: not a store, or broken")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<redb::Error>,
    },
    /// The file cannot be opened safely.
    #[error(transparent)]
    File(#[from] pointsman_files::ReadError),
    /// The file cannot be read or written.
    #[error("cannot use the store")]
    Database(#[source] Box<redb::Error>),
    /// The thread that writes cannot be started.
    #[error("failed to start the writer of the store")]
    Thread(#[source] std::io::Error),
}

impl OpenError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NewerFormat { .. } => "store_format_newer",
            Self::InUse(_) => "store_in_use",
            Self::Corrupt { .. } => "store_corrupt",
            Self::File(_) | Self::Database(_) | Self::Thread(_) => "store_unavailable",
        }
    }
}

/// The reason why the store cannot be read, or does not take a value.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be read or written.
    #[error("cannot use the store")]
    Database(#[source] Box<redb::Error>),
    /// The file could not be opened again after a failure.
    #[error("the file of the store is not open")]
    Closed,
    /// The value is longer than the namespace allows.
    #[error("a value of {bytes} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Length of the value.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too much is waiting to be written.
    #[error("too much is waiting to be written")]
    Busy,
    /// A value is not what the namespace has.
    #[error("invalid value in the store")]
    Value(#[from] serde_json::Error),
}

/// Converts any error of the database.
pub(crate) fn database(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(error) => Self::Database(error),
            StoreError::Closed
            | StoreError::TooLarge { .. }
            | StoreError::Busy
            | StoreError::Value(_) => {
                Self::Database(Box::new(redb::Error::Corrupted(error.to_string())))
            }
        }
    }
}
