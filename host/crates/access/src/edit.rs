//! Changes keys files, and keeps their comments and their order.

mod table;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pointsman_files::{WriteError, write_atomic};
use pointsman_settings::{FileError, folder_of};
use toml_edit::{ArrayOfTables, DocumentMut, Item, RawString, Table};

use self::table::{key_table, replace_secret};
use crate::file::source;
use crate::groups::{Definitions, Grants};
use crate::limits::Limits;
use crate::secret::{NewSecret, NoRandomness, new_id};

/// The permissions of a new file.
const MODE: u32 = 0o600;
/// The beginning of a new file.
const HEADER: &str = "# Keys of Pointsman: who may ask what, and how much. Secrets are not in this \
                      file, only their digests.\n# `pointsman key new` adds a key.\n";

/// A keys file that is being changed. Other commands wait until it is saved or dropped.
#[derive(Debug)]
pub struct KeysFile {
    path: PathBuf,
    document: DocumentMut,
    definitions: Definitions,
    /// Held until the change is written.
    _lock: File,
}

/// A key that is to be added.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Its name; `None` for a random one.
    pub id: Option<String>,
    /// The tenant.
    pub tenant: String,
    /// The group.
    pub group: Option<String>,
    /// When the key expires.
    pub expires: Option<SystemTime>,
    /// What it may be used for.
    pub grants: Grants,
    /// Its limits.
    pub limits: Limits,
}

