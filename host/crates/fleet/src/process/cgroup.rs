//! A control group per engine, where the host may make some: nothing that an engine starts can leave it unnoticed, and the
//! kernel ends all of it at one word. Source: Documentation/admin-guide/cgroup-v2.rst (`cgroup.kill` since Linux 5.14).

use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::Access;

/// Where control groups are mounted.
pub(super) const ROOT: &str = "/sys/fs/cgroup";

/// The host's own control group, if it may make others in it.
///
/// It has to be handed over to us: systemd says so with an attribute (`Delegate=yes` in the unit), and a container is the top
/// of its own tree. The top of the machine's tree has no `cgroup.kill` and is nobody's to use.
pub(super) fn own(root: &Path, self_cgroup: &str) -> Option<PathBuf> {
    let path = self_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Where the old and the new kind are mounted side by side, `root` has no processes of the new kind.
    let dir = root.join(path);
    let files = ["cgroup.procs", "cgroup.kill", "cgroup.events"];
    let usable = files.iter().all(|file| dir.join(file).is_file())
        && rustix::fs::access(&dir, Access::WRITE_OK).is_ok()
        && rustix::fs::access(dir.join("cgroup.procs"), Access::WRITE_OK).is_ok();
    let delegated = path.is_empty()
        || ["user.delegate", "trusted.delegate"].iter().any(|name| is_set(&dir, name));
    (usable && delegated && !path.contains("..")).then_some(dir)
}

fn is_set(dir: &Path, attribute: &str) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(dir, attribute, &mut value).is_ok_and(|length| &value[..length] == b"1")
}

/// An engine's control group.
#[derive(Debug, Clone)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// Make one. An empty one of this name is taken over.
    pub(super) fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let group = Self::at(parent.join(name));
        group.remove();
        fs::create_dir(&group.0).map(|()| group)
    }

    /// One that is there already.
    pub(super) fn at(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    /// The file that takes a process in.
    pub(super) fn entrance(&self) -> io::Result<fs::File> {
        fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs"))
    }

    /// Processes directly in it.
    pub(super) fn members(&self) -> Vec<u32> {
        let list = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        // 0 stands for a process that cannot be seen from here.
        list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
    }

    /// Whether a process is in it or below it.
    pub(super) fn populated(&self) -> bool {
        let events = fs::read_to_string(self.0.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// End everything in it and below it.
    pub(super) fn kill(&self) {
        if let Err(error) = fs::write(self.0.join("cgroup.kill"), "1")
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot end the control group {}: {error}", self.0.display());
        }
    }

    /// Give it back. Fails while something is in it, and when it is gone already.
    pub(super) fn remove(&self) {
        let _kept = fs::remove_dir(&self.0);
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
    fn only_what_was_handed_over_is_used() {
        let all = ["cgroup.procs", "cgroup.kill", "cgroup.events"];
        let root = tempfile::tempdir().unwrap();
        assert_eq!(own(root.path(), "0::/\n"), None, "not mounted");
        fake(root.path(), &["cgroup.procs", "cgroup.controllers"]);
        assert_eq!(own(root.path(), "0::/\n"), None, "the top of the machine's tree");
        fake(root.path(), &all);
        assert_eq!(
            own(root.path(), "1:cpu:/x\n0::/\n"),
            Some(root.path().to_owned()),
            "the top of a container's"
        );
        let unit = root.path().join("system.slice/x.service");
        fake(&unit, &all);
        assert_eq!(
            own(root.path(), "0::/system.slice/x.service\n"),
            None,
            "a unit without Delegate=yes"
        );
        assert_eq!(own(root.path(), "0::/../elsewhere\n"), None, "outside of what is mounted");
        assert_eq!(own(root.path(), "4:memory:/\n"), None, "only the old kind");
        // Not every file system for temporary files has attributes.
        if rustix::fs::setxattr(&unit, "user.delegate", b"1", rustix::fs::XattrFlags::empty())
            .is_ok()
        {
            assert_eq!(
                own(root.path(), "0::/system.slice/x.service\n"),
                Some(unit),
                "with Delegate=yes"
            );
        }
    }

    #[test]
    fn a_group_says_who_is_in_it() {
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
