//! The thread that loads policies: compiling one may take minutes, for which a changed key or limit
//! must not wait.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use pointsman_policy::{ChainSpec, Change, Policies};

use crate::registry::PolicySources;

/// A policy whose version changed, or could not be loaded, and the result.
pub(super) type PolicyChange = (String, String);

/// A function that gets the results of a scan.
pub(super) type OnScanned = Box<dyn FnOnce(Vec<PolicyChange>) + Send>;

/// A scan of the policies' folders.
#[derive(Default)]
struct Scan {
    /// The chain, if it has changed.
    chain: Option<ChainSpec>,
    on_scanned: Vec<OnScanned>,
}

/// A handle to the thread. The thread ends when the handle is dropped.
#[derive(Debug, Clone)]
pub(super) struct PolicyLoader(Sender<Scan>);

impl PolicyLoader {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be spawned.
    pub(super) fn start(
        policies: Arc<Policies>,
        sources: Arc<PolicySources>,
    ) -> std::io::Result<Self> {
        let (sender, scans) = channel();
        let run = move || run(&policies, &sources, &scans);
        // Not joined: it may be compiling a policy, which can take minutes.
        std::thread::Builder::new().name("policy-reload".into()).spawn(run)?;
        Ok(Self(sender))
    }

    /// Applies a changed chain, if there is one, and looks for changes in the policies' folders.
    /// Does not wait for it.
    pub(super) fn scan(&self, chain: Option<ChainSpec>, on_scanned: Option<OnScanned>) {
        let scan = Scan { chain, on_scanned: on_scanned.into_iter().collect() };
        self.0.send(scan).ok(); // Fails only if the thread has panicked.
    }
}

fn run(policies: &Policies, sources: &PolicySources, scans: &Receiver<Scan>) {
    while let Ok(first) = scans.recv() {
        // Those that arrived while policies were loaded are one.
        let scan = scans.try_iter().fold(first, |mut scan, next| {
            scan.chain = next.chain.or(scan.chain);
            scan.on_scanned.extend(next.on_scanned);
            scan
        });
        let apply = |mut chain: ChainSpec| {
            sources.prepare(&mut chain);
            policies.apply(chain)
        };
        let mut changes = scan.chain.map(apply).unwrap_or_default();
        changes.extend(policies.look());
        let changes: Vec<PolicyChange> =
            changes.iter().map(|(name, change)| (name.clone(), describe(change))).collect();
        for on_scanned in scan.on_scanned {
            on_scanned(changes.clone());
        }
    }
}

/// Describes the result of a change for the operator.
fn describe(change: &Change) -> String {
    match change {
        Change::Active(version) => format!("{version} is active"),
        Change::Candidate(version) => format!("{version} is staged as a candidate"),
        Change::Unchanged => "unchanged".to_owned(),
        Change::Failed(error) => format!("unchanged, because loading failed: {error}"),
        Change::Removed => "removed from the chain".to_owned(),
    }
}
