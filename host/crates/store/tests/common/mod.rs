//! What the tests of the store share.

use std::path::Path;
use std::process::{Command, Output};

/// Names the file to the child that has no space.
pub(crate) const FULL_DISK: &str = "POINTSMAN_STORE_TEST_FULL_DISK";

/// Runs the test `child_fills_the_disk` in a process of its own, whose files cannot be larger than
/// the file at `path` is now.
pub(crate) fn run_on_a_full_disk(path: &Path) -> Output {
    // The limit is in blocks of 512 bytes, or twice as much in some shells.
    let blocks = std::fs::metadata(path).unwrap().len() / 512;
    let child = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec {:?} child_fills_the_disk --exact --nocapture",
        std::env::current_exe().unwrap()
    );
    Command::new("sh").args(["-c", &child]).env(FULL_DISK, path).output().unwrap()
}
