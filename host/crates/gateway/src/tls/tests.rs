use std::fs;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use tempfile::TempDir;

use super::*;

fn issue() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
}

/// Writes a certificate and its key into a folder.
fn write(dir: &TempDir, pair: &CertifiedKey<KeyPair>) -> TlsFiles {
    let files = TlsFiles {
        certificate: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
        client_ca: None,
        client_certificates_optional: false,
    };
    replace(&files.certificate, &pair.cert.pem());
    replace(&files.key, &pair.signing_key.serialize_pem());
    files
}

/// Writes a file atomically, so that it is a new one even within a tick of the clock.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

#[test]
fn valid_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = write(&dir, &issue());
    for (http2, expected) in [(true, &[ALPN_HTTP2, ALPN_HTTP1][..]), (false, &[ALPN_HTTP1])] {
        assert_eq!(server_config(&files, http2).unwrap().alpn_protocols, expected);
    }
    files.client_ca = Some(files.certificate.clone());
    for optional in [false, true] {
        files.client_certificates_optional = optional;
        Tls::read(files.clone(), true).unwrap();
    }
}

#[test]
fn unusable_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let files = write(&dir, &issue());
    let error = |files: &TlsFiles| server_config(files, true).unwrap_err();
    let other = dir.path().join("other");

    fs::write(&other, issue().signing_key.serialize_pem()).unwrap();
    let mismatch = TlsFiles { key: other.clone(), ..files.clone() };
    assert!(matches!(error(&mismatch), TlsError::Pair { .. }));
    let swapped = TlsFiles { certificate: other.clone(), ..files.clone() };
    assert!(matches!(error(&swapped), TlsError::NoCertificate(_)));
    let no_key = TlsFiles { key: files.certificate.clone(), ..files.clone() };
    assert!(matches!(error(&no_key), TlsError::NoKey(_)));
    for text in
        ["BEGIN ENCRYPTED PRIVATE KEY", "BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED"]
    {
        fs::write(&other, format!("-----{text}-----\n")).unwrap();
        assert!(matches!(error(&mismatch), TlsError::EncryptedKey(_)), "{text}");
    }
    fs::write(&other, "-----BEGIN CERTIFICATE-----\n!\n").unwrap();
    assert!(matches!(error(&swapped), TlsError::Pem { .. }));
    let no_ca = TlsFiles { client_ca: Some(other), ..files.clone() };
    assert!(matches!(error(&no_ca), TlsError::Pem { .. }));
    let missing = TlsFiles { key: dir.path().join("none"), ..files };
    assert!(matches!(error(&missing), TlsError::Read(_)));
}

#[test]
fn keys_that_others_can_read_are_noticed() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let files = write(&dir, &issue());
    for (mode, expected) in [(0o600, false), (0o640, false), (0o644, true)] {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(is_readable_by_others(&files.key), expected, "{mode:o}");
    }
    assert!(!is_readable_by_others(Path::new("/none")));
}

/// Runs the reload until `done`, or for several intervals.
async fn reload_until(tls: &Arc<Tls>, done: impl Fn() -> bool) {
    let wait = async {
        for _ in 0..10 {
            if done() {
                return;
            }
            tokio::time::sleep(RELOAD_INTERVAL).await;
        }
    };
    tokio::select! { () = Arc::clone(tls).reload_on_changes() => {}, () = wait => {} }
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_reloaded_if_they_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let files = write(&dir, &issue());
    let tls = Arc::new(Tls::read(files.clone(), true).unwrap());
    let first = tls.current();
    let is_first = || Arc::ptr_eq(&tls.current(), &first);
    reload_until(&tls, || false).await;
    assert!(is_first(), "without a change, nothing is read");
    // The key does not belong to the certificate.
    replace(&files.key, &issue().signing_key.serialize_pem());
    reload_until(&tls, || false).await;
    assert!(is_first());
    write(&dir, &issue());
    reload_until(&tls, || !is_first()).await;
    assert!(!is_first());
}

#[tokio::test(start_paused = true)]
async fn link_that_leads_to_another_folder_is_a_change() {
    // As Kubernetes mounts secrets.
    let (dir, first, second) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(&first, &issue());
    write(&second, &issue());
    let (data, next) = (dir.path().join("..data"), dir.path().join("..next"));
    std::os::unix::fs::symlink(first.path(), &data).unwrap();
    let files = TlsFiles {
        certificate: data.join("cert.pem"),
        key: data.join("key.pem"),
        client_ca: None,
        client_certificates_optional: false,
    };
    let tls = Arc::new(Tls::read(files, true).unwrap());
    let current = tls.current();
    std::os::unix::fs::symlink(second.path(), &next).unwrap();
    fs::rename(&next, &data).unwrap();
    reload_until(&tls, || !Arc::ptr_eq(&tls.current(), &current)).await;
    assert!(!Arc::ptr_eq(&tls.current(), &current));
}
