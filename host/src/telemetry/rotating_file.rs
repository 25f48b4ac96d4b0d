//! A log file that is rotated: `NAME.log` becomes `NAME.1.log` and so on, when it has reached its
//! size or a day is over.
//!
//! Each write first looks whether the path still leads to the open file, so that the file can also
//! be moved away by others, such as logrotate, without a signal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pointsman_config::LogFileLimits;
use pointsman_files::{create_private, open_private_with};

const DAY: u64 = 86_400;

/// Larger numbers are not those of this program.
const MAX_NUMBER: u32 = 1000;

/// A log file. Writes consist of complete lines, unless the last one could not be written whole.
#[derive(Debug)]
pub(super) struct RotatingFile {
    dir: PathBuf,
    name: &'static str,
    limits: LogFileLimits,
    open: Option<Open>,
    /// The last byte that was written is not the end of a line.
    is_mid_line: bool,
    /// A line could not be written whole, and its rest was dropped.
    is_torn: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Device and inode.
    id: (u64, u64),
    size: u64,
    /// Days since the Unix epoch, of the last line.
    day: u64,
}

impl RotatingFile {
    /// Prepares the file `NAME.log` in a folder, which is created with the first line.
    pub(super) fn new(dir: &Path, name: &'static str, limits: LogFileLimits) -> Self {
        let dir = dir.to_owned();
        Self { dir, name, limits, open: None, is_mid_line: false, is_torn: false }
    }

    /// Creates or opens the file.
    ///
    /// # Errors
    /// If the folder or the file cannot be used, or other users can write to it.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        self.opened().map(|_| ())
    }

    fn path(&self, number: u32) -> PathBuf {
        let name = self.name;
        self.dir.join(match number {
            0 => format!("{name}.log"),
            number => format!("{name}.{number}.log"),
        })
    }

    /// Returns the open file, with its current size. Opens it if the path leads to another one.
    fn opened(&mut self) -> io::Result<&mut Open> {
        let path = self.path(0);
        let found = fs::symlink_metadata(&path).ok();
        self.open = self.open.take().zip(found).and_then(|(open, found)| {
            // Another process may append, too, during a hand-over.
            let is_same = open.id == (found.dev(), found.ino());
            is_same.then(|| Open { size: found.len(), ..open })
        });
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                create_private(&self.dir).map_err(io::Error::other)?;
                let mut options = OpenOptions::new();
                options.append(true).create(true);
                let file = open_private_with(&path, &mut options).map_err(io::Error::other)?;
                let meta = file.metadata()?;
                // The rest of a line would begin the file, if it is another one.
                self.is_torn = false;
                let modified = meta.modified().unwrap_or_else(|_| SystemTime::now());
                let id = (meta.dev(), meta.ino());
                Open { file, id, size: meta.len(), day: day(modified) }
            }
        };
        Ok(self.open.insert(open))
    }

    /// Moves the file away, and removes what exceeds the limits.
    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        let mut files = self.numbers()?;
        files.sort_unstable_by(|one, other| other.cmp(one));
        for number in files {
            match number >= self.limits.keep {
                true => fs::remove_file(self.path(number))?,
                false => fs::rename(self.path(number), self.path(number + 1))?,
            }
        }
        let mut kept = self.numbers()?;
        kept.sort_unstable();
        let mut total = self.limits.max_size;
        for number in kept {
            let path = self.path(number);
            total += fs::symlink_metadata(&path)?.len();
            if total > self.limits.max_total {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Returns the numbers of the files; 0 is the one that is written.
    fn numbers(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(self.name));
            match rest {
                Some(".log") => found.push(0),
                Some(rest) => {
                    let number = rest.strip_prefix('.').and_then(|rest| rest.strip_suffix(".log"));
                    let number = number.and_then(|number| number.parse::<u32>().ok());
                    found.extend(number.filter(|number| (1..=MAX_NUMBER).contains(number)));
                }
                None => {}
            }
        }
        Ok(found)
    }

    /// Returns true if the next line begins a file.
    fn is_due(&mut self, first_line: usize) -> io::Result<bool> {
        let (limits, today) = (self.limits, day(SystemTime::now()));
        let open = self.opened()?;
        let is_full = open.size + first_line as u64 > limits.max_size;
        // A clock that is set back rotates once more, which is harmless.
        Ok(open.size > 0 && (is_full || (limits.daily && open.day != today)))
    }
}

