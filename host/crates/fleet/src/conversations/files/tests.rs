use super::*;

fn record(lane: &str, bytes: u64) -> Record {
    let owner = Owner { tenant: Some("team ü".into()), key: None };
    Record {
        lane: lane.to_owned(),
        fingerprint: u64::MAX - 1,
        prompt: ConversationPrompt { owner, blocks: [0, 1, u64::MAX].into() },
        prompt_tokens: 10,
        saved_tokens: 12,
        bytes,
        used: Duration::from_secs(1_800_000_000),
    }
}

/// Writes a file as an engine does.
fn save(folder: &Folder, file: FileId, lane: &str, content: &[u8]) -> Record {
    folder.create_lane(lane).unwrap();
    folder.reserve(lane, file).unwrap();
    fs::write(folder.path(lane, file, "bin"), content).unwrap();
    record(lane, content.len() as u64)
}

#[test]
fn committed_files_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path()).unwrap();
    let (file, lane) = (FileId(7), "a/b c");
    let record = save(&folder, file, lane, b"state");
    folder.commit(file, &record).unwrap();
    assert_eq!(folder.load(), [(file, record)]);
    for extension in ["bin", "json"] {
        let mode = fs::metadata(folder.path(lane, file, extension)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{extension}");
    }
    let folders = [folder.0.clone(), folder.lane(lane)];
    for folder in folders {
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    }
    folder.delete(lane, file);
    assert_eq!((folder.load(), entries(&folder.lane(lane)).len()), (Vec::new(), 0));
}

#[test]
fn incomplete_files_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path()).unwrap();
    // Not committed: the host was killed.
    save(&folder, FileId(1), "a", b"state");
    // Shorter than its record says.
    let record = save(&folder, FileId(2), "a", b"state");
    folder.commit(FileId(2), &record).unwrap();
    fs::write(folder.path("a", FileId(2), "bin"), b"st").unwrap();
    // No file.
    let record = save(&folder, FileId(3), "a", b"state");
    folder.commit(FileId(3), &record).unwrap();
    fs::remove_file(folder.path("a", FileId(3), "bin")).unwrap();
    // Of another version, and damaged.
    for (file, text) in [(FileId(4), r#"{"version":2}"#), (FileId(5), "{")] {
        let record = save(&folder, file, "a", b"state");
        folder.commit(file, &record).unwrap();
        fs::write(folder.path("a", file, "json"), text).unwrap();
    }
    let record = save(&folder, FileId(6), "a", b"state");
    folder.commit(FileId(6), &record).unwrap();
    assert_eq!(folder.load(), [(FileId(6), record)]);
    assert_eq!(entries(&folder.lane("a")).len(), 2);
}

#[test]
fn records_survive_their_form() {
    let record = record("coder", 5);
    assert_eq!(from_json(&to_json(&record)), Some(record.clone()));
    for key in ["lane", "fingerprint", "blocks", "bytes", "used", "prompt_tokens"] {
        let mut damaged = to_json(&record);
        damaged[key] = "zz".into();
        if key != "lane" {
            assert_eq!(from_json(&damaged), None, "{key}");
        }
        damaged.as_object_mut().unwrap().remove(key);
        assert_eq!(from_json(&damaged), None, "{key}");
    }
}
