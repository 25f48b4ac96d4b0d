//! The files: `decisions.jsonl`, which grows to its limit and then becomes `decisions.1.jsonl`, and so on up to a number of
//! them. Readable by their owner only, and made of whole lines whatever happens.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

const NAME: &str = "decisions.jsonl";

/// The files of records in a folder, oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = numbered(dir)?;
    found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The same with their numbers; the one that is written has 0.
fn numbered(dir: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("decisions.").and_then(|rest| rest.strip_suffix(".jsonl"));
        if name == NAME {
            found.push((0, path));
        } else if let Some(number) =
            number.and_then(|number| number.parse().ok()).filter(|number| *number > 0)
        {
            found.push((number, path));
        }
    }
    Ok(found)
}

/// Where records go.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    max_size: u64,
    keep: u32,
    open: Option<Open>,
    /// A pipe took a part of a line, which cannot be taken back.
    torn: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Bytes in it; all of them whole lines, in a regular file.
    size: u64,
    /// A pipe or a device is neither rotated nor repaired.
    regular: bool,
}

impl Files {
    /// Records go to this folder, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn new(dir: PathBuf, max_size: u64, keep: u32) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Self { dir, max_size, keep, open: None, torn: false })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// See that there is a file that this many bytes fit into. True for one that was not there before this call.
    pub(crate) fn prepare(&mut self, bytes: usize) -> io::Result<bool> {
        if let Some(open) = &mut self.open {
            let meta = open.file.metadata()?;
            open.size = meta.len();
            if open.regular && meta.nlink() == 0 {
                // Somebody removed it: what is written there would be lost.
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

    /// Append whole lines: all of them, or none.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Err(io::ErrorKind::NotConnected.into()) };
        let begun = if self.torn { [b"\n", lines].concat() } else { Vec::new() };
        let text = if self.torn { &begun } else { lines };
        let (written, appended) = open.append(text);
        if appended.is_ok() {
            self.torn = false;
        } else if !open.regular {
            self.torn |= written > 0;
            // The other end of a pipe may come back.
            self.open = None;
        } else if written > 0
            && let Err(error) = open.file.set_len(open.size)
        {
            // Opening repairs it.
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
        // A pipe that nobody reads is an error at once, and not something to wait for.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let is_pipe = fs::metadata(path).is_ok_and(|meta| !meta.is_file());
        let mut options = OpenOptions::new();
        options.append(true).read(!is_pipe).create(true).mode(0o600).custom_flags(flags);
        let mut file = options.open(path)?;
        let meta = file.metadata()?;
        let regular = meta.is_file();
        let mut size = meta.len();
        if regular {
            file.try_lock().map_err(|error| match error {
                fs::TryLockError::WouldBlock => {
                    io::Error::other("another host writes its records there")
                }
                fs::TryLockError::Error(error) => error,
            })?;
            if meta.mode() & 0o077 != 0 {
                file.set_permissions(Permissions::from_mode(0o600))?;
            }
            let whole = whole_lines(&mut file, size)?;
            if whole < size {
                file.set_len(whole)?;
                size = whole;
            }
        }
        Ok(Self { file, size, regular })
    }

    /// How many bytes were written, and why no more.
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

/// The part of a file that ends with a line. What a killed writer left behind it is no record.
fn whole_lines(file: &mut File, size: u64) -> io::Result<u64> {
    const PIECE: u64 = 64 << 10;
    let mut end = size;
    let mut piece = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(PIECE);
        file.seek(SeekFrom::Start(start))?;
        piece.clear();
        Read::by_ref(file).take(end - start).read_to_end(&mut piece)?;
        if let Some(place) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + place as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
