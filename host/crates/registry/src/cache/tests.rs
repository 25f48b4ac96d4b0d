use std::time::Duration;

use super::*;
use crate::digest::digest;
use crate::tests::artifact;

fn source(text: &str) -> PolicySource {
    PolicySource {
        reference: text.parse().unwrap(),
        follow: Some(Duration::from_secs(60)),
        problem: None,
    }
}

#[test]
fn tag_leads_to_the_artifact_that_was_pulled_last() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("registry"));
    let source = source("oci://r/p:stable");
    let link = source.folder(&dir.path().join("registry"));
    assert_eq!(cache.current(&source), None);
    for version in ["1.0.0", "2.0.0"] {
        let digest = digest(version.as_bytes());
        cache.add(&digest, &artifact(version)).unwrap();
        cache.add(&digest, &artifact("not written again")).unwrap();
        cache.point(&source, &digest).unwrap();
        cache.point(&source, &digest).unwrap();
        assert_eq!(cache.current(&source), Some(digest));
        let manifest = fs::read_to_string(link.join("policy.toml")).unwrap();
        assert!(manifest.contains(version), "{manifest}");
        assert!(link.join("policy.wasm").is_file());
    }
    assert_eq!(Cache::containing(&link).unwrap().dir, cache.dir);
}

#[test]
fn artifact_of_a_digest_is_in_its_own_folder() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().to_owned());
    let digest = digest(b"1");
    let source = source(&format!("oci://r/p@{digest}"));
    assert_eq!(cache.current(&source), None);
    cache.add(&digest, &artifact("1.0.0")).unwrap();
    cache.point(&source, &digest).unwrap();
    assert_eq!(cache.current(&source), Some(digest));
    assert!(source.folder(dir.path()).join("policy.toml").is_file());
    assert_eq!(Cache::containing(&source.folder(dir.path())).unwrap().dir, cache.dir);
}

#[test]
fn artifacts_that_are_not_used_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().to_owned());
    cache.prune(&[]).unwrap();
    let (used, unused) = (source("oci://r/p:used"), source("oci://r/p:gone"));
    let digests: Vec<OciDigest> = (0..MAX_UNUSED + 5).map(|n| digest(&n.to_le_bytes())).collect();
    for digest in &digests {
        cache.add(digest, &artifact("1.0.0")).unwrap();
    }
    cache.point(&used, &digests[0]).unwrap();
    cache.point(&unused, &digests[1]).unwrap();
    cache.prune(std::slice::from_ref(&used)).unwrap();
    assert_eq!(digests.iter().filter(|digest| cache.has(digest)).count(), MAX_UNUSED + 1);
    assert_eq!(cache.current(&used).as_ref(), Some(&digests[0]));
    assert_eq!(cache.current(&unused), None);
}
