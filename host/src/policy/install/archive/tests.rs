use super::*;

/// Bytes of a header, and the unit in which contents are padded.
const BLOCK: usize = 512;

/// Returns an entry, with its content and padding. The name is not checked.
fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(EntryType::new(kind));
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut entry = [header.as_bytes(), content].concat();
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 2 * BLOCK]].concat()
}

fn names(archive: &[u8]) -> Result<Vec<String>, &'static str> {
    let files = policy_files(archive).map_err(|error| error.code())?;
    Ok(files.keys().map(|path| path.display().to_string()).collect())
}

#[test]
fn files_next_to_the_manifest_are_found() {
    for folder in ["", "./", "mine/", "./mine/"] {
        let name = |name: &str| format!("{folder}{name}");
        let archive = archive(&[
            entry("pax_global_header", b'g', b"20 comment=abcdefgh\n"),
            entry(&name("src/"), b'5', b""),
            entry(&name("src/policy.toml"), b'0', b"other"),
            entry(&name("policy.toml"), b'0', b"manifest"),
            entry(&name("policy.wasm"), 0, &[7; 600]),
        ]);
        let files = policy_files(&archive).unwrap();
        assert_eq!(files.len(), 2, "{folder}");
        assert_eq!(files[Path::new("policy.toml")], b"manifest");
        assert_eq!(files[Path::new("policy.wasm")], [7; 600]);
    }
}

#[test]
fn dangerous_entries_are_refused() {
    let manifest = || entry("policy.toml", b'0', b"m");
    let long = |kind, name: &[u8]| [entry("x", kind, name), entry("b", b'0', b"x")].concat();
    for (other, code) in [
        (entry("../evil", b'0', b"x"), "archive_entry_forbidden"),
        (entry("a/../../evil", b'0', b"x"), "archive_entry_forbidden"),
        (entry("/etc/evil", b'0', b"x"), "archive_entry_forbidden"),
        (entry("policy.wasm", b'2', b""), "archive_entry_forbidden"),
        (entry("policy.wasm", b'1', b""), "archive_entry_forbidden"),
        (entry("policy.wasm", b'3', b""), "archive_entry_forbidden"),
        // Names in an entry of their own are those of the entry that follows.
        (long(b'L', b"../evil\0"), "archive_entry_forbidden"),
        (long(b'x', b"19 path=../../evil\n"), "archive_entry_forbidden"),
        (manifest(), "archive_entry_forbidden"),
        (vec![1; BLOCK], "archive_invalid"),
    ] {
        assert_eq!(names(&archive(&[manifest(), other])), Err(code));
    }
    assert_eq!(names(&archive(&[])), Err("file_missing"));
    assert_eq!(names(&archive(&[entry("a/b/policy.toml", b'0', b"m")])), Err("file_missing"));
    let many = vec![entry("a/", b'5', b""); MAX_ENTRIES + 1];
    assert_eq!(names(&archive(&many)), Err("archive_too_large"));
}

#[test]
fn every_cut_and_every_changed_header_is_an_error() {
    let whole = archive(&[entry("policy.toml", b'0', &[1; 700])]);
    // The padding and the end may be missing.
    for end in 1..BLOCK + 700 {
        assert_eq!(names(&whole[..end]), Err("archive_invalid"), "{end}");
    }
    // All but the checksum itself, which is padded.
    for at in (0..BLOCK).filter(|at| !(148..156).contains(at)) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        // Fields that nothing reads are covered by the checksum as well.
        assert!(names(&changed).is_err(), "{at}");
    }
}
