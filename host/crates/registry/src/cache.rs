//! Artifacts that were pulled, each in a folder with the name of its digest, and which of them tags
//! lead to. What is there was verified before it was written, and is only written as a whole.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pointsman_files::{create_private, place_folder, sync_folder, write_atomic};
use pointsman_spec::{OciDigest, OciVersion, PolicySource};

use crate::layout::Artifact;

/// Maximum number of artifacts that are kept, besides those that tags and sources lead to.
const MAX_UNUSED: usize = 8;

/// The folder of artifacts.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Creates the cache of a folder, which need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Returns the cache that has this folder of a source.
    pub fn containing(folder: &Path) -> Option<Self> {
        folder.parent()?.parent().map(|dir| Self::new(dir.to_owned()))
    }

    fn artifacts(&self) -> PathBuf {
        self.dir.join("artifacts")
    }

    /// Returns true if the artifact is in the cache.
    pub fn has(&self, digest: &OciDigest) -> bool {
        self.artifacts().join(digest.hex()).is_dir()
    }

    /// Writes an artifact, if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn add(&self, digest: &OciDigest, artifact: &Artifact) -> io::Result<()> {
        if self.has(digest) {
            return Ok(());
        }
        let artifacts = self.artifacts();
        create_private(&self.dir)?;
        create_private(&artifacts)?;
        let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&artifacts)?;
        write(artifact, new.path())?;
        place_folder(new.path(), &artifacts.join(digest.hex()))?;
        Ok(())
    }

    /// Returns the artifact that a source leads to, if it is in the cache.
    pub fn current(&self, source: &PolicySource) -> Option<OciDigest> {
        let digest = match source.reference.version() {
            OciVersion::Digest(digest) => digest.clone(),
            OciVersion::Tag(_) => {
                let target = fs::read_link(source.folder(&self.dir)).ok()?;
                format!("sha256:{}", target.file_name()?.to_str()?).parse().ok()?
            }
        };
        self.has(&digest).then_some(digest)
    }

    /// Has the tag of a source lead to an artifact of the cache, in one step.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn point(&self, source: &PolicySource, digest: &OciDigest) -> io::Result<()> {
        if source.reference.digest().is_some() || self.current(source).as_ref() == Some(digest) {
            return Ok(());
        }
        let link = source.folder(&self.dir);
        create_private(&self.dir.join("tags"))?;
        let mut new = OsString::from(&link);
        new.push(".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let target = Path::new("..").join("artifacts").join(digest.hex());
        std::os::unix::fs::symlink(target, &new)?;
        fs::rename(&new, &link)?;
        sync_folder(&self.dir.join("tags"))
    }

    /// Removes the oldest artifacts that neither a source nor a tag leads to, and the tags that no
    /// source has.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn prune(&self, sources: &[PolicySource]) -> io::Result<()> {
        let links: BTreeSet<PathBuf> =
            sources.iter().map(|source| source.folder(&self.dir)).collect();
        for link in entries(&self.dir.join("tags"))? {
            if !links.contains(&link) {
                fs::remove_file(&link)?;
            }
        }
        let used: BTreeSet<OsString> = sources
            .iter()
            .filter_map(|source| self.current(source))
            .map(|digest| OsString::from(digest.hex()))
            .collect();
        let artifacts = entries(&self.artifacts())?.into_iter();
        let is_unused =
            |folder: &PathBuf| folder.file_name().is_some_and(|name| !used.contains(name));
        let modified = |folder: &PathBuf| {
            fs::metadata(folder)
                .and_then(|metadata| metadata.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut unused: Vec<PathBuf> = artifacts.filter(is_unused).collect();
        unused.sort_by_key(modified);
        let surplus = unused.len().saturating_sub(MAX_UNUSED);
        unused.drain(..surplus).try_for_each(fs::remove_dir_all)
    }
}

impl Artifact {
    /// Writes the files of a policy into a folder, which has to exist.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        write(self, folder)
    }
}

fn write(artifact: &Artifact, folder: &Path) -> io::Result<()> {
    // The names were checked when the artifact was unpacked.
    for (name, text) in &artifact.files {
        write_atomic(&folder.join(name), text.as_bytes(), 0o644)?;
    }
    write_atomic(&folder.join(&artifact.component_name), &artifact.component, 0o644)?;
    Ok(())
}

/// Returns the entries of a folder; none if there is no such folder.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| entry.map(|entry| entry.path())).collect(),
    }
}

#[cfg(test)]
mod tests;
