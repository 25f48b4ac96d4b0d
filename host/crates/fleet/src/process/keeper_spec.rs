//! What the configuration says about the keeper.

use std::path::PathBuf;
use std::time::Duration;

/// How engines outlive a host that is killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperSpec {
    /// The program of the keeper: the host's own, run as `pointsman keeper`. Without it, the host
    /// starts the engines itself, and the kernel ends the first process of each with the host.
    pub program: Option<PathBuf>,
    /// How long engines are kept for the next host after the end of a host that was killed.
    pub orphan_grace: Duration,
    /// What becomes of engines if the keeper is killed, too.
    pub after_crash: AfterCrash,
}

/// What the next host does with engines whose host and keeper were both killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterCrash {
    /// It ends them.
    #[default]
    End,
    /// It takes them over.
    Adopt,
}

impl KeeperSpec {
    /// The default of `state.orphan-grace`.
    pub const ORPHAN_GRACE: Duration = Duration::from_secs(60);
}

impl Default for KeeperSpec {
    fn default() -> Self {
        let after_crash = AfterCrash::default();
        Self { program: None, orphan_grace: Self::ORPHAN_GRACE, after_crash }
    }
}
