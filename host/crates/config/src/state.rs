//! How engines outlive a host that is killed: keys of `[state]`.

use pointsman_fleet::{AfterCrash, KeeperSpec};
use pointsman_settings::{Code, Section};

/// The values of `after-crash`.
const AFTER_CRASH: [(&str, AfterCrash); 2] =
    [("end", AfterCrash::End), ("adopt", AfterCrash::Adopt)];

/// Reads the keys of the keeper. Its program is set by the caller.
pub(super) fn read(section: &Section<'_>) -> KeeperSpec {
    let orphan_grace = section.duration("orphan-grace", KeeperSpec::ORPHAN_GRACE);
    let after_crash = section.choice("after-crash", &AFTER_CRASH, AfterCrash::default());
    if after_crash == AfterCrash::Adopt && orphan_grace.is_zero() {
        let message = "`adopt` conflicts with `orphan-grace = \"0s\"`, with which engines end with \
                       the host; increase `orphan-grace`";
        section.error_at("after-crash", Code::Conflict.with(message));
    }
    section.report_unknown();
    KeeperSpec { program: None, orphan_grace, after_crash }
}
