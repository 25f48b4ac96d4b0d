//! The files of a system that the checks read, below a root. All input is untrusted: what is
//! malformed is treated as missing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pointsman_files::open_regular;
use pointsman_fleet::{Gpu, Machine};

/// Maximum number of bytes that are read from a file.
const MAX_FILE: u64 = 1 << 20;
/// Maximum number of entries that are read from a directory.
const MAX_ENTRIES: usize = 65_536;
/// The bit of `CAP_DAC_OVERRIDE`, with which modes of files do not count.
const DAC_OVERRIDE: u64 = 1 << 1;

/// A system, as its files describe it.
#[derive(Debug)]
pub(super) struct System {
    root: PathBuf,
    /// Memory and processes of its GPUs.
    pub(super) machine: Machine,
    /// The AMD GPUs, ordered by render node.
    pub(super) gpus: Vec<Gpu>,
    /// The environment that engines inherit.
    pub(super) environment: BTreeMap<String, String>,
    /// The words of the kernel's command line.
    pub(super) kernel_arguments: Vec<String>,
}

/// A device file.
#[derive(Debug)]
pub(super) struct Device {
    /// The path below the root, such as `dev/kfd`.
    pub(super) path: String,
    pub(super) gid: u32,
    uid: u32,
    mode: u32,
}

/// The user of the host's process.
#[derive(Debug, Default)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gids: Vec<u32>,
    overrides_modes: bool,
}

impl System {
    /// Reads a system. The root is `/`, except in tests.
    pub(super) fn read(root: &Path) -> Self {
        let machine = Machine::new(root);
        let gpus = machine.gpus();
        let mut system = Self {
            root: root.to_owned(),
            machine,
            gpus,
            environment: BTreeMap::new(),
            kernel_arguments: Vec::new(),
        };
        let variables = system.text("proc/self/environ").unwrap_or_default();
        let variables = variables.split('\0').filter_map(|variable| variable.split_once('='));
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        system.environment = variables.collect();
        let arguments = system.text("proc/cmdline").unwrap_or_default();
        system.kernel_arguments = arguments.split_whitespace().map(str::to_owned).collect();
        system
    }

    /// Returns true if this is the system that the program runs on.
    pub(super) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Returns the place of a path, which may begin with a slash, below the root.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Reads a file; bytes that are not UTF-8 are replaced.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let file = open_regular(&self.place(path)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads the first line of a file, without blanks around it.
    pub(super) fn line(&self, path: &str) -> Option<String> {
        Some(self.text(path)?.lines().next()?.trim().to_owned())
    }

    /// Reads a file that contains one number, in decimal or with `0x`.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        let line = self.line(path)?;
        match line.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16).ok(),
            None => line.parse().ok(),
        }
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.place(path).exists()
    }

    /// Returns the names in a directory, sorted.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.place(path)).into_iter().flatten().take(MAX_ENTRIES);
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    }

    /// Returns the value of a variable that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns the value of an argument of the kernel, the last one if there are several.
    pub(super) fn kernel_argument(&self, name: &str) -> Option<&str> {
        let mut arguments = self.kernel_arguments.iter().rev();
        arguments.find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='))
    }

    /// Returns the value of a key in lines of the form `key:  value`.
    pub(super) fn field(&self, path: &str, key: &str) -> Option<String> {
        let text = self.text(path)?;
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
    }

    /// Returns a size in bytes of `/proc/meminfo`.
    pub(super) fn meminfo(&self, key: &str) -> Option<u64> {
        let value = self.field("proc/meminfo", key)?;
        value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    pub(super) fn device(&self, path: &str) -> Option<Device> {
        let found = self.place(path).metadata().ok()?;
        Some(Device {
            path: path.to_owned(),
            gid: found.gid(),
            uid: found.uid(),
            mode: found.mode(),
        })
    }

    /// Returns the name of a group, or its number if it has none.
    pub(super) fn group_name(&self, gid: u32) -> String {
        let text = self.text("etc/group").unwrap_or_default();
        let name = text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, number) = (fields.next()?, fields.nth(1)?);
            (number.parse() == Ok(gid)).then(|| name.to_owned())
        });
        name.unwrap_or_else(|| gid.to_string())
    }

    pub(super) fn user(&self) -> Option<User> {
        let ids = |key: &str| -> Option<Vec<u32>> {
            let value = self.field("proc/self/status", key)?;
            Some(value.split_whitespace().filter_map(|id| id.parse().ok()).collect())
        };
        // The second one of each is the effective one.
        let uid = *ids("Uid")?.get(1)?;
        let mut gids = ids("Groups").unwrap_or_default();
        gids.extend(ids("Gid")?.get(1));
        gids.sort_unstable();
        gids.dedup();
        let capabilities = self.field("proc/self/status", "CapEff").unwrap_or_default();
        let capabilities = u64::from_str_radix(&capabilities, 16).unwrap_or(0);
        Some(User { uid, gids, overrides_modes: capabilities & DAC_OVERRIDE != 0 })
    }

    /// Returns true if the process may read and write a device.
    pub(super) fn may_use(&self, user: &User, device: &Device) -> bool {
        if self.is_live() {
            // The kernel knows of access control lists as well.
            use rustix::fs::{Access, access};
            let path = self.place(&device.path);
            return access(path, Access::READ_OK | Access::WRITE_OK).is_ok();
        }
        let shift = match user {
            User { overrides_modes: true, .. } => return true,
            User { uid, .. } if *uid == device.uid => 6,
            User { gids, .. } if gids.contains(&device.gid) => 3,
            _ => 0,
        };
        device.mode >> shift & 0o6 == 0o6
    }

    /// Returns true if the program runs in a container.
    pub(super) fn is_container(&self) -> bool {
        self.exists(".dockerenv") || self.exists("run/.containerenv")
    }
}
