//! Chains and policies outside a running host: dry runs, replays, and the author's workbench.

pub(crate) mod dry_run;
pub(crate) mod interfaces;
pub(crate) mod replay;
pub(crate) mod workbench;