impl Write for RotatingFile {
    /// Writes a part that fits into the file.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let end_of_line = |from: usize| {
            let end = memchr::memchr(b'\n', &lines[from..]);
            end.map_or(lines.len(), |end| from + end + 1)
        };
        if self.is_mid_line {
            self.opened()?;
        } else if self.is_due(end_of_line(0))? {
            self.rotate()?;
            self.opened()?;
        }
        let (max_size, is_mid_line) = (self.limits.max_size, self.is_mid_line);
        let is_torn = std::mem::take(&mut self.is_torn);
        let Some(open) = &mut self.open else { return Err(io::ErrorKind::NotConnected.into()) };
        let fits = !is_mid_line && open.size + lines.len() as u64 <= max_size;
        let mut end = if fits { lines.len() } else { end_of_line(0) };
        // The first line is written whole, however long it is.
        while !is_mid_line && end < lines.len() {
            let next = end_of_line(end);
            if open.size + next as u64 > max_size {
                break;
            }
            end = next;
        }
        if is_torn && let Err(error) = open.file.write_all(b"\n") {
            self.is_torn = true;
            return Err(error);
        }
        match open.file.write(&lines[..end]) {
            Ok(written) => {
                open.size += written as u64;
                open.day = day(SystemTime::now());
                self.is_mid_line = written > 0 && lines[written - 1] != b'\n';
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                // The caller drops the rest.
                (self.is_torn, self.is_mid_line) = (self.is_mid_line, false);
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the days since the Unix epoch.
fn day(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: LogFileLimits =
        LogFileLimits { max_size: 100, keep: 3, max_total: 1 << 20, daily: true };

    fn write(file: &mut RotatingFile, text: &str) {
        file.write_all(text.as_bytes()).unwrap();
    }

    fn text(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    /// Returns sizes of the files, the current one first.
    fn sizes(dir: &Path) -> Vec<u64> {
        let names = (0..20).map(|number| match number {
            0 => "a.log".to_owned(),
            number => format!("a.{number}.log"),
        });
        names.map_while(|name| Some(fs::metadata(dir.join(name)).ok()?.len())).collect()
    }

    #[test]
    fn files_are_rotated_by_size_at_lines_and_bounded_in_number_and_total() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = RotatingFile::new(dir.path(), "a", LIMITS);
        let line = format!("{}\n", "x".repeat(29));
        write(&mut file, &line.repeat(10));
        assert_eq!(sizes(dir.path()), [30, 90, 90, 90]);
        write(&mut file, &line.repeat(10));
        assert_eq!(sizes(dir.path()), [60, 90, 90, 90]);
        write(&mut file, &format!("{}\n", "y".repeat(300)));
        assert_eq!(sizes(dir.path())[0], 301, "a line is never split");
        let limits = LogFileLimits { max_total: 300, ..LIMITS };
        let mut file = RotatingFile::new(dir.path(), "a", limits);
        write(&mut file, &line.repeat(7));
        assert!(sizes(dir.path()).iter().sum::<u64>() <= 300, "{:?}", sizes(dir.path()));
        let none = LogFileLimits { keep: 0, ..LIMITS };
        write(&mut RotatingFile::new(dir.path(), "b", none), &line.repeat(10));
        assert_eq!(text(dir.path(), "b.log").map(|text| text.len()), Some(30));
        assert_eq!(text(dir.path(), "b.1.log"), None);
    }

    #[test]
    fn a_day_begins_a_file() {
        let dir = tempfile::tempdir().unwrap();
        write(&mut RotatingFile::new(dir.path(), "a", LIMITS), "yesterday\n");
        let current = File::options().append(true).open(dir.path().join("a.log")).unwrap();
        current.set_modified(SystemTime::now() - Duration::from_secs(DAY)).unwrap();
        let weekly = LogFileLimits { daily: false, ..LIMITS };
        write(&mut RotatingFile::new(dir.path(), "a", weekly), "same\n");
        assert_eq!(text(dir.path(), "a.1.log"), None);
        current.set_modified(SystemTime::now() - Duration::from_secs(DAY)).unwrap();
        write(&mut RotatingFile::new(dir.path(), "a", LIMITS), "today\n");
        assert_eq!(text(dir.path(), "a.1.log").as_deref(), Some("yesterday\nsame\n"));
        assert_eq!(text(dir.path(), "a.log").as_deref(), Some("today\n"));
    }

    #[test]
    fn a_file_that_was_moved_or_removed_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = RotatingFile::new(dir.path(), "a", LIMITS);
        write(&mut file, "one\n");
        fs::rename(dir.path().join("a.log"), dir.path().join("moved")).unwrap();
        write(&mut file, "two\n");
        assert_eq!(text(dir.path(), "moved").as_deref(), Some("one\n"));
        assert_eq!(text(dir.path(), "a.log").as_deref(), Some("two\n"));
        fs::remove_file(dir.path().join("a.log")).unwrap();
        write(&mut file, "three\n");
        assert_eq!(text(dir.path(), "a.log").as_deref(), Some("three\n"));
    }

    #[test]
    fn unusable_folders_and_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let below_file = dir.path().join("file/logs");
        assert!(RotatingFile::new(&below_file, "a", LIMITS).prepare().is_err());
        std::os::unix::fs::symlink("/dev/full", dir.path().join("a.log")).unwrap();
        assert!(RotatingFile::new(dir.path(), "a", LIMITS).prepare().is_err());
    }
}
