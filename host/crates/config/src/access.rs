//! Reads `[access]`: where keys come from, besides `[[keys]]`.

use std::path::{Path, PathBuf};

use pointsman_settings::{Location, Section};

/// Where keys come from, besides `[[keys]]`.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The keys file. With it, requests without a key are refused, also while it has none.
    pub keys: Option<PathBuf>,
    /// The group of requests without any credential; `None` if they are refused.
    pub anonymous: Option<String>,
    /// The query of a request may have the key.
    pub query_key: bool,
    /// Where `anonymous` is, which is only known to exist when the keys file is read.
    pub anonymous_location: Location,
}

/// Reads the section. Paths are relative to `folder`.
pub(super) fn read(section: &Section<'_>, folder: &Path) -> Access {
    let access = Access {
        keys: section.string("keys").map(|path| folder.join(path)),
        anonymous: section.string("anonymous").map(str::to_owned),
        query_key: section.bool("query-key", false),
        anonymous_location: section.location("anonymous"),
    };
    section.report_unknown();
    access
}
