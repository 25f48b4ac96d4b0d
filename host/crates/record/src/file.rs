//! The files: `decisions.jsonl` grows to its size limit and then becomes `decisions.1.jsonl`, and
//! so on up to a maximum number. Files are readable by their owner only and always consist of
//! complete lines.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use pointsman_files::create_private;
use rustix::fs::OFlags;

const CURRENT_FILE: &str = "decisions.jsonl";

/// Returns the record files in a directory, oldest first.
///
/// # Errors
/// If the directory cannot be read.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = numbered(dir)?;
    found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Returns the record files with their numbers; the file being written has number 0.
fn numbered(dir: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("decisions.").and_then(|rest| rest.strip_suffix(".jsonl"));
        if name == CURRENT_FILE {
            found.push((0, path));
        } else if let Some(number) =
            number.and_then(|number| number.parse().ok()).filter(|number| *number > 0)
        {
            found.push((number, path));
        }
    }
    Ok(found)
}

/// The set of record files in one directory.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    max_size: u64,
    keep: u32,
    open: Option<Open>,
    /// True if a pipe accepted part of a line, which cannot be undone.
    has_partial_line: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Size in bytes; a regular file consists of complete lines.
    size: u64,
    /// False for a pipe or device, which is neither rotated nor repaired.
    regular: bool,
}

impl Files {
    /// Creates the directory, if necessary. Files are opened by [`Files::prepare`].
    ///
    /// # Errors
    /// If the directory cannot be created, or other users can write to it: they could replace the
    /// files by links to others.
    pub(crate) fn new(dir: PathBuf, max_size: u64, keep: u32) -> io::Result<Self> {
        create_private(&dir)?;
        Ok(Self { dir, max_size, keep, open: None, has_partial_line: false })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(CURRENT_FILE)
    }

    /// Opens or rotates the file so that `bytes` fit. Returns true if the file was opened by this
    /// call.
    pub(crate) fn prepare(&mut self, bytes: usize) -> io::Result<bool> {
        if let Some(open) = &mut self.open {
            let meta = open.file.metadata()?;
            open.size = meta.len();
            if open.regular && meta.nlink() == 0 {
                // The file was removed: anything written to it would be lost.
                self.open = None;
            } else if open.regular && open.size > 0 && open.size + bytes as u64 > self.max_size {
                self.open = None;
                self.rotate()?;
            } else {
                return Ok(false);
            }
        }
        self.open = Some(Open::at(&self.path())?);
        let full =
            |open: &Open| open.regular && open.size > 0 && open.size + bytes as u64 > self.max_size;
        if self.open.as_ref().is_some_and(full) {
            self.open = None;
            self.rotate()?;
            self.open = Some(Open::at(&self.path())?);
        }
        Ok(true)
    }

    /// Appends complete lines: either all of them or none.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Err(io::ErrorKind::NotConnected.into()) };
        // End the partial line first, so that it does not damage the next one.
        let terminated;
        let text = if self.has_partial_line {
            terminated = [b"\n", lines].concat();
            &terminated
        } else {
            lines
        };
        let (written, appended) = open.append(text);
        if appended.is_ok() {
            self.has_partial_line = false;
        } else if !open.regular {
            self.has_partial_line |= written > 0;
            // The reader of a pipe may be restarted.
            self.open = None;
        } else if written > 0
            && let Err(error) = open.file.set_len(open.size)
        {
            // The partial line is removed when the file is opened again.
            self.open = None;
            return Err(error);
        }
        appended
    }

    fn rotate(&self) -> io::Result<()> {
        let numbered_path = |number: u32| self.dir.join(format!("decisions.{number}.jsonl"));
        let mut old = numbered(&self.dir)?;
        old.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        for (number, path) in old {
            if number >= self.keep {
                fs::remove_file(&path)?;
            } else {
                fs::rename(&path, numbered_path(number + 1))?;
            }
        }
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        // Without a reader, opening a pipe fails at once instead of blocking.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let flags = flags.bits().cast_signed();
        let is_pipe = fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file());
        let mut options = OpenOptions::new();
        options.append(true).read(!is_pipe).create(true).mode(0o600).custom_flags(flags);
        let mut file = options.open(path)?;
        let meta = file.metadata()?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the file is owned by another user",
            ));
        }
        let regular = meta.is_file();
        let mut size = meta.len();
        if regular {
            file.try_lock().map_err(|error| match error {
                fs::TryLockError::WouldBlock => {
                    io::Error::other("the file is locked by another host")
                }
                fs::TryLockError::Error(error) => error,
            })?;
            if meta.mode() & 0o077 != 0 {
                file.set_permissions(Permissions::from_mode(0o600))?;
            }
            let complete = complete_lines(&mut file, size)?;
            if complete < size {
                file.set_len(complete)?;
                size = complete;
            }
        }
        Ok(Self { file, size, regular })
    }

    /// Writes `text`; returns the number of bytes written and the error that stopped it.
    fn append(&mut self, text: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < text.len() {
            match self.file.write(&text[written..]) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        self.size += text.len() as u64;
        (written, Ok(()))
    }
}

/// Returns the length of the file up to the end of its last complete line. A killed writer may
/// leave an incomplete line.
fn complete_lines(file: &mut File, size: u64) -> io::Result<u64> {
    const CHUNK: u64 = 64 << 10;
    let mut end = size;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        Read::by_ref(file).take(end - start).read_to_end(&mut chunk)?;
        if let Some(position) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + position as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
