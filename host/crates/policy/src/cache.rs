//! Compiled components on disk, so that a start need not compile.
//!
//! A compiled component is machine code: loading one means trusting whoever wrote it. So only files are loaded that this
//! user wrote, in a folder that nobody else may write to, and whose digest is that of their content. The name of a file is
//! the digest of the component and a hash of everything that the code depends on: wasmtime's version and settings, and the
//! CPU.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Length of the digest that a file ends with.
const DIGEST: usize = 32;

#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    compatibility: u64,
}

impl Cache {
    /// The cache in `dir`; `None`, with a line in the log, if that folder cannot be trusted or made.
    pub(crate) fn open(dir: PathBuf, engine: &Engine) -> Option<Self> {
        if let Err(error) = make_private(&dir) {
            tracing::warn!("compiled policies are not kept: {}: {error}", dir.display());
            return None;
        }
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        Some(Self { dir, compatibility: hasher.finish() })
    }

    /// The compiled component for the component with this digest.
    pub(crate) fn load(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        let code = match read_ours(&path) {
            Ok(code) => code,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("a compiled policy is not used: {}: {error}", path.display());
                return None;
            }
        };
        match deserialize(engine, &code) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!("a compiled policy is not used: {}: {error:#}", path.display());
                None
            }
        }
    }

    /// Keep compiled code. Failing to is no failure.
    pub(crate) fn store(&self, digest: &str, code: &[u8]) {
        let path = self.path(digest);
        if let Err(error) = write_whole(&path, code) {
            tracing::warn!("a compiled policy is not kept: {}: {error}", path.display());
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}-{:016x}.cwasm", self.compatibility))
    }
}

#[expect(
    unsafe_code,
    reason = "the one place where compiled code is loaded; everything around it is there to make that safe"
)]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: `code` must be what this engine's `precompile_component` has made. The file is ours alone, its digest is right,
    // and its name carries the compatibility hash, which wasmtime checks once more.
    unsafe { Component::deserialize(engine, code) }
}

/// Make `dir` a folder that only we can write to.
fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    check_ours(&fs::metadata(dir)?)
}

fn check_ours(metadata: &fs::Metadata) -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return refuse("others may write to it; take that away with chmod go-w");
    }
    Ok(())
}

fn read_ours(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    check_ours(&file.metadata()?)?;
    let mut content = Vec::new();
    io::Read::read_to_end(&mut file, &mut content)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    let length = content.len().checked_sub(DIGEST).ok_or_else(damaged)?;
    let digest = content.split_off(length);
    if Sha256::digest(&content)[..] != digest[..] {
        return Err(damaged());
    }
    Ok(content)
}

fn write_whole(path: &Path, code: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let new = path.with_extension(format!("{}-{number}.new", std::process::id()));
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(code)?;
        file.write_all(&Sha256::digest(code))?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // Half a file on a full disk is worse than none.
        drop(fs::remove_file(&new));
    }
    written
}
