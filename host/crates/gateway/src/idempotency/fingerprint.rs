//! What distinguishes requests with a key from each other.

use std::io;
use std::os::unix::fs::FileExt as _;

use pointsman_domain::Constraint;
use pointsman_openai::{FormContent, FormPart};
use sha2::{Digest as _, Sha256};

use crate::error::RouteError;
use crate::large_thread;
use crate::policy_threads::LARGE_BODY;
use crate::upload::Received;
use pointsman_access::Identity;

/// Bytes of a file that are read at a time.
const READ_SIZE: usize = 128 << 10;

/// Hashes of the key of a request with all that it is scoped to, and of what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(super) key: [u8; 32],
    pub(super) content: [u8; 32],
    /// The digest of what the operator's guards demand; 0 if none applies.
    pub(super) guards: u64,
}

impl Fingerprint {
    /// Returns the fingerprint of a request. `context` is what else determines its response.
    pub(crate) async fn new(
        key: &str,
        identity: &Identity,
        endpoint: &str,
        context: &str,
        body: &Received,
    ) -> Result<Self, RouteError> {
        let mut scope = Sha256::new_with_prefix(identity.key.to_be_bytes());
        for part in [identity.tenant.as_deref().unwrap_or_default(), endpoint, key] {
            update(&mut scope, part);
        }
        let mut content = Sha256::new();
        update(&mut content, context);
        let content = match body {
            Received::Json(body) => {
                let (body, is_large) = (body.clone(), body.len() > LARGE_BODY);
                let hash = move || -> [u8; 32] { content.chain_update(&body).finalize().into() };
                if is_large { large_thread::run(hash).await } else { hash() }
            }
            Received::Form(form) => {
                let parts = form.parts().to_vec();
                large_thread::run(move || hash_parts(content, &parts))
                    .await
                    .map_err(RouteError::Spool)?
            }
        };
        Ok(Self { key: scope.finalize().into(), content, guards: 0 })
    }

    /// Returns the fingerprint of a request of which guards demand something.
    pub(crate) fn with_constraint(self, constraint: Option<&Constraint>) -> Self {
        Self { guards: constraint.map_or(0, Constraint::digest), ..self }
    }
}

/// Hashes the parts of a form: a retry writes them with another boundary.
fn hash_parts(mut digest: Sha256, parts: &[FormPart]) -> io::Result<[u8; 32]> {
    for part in parts {
        update(&mut digest, &part.name);
        update(&mut digest, part.file_name.as_deref().unwrap_or_default());
        digest.update(part.content.size().to_be_bytes());
        match &part.content {
            FormContent::Memory(bytes) => digest.update(bytes),
            FormContent::File(file, range) => {
                let mut buffer = vec![0; READ_SIZE];
                let mut at = range.start;
                while at < range.end {
                    let wanted = usize::try_from(range.end - at).unwrap_or(READ_SIZE);
                    let wanted = &mut buffer[..wanted.min(READ_SIZE)];
                    file.read_exact_at(wanted, at)?;
                    digest.update(&*wanted);
                    at += wanted.len() as u64;
                }
            }
        }
    }
    Ok(digest.finalize().into())
}

/// Adds a part with its length, so that no two lists of parts are the same.
fn update(digest: &mut Sha256, part: &str) {
    digest.update((part.len() as u64).to_be_bytes());
    digest.update(part);
}
