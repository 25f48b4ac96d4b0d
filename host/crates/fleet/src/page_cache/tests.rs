use std::io::{IoSliceMut, Write as _};
use std::os::unix::fs::symlink;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::*;

const MIB: usize = 1 << 20;
const SIZE: usize = 16 * MIB;
const PAGE: usize = 4096;

/// Writes a file that is wholly in the page cache and on the disk.
fn weights(path: &Path) {
    let mut file = File::create(path).unwrap();
    for _ in 0..SIZE / MIB {
        file.write_all(&vec![7; MIB]).unwrap();
    }
    // Pages that are not on the disk yet cannot be dropped.
    file.sync_all().unwrap();
}

/// Returns true if a file is in the page cache: its pages can be read without waiting for the disk.
/// Most of a sample counts, because the kernel may drop pages, and may read one while it is asked.
fn is_cached(path: &Path) -> bool {
    const SAMPLE: usize = 256;
    let file = File::open(path).unwrap();
    // Without reading ahead, which would fill the cache that is measured.
    fadvise(&file, 0, None, Advice::Random).unwrap();
    let mut page = vec![0; PAGE];
    let is_cached = |offset: &usize| {
        let mut page = [IoSliceMut::new(&mut page)];
        match preadv2(&file, &mut page, *offset as u64, ReadWriteFlags::NOWAIT) {
            Ok(read) => read == PAGE,
            Err(Errno::AGAIN) => false,
            Err(error) => panic!("{error}"),
        }
    };
    let cached = (0..SIZE).step_by(SIZE / SAMPLE).rev().filter(is_cached).count();
    println!("{}: {cached} of {SAMPLE} pages", path.display());
    assert!(!(SAMPLE / 4..SAMPLE * 3 / 4).contains(&cached), "{cached}");
    cached > SAMPLE / 2
}

/// A temporary folder on a disk; `None` if there is only one in memory, whose files have no cache.
fn folder_on_disk() -> Option<tempfile::TempDir> {
    const TMPFS: u64 = 0x0102_1994;
    let folder = tempfile::tempdir().unwrap();
    let kind = rustix::fs::statfs(folder.path()).unwrap().f_type;
    (kind as u64 != TMPFS).then_some(folder)
}

#[test]
fn weights_of_unloaded_lanes_leave_the_page_cache() {
    let Some(folder) = folder_on_disk() else { return };
    let path = |name: &str| folder.path().join(name);
    for name in ["first", "second", "kept", "shared"] {
        weights(&path(name));
    }
    // As the hub stores a model: links to the files.
    symlink(path("first"), path("link")).unwrap();
    fs::hard_link(path("shared"), path("same")).unwrap();
    let cache = PageCache::default();
    let first = cache.use_files(vec![path("link"), path("missing"), folder.path().to_owned()]);
    let second = cache.use_files(vec![path("second"), path("shared")]);
    let loaded = cache.use_files(vec![path("kept"), path("same")]);
    // All are in use.
    assert_eq!(cache.make_room(|| false), Dropped::default());
    assert!(is_cached(&path("first")));

    drop(first);
    drop(second);
    // There is room already.
    assert_eq!(cache.make_room(|| true), Dropped::default());
    // The lane that was unloaded first is enough.
    let mut asked = 0;
    let dropped = cache.make_room(|| {
        asked += 1;
        asked > 1
    });
    assert_eq!(dropped, Dropped { files: 1, bytes: SIZE as u64 });
    assert!(!is_cached(&path("first")) && is_cached(&path("second")));
    // Of the second one, a loaded lane uses one of the files under another name.
    assert_eq!(cache.make_room(|| false), Dropped { files: 1, bytes: SIZE as u64 });
    let left = ["second", "shared", "kept"].map(|name| is_cached(&path(name)));
    assert_eq!(left, [false, true, true]);
    assert_eq!(cache.make_room(|| false), Dropped::default());
    drop(loaded);
    assert_eq!(cache.make_room(|| false).files, 2);
    assert!(!is_cached(&path("kept")) && !is_cached(&path("shared")));
}

#[test]
fn models_that_are_loaded_again_or_twice_are_not_dropped() {
    let Some(folder) = folder_on_disk() else { return };
    let file = folder.path().join("weights");
    weights(&file);
    let cache = PageCache::default();
    let use_file = || cache.use_files(vec![file.clone()]);
    let (first, second) = (use_file(), use_file());
    drop(first);
    assert_eq!(cache.make_room(|| false), Dropped::default());
    drop(second);
    let again = use_file();
    assert_eq!(cache.make_room(|| false), Dropped::default());
    assert!(is_cached(&file));
    drop(again);
    assert_eq!(cache.make_room(|| false).files, 1);
}

#[test]
fn number_of_remembered_models_is_limited() {
    let cache = PageCache::default();
    for number in 0..MAX_REMEMBERED + 10 {
        drop(cache.use_files(vec![PathBuf::from(format!("/none/{number}"))]));
    }
    assert_eq!(cache.0.lock().unloaded.len(), MAX_REMEMBERED);
    // Forgotten ones are not dropped, and files that are not there are not counted.
    assert_eq!(cache.make_room(|| false), Dropped::default());
}
