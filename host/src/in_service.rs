//! The chain that a host has in service, as opposed to what is in its policies' folders.

use std::path::Path;

use pointsman_policy::{ChainSpec, StoredVersion};

use crate::output::print_error;

/// Replaces the folders of the chain's policies by those of the versions that the host has in
/// service, where its version store can be read: a folder may have a version that the host has
/// rejected, or not yet loaded. The settings stay those of the chain. Reports what differs to
/// standard error.
pub(crate) fn in_service(mut chain: ChainSpec) -> ChainSpec {
    let Some(store) = chain.store.take().filter(|store| has_entries(store)) else {
        print_error("note: no version store; using what is in the policies' folders".to_owned());
        return chain;
    };
    chain.policies.retain_mut(|link| {
        let note = |text: String| print_error(format!("note: policy `{}`: {text}", link.name));
        let stored = match StoredVersion::find(&store, &link.name) {
            Ok(Some(stored)) => stored,
            Ok(None) => {
                note(format!("not in service; using {}", link.dir.display()));
                return true;
            }
            Err(error) => {
                let (code, dir) = (error.code(), link.dir.display());
                note(format!("version in service unknown, using {dir}: {error} [{code}]"));
                return true;
            }
        };
        if stored.is_disabled {
            note("disabled by an operator; not called".to_owned());
            return false;
        }
        if !stored.is_in(&link.dir) {
            let dir = link.dir.display();
            note(format!("using {stored}, which is in service; {dir} has other files"));
        }
        if stored.settings != link.settings {
            note("the settings differ from those in service".to_owned());
        }
        link.dir = stored.dir;
        true
    });
    chain
}

/// Returns whether a folder has any entries, or cannot be read, which is reported by policy.
fn has_entries(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
