use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::ABANDONED_AFTER;
use super::{Cache, Code, compatibility};
use crate::wasm::engine::{AddressSpace, compiling_engine};
use crate::wasm::metering::Metering;

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(
        dir.path().join("cache"),
        &compiling_engine(Metering::Wall, AddressSpace::Ample).unwrap(),
    )
    .unwrap();
    (dir, cache)
}

/// Creates a file that was last used `age` ago.
fn file(cache: &Cache, name: &str, length: usize, age: Duration) -> PathBuf {
    let path = cache.dir.join(name);
    fs::write(&path, vec![0; length]).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    path
}

fn files(cache: &Cache) -> Vec<String> {
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(&cache.dir).unwrap().map(name).collect();
    names.sort();
    names
}

fn minutes(number: u64) -> Duration {
    Duration::from_secs(60 * number)
}

#[test]
fn prune_removes_least_recently_used_first() {
    let (_dir, cache) = cache();
    for (name, age) in [("b.cwasm", 2), ("a.cwasm", 1), ("d.cwasm", 4), ("c.cwasm", 3)] {
        file(&cache, name, 100, minutes(age));
    }
    cache.prune(4, 400).unwrap();
    assert_eq!(files(&cache).len(), 4);
    cache.prune(3, 400).unwrap();
    assert_eq!(files(&cache), ["a.cwasm", "b.cwasm", "c.cwasm"]);
    cache.prune(3, 299).unwrap();
    assert_eq!(files(&cache), ["a.cwasm", "b.cwasm"]);
    cache.prune(0, 0).unwrap();
    assert!(files(&cache).is_empty());
}

#[test]
fn prune_keeps_and_counts_leased_files() {
    let (_dir, cache) = cache();
    let name = cache.name("used");
    file(&cache, &name, 100, minutes(60));
    file(&cache, "a.cwasm", 100, minutes(1));
    file(&cache, "b.cwasm", 100, minutes(2));
    let (one, two) = (cache.lease("used"), cache.lease("used"));
    drop(one);
    cache.prune(2, 1000).unwrap();
    assert_eq!(files(&cache), ["a.cwasm", &name]);
    drop(two);
    cache.prune(1, 1000).unwrap();
    assert_eq!(files(&cache), ["a.cwasm"]);
}

#[test]
fn prune_removes_only_its_own_files() {
    let (_dir, cache) = cache();
    file(&cache, "half.7-1.pointsman-tmp", 1, ABANDONED_AFTER + minutes(1));
    file(&cache, "being-written.7-2.pointsman-tmp", 1, minutes(1));
    file(&cache, "notes.txt", 1 << 20, minutes(1_000_000));
    fs::create_dir(cache.dir.join("folder.cwasm")).unwrap();
    std::os::unix::fs::symlink("/dev/null", cache.dir.join("link.cwasm")).unwrap();
    cache.prune(0, 0).unwrap();
    assert_eq!(
        files(&cache),
        ["being-written.7-2.pointsman-tmp", "folder.cwasm", "link.cwasm", "notes.txt"]
    );
}

#[test]
fn load_marks_the_file_as_used() {
    let engine = compiling_engine(Metering::Wall, AddressSpace::Ample).unwrap();
    let (_dir, cache) = cache();
    let bytes = wat::parse_str(include_str!("../../../fixtures/small.wat")).unwrap();
    let code = Code::from_compiler(engine.precompile_component(&bytes).unwrap());
    cache.store("one", &code);
    let old = SystemTime::now() - minutes(60);
    File::open(cache.path("one")).unwrap().set_modified(old).unwrap();
    assert!(cache.load("one", |code| code.component(&engine)).unwrap().is_some());
    let used = fs::metadata(cache.path("one")).unwrap().modified().unwrap();
    assert!(used > old + minutes(30));
    assert!(cache.load("two", |code| code.component(&engine)).unwrap().is_none());
}

#[test]
fn code_is_not_loaded_by_an_engine_with_other_metering() {
    let [wall, fuel] = [Metering::Wall, Metering::Fuel]
        .map(|metering| compiling_engine(metering, AddressSpace::Ample).unwrap());
    assert_ne!(compatibility(&wall), compatibility(&fuel), "both would use the same file");
    let component = wat::parse_str("(component)").unwrap();
    for (built_for, other) in [(&wall, &fuel), (&fuel, &wall)] {
        let code = Code::from_compiler(built_for.precompile_component(&component).unwrap());
        assert!(code.component(built_for).is_ok());
        let error = code.component(other).err().unwrap();
        assert!(
            format!("{error:#}").contains("fuel") || format!("{error:#}").contains("epoch"),
            "{error:#}"
        );
    }
}
