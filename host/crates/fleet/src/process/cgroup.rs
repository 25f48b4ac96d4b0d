//! One control group per engine, where the host may create them: no process that an engine starts
//! can leave its group unnoticed, and the kernel kills the whole group atomically. Source:
//! Documentation/admin-guide/cgroup-v2.rst (`cgroup.kill` since Linux 5.14).

use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::Access;

/// The mount point of the control group file system.
pub(super) const ROOT: &str = "/sys/fs/cgroup";

/// Returns the host's own control group if the host may create others in it.
///
/// The group has to be delegated to the host: systemd marks that with an attribute (`Delegate=yes`
/// in the unit), and a container is the root of its own tree. The root of the machine's tree has no
/// `cgroup.kill` and must not be used.
pub(super) fn delegated(root: &Path, self_cgroup: &str) -> Option<PathBuf> {
    let path = self_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Where version 1 and version 2 are mounted side by side, no process is in the version 2 tree
    // at `root`.
    let dir = root.join(path);
    let files = ["cgroup.procs", "cgroup.kill", "cgroup.events"];
    let usable = files.iter().all(|file| dir.join(file).is_file())
        && rustix::fs::access(&dir, Access::WRITE_OK).is_ok()
        && rustix::fs::access(dir.join("cgroup.procs"), Access::WRITE_OK).is_ok();
    let is_delegated = path.is_empty()
        || ["user.delegate", "trusted.delegate"].iter().any(|name| is_set(&dir, name));
    (usable && is_delegated && !path.contains("..")).then_some(dir)
}

fn is_set(dir: &Path, attribute: &str) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(dir, attribute, &mut value).is_ok_and(|length| &value[..length] == b"1")
}

/// An engine's control group.
#[derive(Debug, Clone)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates a control group, or takes over an empty one of the same name.
    pub(super) fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let group = Self::from_dir(parent.join(name));
        group.remove();
        fs::create_dir(&group.0).map(|()| group)
    }

    /// Refers to an existing control group.
    pub(super) fn from_dir(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    /// Opens the file that moves a process into the group when its id is written.
    pub(super) fn open_procs(&self) -> io::Result<fs::File> {
        fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs"))
    }

    /// Returns the processes that are directly in the group.
    pub(super) fn members(&self) -> Vec<u32> {
        let list = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        // 0 stands for a process in another pid namespace.
        list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
    }

    /// Returns true if a process is in the group or below it.
    pub(super) fn populated(&self) -> bool {
        let events = fs::read_to_string(self.0.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Kills all processes in the group and below it.
    pub(super) fn kill(&self) {
        if let Err(error) = fs::write(self.0.join("cgroup.kill"), "1")
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(
                cgroup = %self.0.display(),
                error = %error,
                "failed to kill the control group"
            );
        }
    }

    /// Removes the group. Does nothing while a process is in it, or if it does not exist.
    pub(super) fn remove(&self) {
        // Fails in both of these cases; a group that stays is removed by the next sweep.
        fs::remove_dir(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(dir: &Path, files: &[&str]) {
        fs::create_dir_all(dir).unwrap();
        for file in files {
            fs::write(dir.join(file), "").unwrap();
        }
    }

    #[test]
    fn only_a_delegated_group_is_used() {
        let all = ["cgroup.procs", "cgroup.kill", "cgroup.events"];
        let root = tempfile::tempdir().unwrap();
        assert_eq!(delegated(root.path(), "0::/\n"), None, "not mounted");
        fake(root.path(), &["cgroup.procs", "cgroup.controllers"]);
        assert_eq!(delegated(root.path(), "0::/\n"), None, "the root of the machine's tree");
        fake(root.path(), &all);
        assert_eq!(
            delegated(root.path(), "1:cpu:/x\n0::/\n"),
            Some(root.path().to_owned()),
            "the root of a container's tree"
        );
        let unit = root.path().join("system.slice/x.service");
        fake(&unit, &all);
        assert_eq!(
            delegated(root.path(), "0::/system.slice/x.service\n"),
            None,
            "a unit without Delegate=yes"
        );
        assert_eq!(
            delegated(root.path(), "0::/../elsewhere\n"),
            None,
            "outside of the mounted tree"
        );
        assert_eq!(delegated(root.path(), "4:memory:/\n"), None, "version 1 only");
        // Some file systems for temporary files do not support extended attributes.
        if rustix::fs::setxattr(&unit, "user.delegate", b"1", rustix::fs::XattrFlags::empty())
            .is_ok()
        {
            assert_eq!(
                delegated(root.path(), "0::/system.slice/x.service\n"),
                Some(unit),
                "with Delegate=yes"
            );
        }
    }

    #[test]
    fn group_reports_its_members() {
        let root = tempfile::tempdir().unwrap();
        let group = Cgroup::create(root.path(), "pointsman-h-a").unwrap();
        assert!(!group.populated() && group.members().is_empty());
        fs::write(group.dir().join("cgroup.procs"), "12\n0\n13\n").unwrap();
        fs::write(group.dir().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert_eq!(group.members(), [12, 13]);
        assert!(group.populated());
        group.kill();
        assert_eq!(fs::read_to_string(group.dir().join("cgroup.kill")).unwrap(), "1");
        // Not empty: neither removed nor taken over.
        Cgroup::create(root.path(), "pointsman-h-a").unwrap_err();
    }
}