/// A keys file cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file has errors, or would have them.
    #[error(transparent)]
    Invalid(#[from] FileError),
    /// The lock of the file cannot be taken.
    #[error("failed to lock the folder of the keys file: {0}")]
    Lock(#[source] io::Error),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The new file cannot be given to the owner of the old one.
    #[error("the file was changed, but could not be given to user {owner}, who had it: {source}")]
    Owner {
        /// The user id.
        owner: u32,
        /// The cause.
        source: io::Error,
    },
    /// The keys are not written as tables.
    #[error("the keys are not written as `[[keys]]`; change the file by hand")]
    Inline,
    /// There is not such a key.
    #[error("no key has the id `{0}`")]
    UnknownKey(String),
    /// A key has this name already.
    #[error("a key has the id `{0}` already")]
    Duplicate(String),
    /// No secret can be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl KeysFile {
    /// Opens a file, or begins a new one. Waits until no other command changes it.
    ///
    /// # Errors
    /// If the file has errors.
    pub fn lock(path: &Path) -> Result<Self, EditError> {
        // The file behind a link is changed, and not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let lock = lock(&path)?;
        let text = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => HEADER.to_owned(),
            Err(_) | Ok(_) => source(&path)?,
        };
        let definitions = parse(&path, &text)?;
        // The text is valid TOML.
        let document = text.parse().unwrap_or_default();
        Ok(Self { path, document, definitions, _lock: lock })
    }

    /// Returns what the file defines, without unsaved changes.
    pub fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// Adds a key. Returns its name and its secret.
    ///
    /// # Errors
    /// If a key has the name already.
    pub fn add(&mut self, key: NewKey) -> Result<(String, NewSecret), EditError> {
        let id = match key.id.clone() {
            Some(id) => id,
            None => new_id()?,
        };
        if self.definitions.keys.iter().any(|known| known.id == id) {
            return Err(EditError::Duplicate(id));
        }
        let secret = NewSecret::generate()?;
        let mut table = key_table(&id, &secret.hash(), &key);
        if self.document.is_empty() {
            // A file with comments only, which are above the first key.
            let above = self.document.trailing().as_str().unwrap_or_default().to_owned();
            table.decor_mut().set_prefix(format!("{above}\n"));
            self.document.set_trailing("");
        }
        self.tables()?.push(table);
        Ok((id, secret))
    }

    /// Removes a key: all its secrets are refused from then on.
    ///
    /// # Errors
    /// If there is not such a key.
    pub fn remove(&mut self, id: &str) -> Result<(), EditError> {
        let tables = self.tables()?;
        let index = tables.iter().position(|table| is_key(table, id));
        let index = index.ok_or_else(|| EditError::UnknownKey(id.to_owned()))?;
        let above = tables.get(index).map(comments_above).unwrap_or_default();
        tables.remove(index);
        if above.is_empty() {
            return Ok(());
        }
        match tables.get_mut(index) {
            Some(next) => {
                let own = next.decor().prefix().and_then(RawString::as_str).unwrap_or_default();
                let both = format!("{above}{own}");
                next.decor_mut().set_prefix(both);
            }
            None => {
                let trailing = self.document.trailing().as_str().unwrap_or_default();
                let both = format!("{above}{trailing}");
                self.document.set_trailing(both);
            }
        }
        Ok(())
    }

    /// Replaces the secret of a key. The old ones are valid until `old_until` at the latest; `None`
    /// refuses them from now on.
    ///
    /// # Errors
    /// If there is not such a key.
    pub fn rotate(
        &mut self,
        id: &str,
        old_until: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<NewSecret, EditError> {
        let key = self.definitions.keys.iter().find(|key| key.id == id);
        let old = key.map(|key| key.hashes.clone()).unwrap_or_default();
        let table = self.tables()?.iter_mut().find(|table| is_key(table, id));
        let table = table.ok_or_else(|| EditError::UnknownKey(id.to_owned()))?;
        let secret = NewSecret::generate()?;
        // A secret that is replaced for the second time does not live longer by that.
        let old = old_until.into_iter().flat_map(|until| {
            old.iter()
                .map(move |(hash, expires)| (*hash, expires.map_or(until, |at| at.min(until))))
        });
        let old: Vec<_> = old.filter(|(_, until)| *until > now).collect();
        replace_secret(table, &secret.hash(), &old);
        Ok(secret)
    }

    /// Writes the file, so that a reader finds the old content or the new one. The new content
    /// survives a power failure once this returns.
    ///
    /// # Errors
    /// If the new content would not be valid, or cannot be written.
    pub fn save(self) -> Result<(), EditError> {
        let text = self.document.to_string();
        parse(&self.path, &text)?;
        let old = fs::metadata(&self.path).ok();
        let mode = old.as_ref().map_or(MODE, |old| old.mode() & 0o755);
        write_atomic(&self.path, text.as_bytes(), mode)?;
        let Some(old) = old else { return Ok(()) };
        let fail = |source| EditError::Owner { owner: old.uid(), source };
        let new = fs::metadata(&self.path).map_err(fail)?;
        if (new.uid(), new.gid()) == (old.uid(), old.gid()) {
            return Ok(());
        }
        // Root has changed the file of the host's user, who could not read it otherwise.
        chown(&self.path, Some(old.uid()), Some(old.gid())).map_err(fail)
    }

    /// Returns the tables of the keys.
    fn tables(&mut self) -> Result<&mut ArrayOfTables, EditError> {
        let keys = self.document.entry("keys");
        let keys = keys.or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        keys.as_array_of_tables_mut().ok_or(EditError::Inline)
    }
}

/// Returns the comments above a table that are not about it: a blank line follows them.
fn comments_above(table: &Table) -> String {
    let prefix = table.decor().prefix().and_then(RawString::as_str).unwrap_or_default();
    let end = prefix.rfind("\n\n").map_or(0, |at| at + 1);
    let above = &prefix[..end];
    if above.trim().is_empty() { String::new() } else { above.to_owned() }
}

fn is_key(table: &Table, id: &str) -> bool {
    table.get("id").and_then(Item::as_str) == Some(id)
}

fn parse(path: &Path, text: &str) -> Result<Definitions, FileError> {
    Definitions::parse(text).map_err(|errors| FileError::new(path, errors))
}

/// Waits for the lock of a keys file. It is that of the folder: the file itself is replaced, and a
/// file for the lock would belong to the first of several users.
fn lock(path: &Path) -> Result<File, EditError> {
    let folder = File::open(folder_of(path)).map_err(EditError::Lock)?;
    folder.lock().map_err(EditError::Lock)?;
    Ok(folder)
}
