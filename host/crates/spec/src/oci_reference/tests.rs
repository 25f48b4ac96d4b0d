use proptest::prelude::*;

use super::*;

#[test]
fn references_have_a_host_a_repository_and_a_version() {
    use ReferenceError::{Digest, Host, Repository, Scheme, Tag, Version};
    let hex = "0123456789abcdef".repeat(4);
    let pinned = format!("oci://r.example.org/team/p@sha256:{hex}");
    for (text, expected) in [
        ("oci://r.example.org/team/p:1.2.0", Ok("oci://r.example.org/team/p:1.2.0")),
        ("oci://127.0.0.1:5000/p:latest", Ok("oci://127.0.0.1:5000/p:latest")),
        ("oci://[::1]:5000/p:v1", Ok("oci://[::1]:5000/p:v1")),
        ("oci://localhost/a__b/c.d-e--f:_", Ok("oci://localhost/a__b/c.d-e--f:_")),
        (&*pinned, Ok(&*pinned)),
        (&format!("oci://r.example.org/team/p:1.2.0@sha256:{hex}"), Ok(&pinned)),
        ("r.example.org/team/p:1.2.0", Err(Scheme)),
        ("https://r.example.org/p:1", Err(Scheme)),
        ("", Err(Scheme)),
        ("oci://r.example.org", Err(Repository)),
        ("oci://r.example.org/", Err(Repository)),
        ("oci://r.example.org/:1", Err(Repository)),
        ("oci://r.example.org/../p:1", Err(Repository)),
        ("oci://r.example.org/a//b:1", Err(Repository)),
        ("oci://r.example.org/A:1", Err(Repository)),
        ("oci://r.example.org/a%2f:1", Err(Repository)),
        ("oci://r.example.org/a?b:1", Err(Repository)),
        ("oci:///p:1", Err(Host)),
        ("oci://user@r.example.org/p:1", Err(Host)),
        ("oci://R.example.org/p:1", Err(Host)),
        ("oci://r.example.org:/p:1", Err(Host)),
        ("oci://r.example.org:99999/p:1", Err(Host)),
        ("oci://r example/p:1", Err(Host)),
        ("oci://r.example.org/p", Err(Version)),
        ("oci://r.example.org/p:", Err(Tag)),
        ("oci://r.example.org/p:.a", Err(Tag)),
        ("oci://r.example.org/p:a:b", Err(Tag)),
        ("oci://r.example.org/p@sha256:0", Err(Digest)),
        ("oci://r.example.org/p@sha512:0", Err(Digest)),
        ("oci://r.example.org/p@", Err(Digest)),
        (&pinned.to_uppercase().replace("OCI:", "oci:"), Err(Host)),
        (&pinned.replace("abcdef", "ABCDEF"), Err(Digest)),
    ] {
        let parsed = text.parse::<OciReference>().map(|reference| reference.to_string());
        assert_eq!(parsed.as_deref(), expected.as_ref().copied(), "{text}");
    }
}

proptest! {
    #[test]
    fn parsed_references_are_the_same_after_printing(
        text in "(oci://)?[a-z0-9.:\\[\\]-]{0,12}/?[a-zA-Z0-9/._-]{0,16}(:[a-z.]{0,5})?(@.{0,4})?",
    ) {
        if let Ok(reference) = text.parse::<OciReference>() {
            prop_assert_eq!(Ok(reference.clone()), reference.to_string().parse());
            let repository = reference.repository();
            prop_assert!(!repository.contains("..") && !repository.starts_with('/'));
            prop_assert!(reference.host().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }

    #[test]
    fn valid_parts_make_a_valid_reference(
        host in "[a-z][a-z0-9]{0,8}(\\.[a-z]{1,4})?(:[1-9][0-9]{0,3})?",
        repository in "[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,6}){0,3}",
        tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
    ) {
        let reference: OciReference = format!("oci://{host}/{repository}:{tag}").parse().unwrap();
        prop_assert_eq!(reference.host(), host);
        prop_assert_eq!(reference.repository(), repository);
        prop_assert_eq!(reference.version(), &OciVersion::Tag(tag));
    }
}
