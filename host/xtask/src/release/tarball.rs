//! The archive that is unpacked below `/usr/local`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use pointsman_xtask::command::run;

use super::source::Source;
use super::tree::{Prefix, Tree, set_modes};

/// Packs `pointsman-VERSION-ARCH-linux.tar.gz`, with one folder of that name.
pub(super) fn pack(tree: &Tree<'_>, source: &Source, work: &Path, out: &Path) -> Result<()> {
    let name = source.name();
    let folder = work.join("tarball");
    tree.write(&folder.join(&name), Prefix::Local)?;
    set_modes(&folder)?;
    let archive = out.join(format!("{name}.tar"));
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&folder);
    // Nothing of the machine: no order, time, owner or number of an inode.
    tar.args(["--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg(format!("--mtime=@{}", source.epoch)).arg("-cf").arg(&archive).arg(&name);
    run(&mut tar)?;
    // Without name and time of the archive.
    run(Command::new("gzip").args(["-n", "-9"]).arg(&archive))
}
