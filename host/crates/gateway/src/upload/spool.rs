//! Files for the uploads that are too large for memory.
//!
//! A file has no name, so that it disappears with the last handle to it, however the host ends.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::task::spawn_blocking;

use super::{BodyMemory, Reservation};
use crate::error::RouteError;
use crate::settings::SpoolSettings;

/// Bytes that are written at a time.
const WRITE_SIZE: usize = 256 << 10;

/// The folder of the files, and the space that they may take.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    folder: Arc<PathBuf>,
    space: Arc<BodyMemory>,
}

impl Spool {
    /// Creates the spool. `gauge` is the number of bytes in use.
    pub(crate) fn new(settings: &SpoolSettings, gauge: Gauge) -> Self {
        let space = BodyMemory::new(settings.max_size, settings.max_upload, gauge);
        Self { folder: Arc::new(settings.folder.clone()), space: Arc::new(space) }
    }

    /// Returns the spool of a changed configuration. Files that exist count against its size, too.
    pub(super) fn reconfigured(&self, settings: &SpoolSettings) -> Self {
        self.space.set_limit(settings.max_size, settings.max_upload);
        Self { folder: Arc::new(settings.folder.clone()), space: Arc::clone(&self.space) }
    }

    /// Creates a file.
    pub(super) async fn create(&self, tenant: Option<&str>) -> Result<SpoolFile, RouteError> {
        let folder = Arc::clone(&self.folder);
        let create = move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&*folder)?;
            tempfile::tempfile_in(&*folder)
        };
        let file = blocking(create).await?;
        let space = Reservation::new(&self.space, tenant);
        Ok(SpoolFile { file: Arc::new(file), written: 0, buffer: Vec::new(), space })
    }
}

/// A file of one request.
#[derive(Debug)]
pub(super) struct SpoolFile {
    file: Arc<File>,
    written: u64,
    /// What is written next.
    buffer: Vec<u8>,
    space: Reservation,
}

impl SpoolFile {
    /// Returns the number of bytes so far.
    pub(super) fn size(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Appends bytes.
    pub(super) async fn append(&mut self, data: &[u8]) -> Result<(), RouteError> {
        self.space.grow(data.len()).map_err(|_| RouteError::SpoolFull)?;
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= WRITE_SIZE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), RouteError> {
        let (file, at) = (Arc::clone(&self.file), self.written);
        let buffer = std::mem::take(&mut self.buffer);
        // A disk may take its time, for which other requests must not wait.
        let mut buffer = blocking(move || file.write_all_at(&buffer, at).map(|()| buffer)).await?;
        self.written += buffer.len() as u64;
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    /// Writes what is left, and returns the file with the reservation of its space.
    pub(super) async fn finish(mut self) -> Result<(Arc<File>, Reservation), RouteError> {
        self.flush().await?;
        Ok((self.file, self.space))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RouteError> {
    let done = spawn_blocking(work).await.map_err(io::Error::other).flatten();
    done.map_err(RouteError::Spool)
}
