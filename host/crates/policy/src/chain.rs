//! The policies of a host in order, as one advisor. A chain never changes: a change makes a new one, and a request keeps the
//! one that it was decided by.

use std::sync::Arc;

use pointsman_domain::{
    Advice, Advisor, BuiltIn, ChainInfo, Consulted, Facts, FailureReport, FleetView, LinkInfo,
    Merge, Merged, OnConflict, Outcome, PolicyRef, Recovery, Trace, fnv1a_chain, permit,
    permit_edits,
};

use crate::background::{Background, ShadowJob};
use crate::interview::HostCallMode;
use crate::spec::{CanaryBy, OnError, Rollout};
use crate::version::{Hook, NoAdvice, Version};

/// Policies in the order in which they are asked.
#[derive(Debug)]
pub(crate) struct Chain {
    links: Vec<Link>,
    on_conflict: OnConflict,
    // None where nothing is done beside the requests, as in tests.
    background: Option<Arc<Background>>,
    recovers: bool,
    learns: bool,
    info: Arc<ChainInfo>,
}

/// One place in the chain.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) weight: u32,
    pub(crate) on_error: OnError,
    /// The version in service, or why there is none.
    pub(crate) active: Result<Arc<Version>, String>,
    /// A version that is tried out.
    pub(crate) trial: Option<(Arc<Version>, Rollout)>,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new(Vec::new(), OnConflict::default(), None)
    }
}

impl Chain {
    pub(crate) fn new(
        links: Vec<Link>,
        on_conflict: OnConflict,
        background: Option<Arc<Background>>,
    ) -> Self {
        let has =
            |hook: fn(&Version) -> bool| links.iter().flat_map(Link::versions).any(|it| hook(it));
        Self {
            recovers: has(|version| version.hooks().on_failure),
            learns: has(|version| version.hooks().on_complete),
            info: Arc::new(ChainInfo::new(
                on_conflict,
                links.iter().flat_map(Link::infos).collect(),
            )),
            links,
            on_conflict,
            background,
        }
    }

    /// The versions that decide, without those that are tried out.
    pub(crate) fn in_service(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.links.iter().filter_map(|link| link.active.as_ref().ok())
    }

    /// All versions that take part, those that are tried out too.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.links.iter().flat_map(Link::versions)
    }

    /// Show how requests ended to whoever learns from that.
    pub(crate) fn observe(&self, fleet: &Arc<FleetView>, now_ms: u64, ended: &[Outcome]) {
        for version in self.versions().filter(|version| version.hooks().on_complete) {
            if let Err(error) = version.observe(fleet, now_ms, ended) {
                tracing::warn!(policy = %version.reference, "did not learn from {} outcomes: {error}", ended.len());
            }
        }
    }
}

impl Link {
    fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.active.iter().chain(self.trial.iter().map(|(version, _)| version))
    }

    /// Its versions, for those who record.
    fn infos(&self) -> impl Iterator<Item = LinkInfo> {
        let of = |version: &Version, trial: Option<&Rollout>| LinkInfo {
            policy: version.reference.clone(),
            fingerprint: version.fingerprint.clone(),
            component: version.component_sha256().to_owned(),
            weight: self.weight,
            on_error: self.on_error.name().to_owned(),
            trial: trial.map(|rollout| rollout.name().to_owned()),
            config: version.settings.config.clone(),
        };
        let active = self.active.as_ref().ok().map(|version| of(version, None));
        active
            .into_iter()
            .chain(self.trial.iter().map(move |(version, rollout)| of(version, Some(rollout))))
    }

    /// The version that decides about this request, if there is one.
    fn deciding(&self, facts: &Facts) -> Result<&Arc<Version>, &String> {
        match &self.trial {
            Some((version, Rollout::Canary { share, by })) if is_canary(facts, *share, *by) => {
                Ok(version)
            }
            _ => self.active.as_ref(),
        }
    }

    /// The version that is asked beside the one that decides.
    fn shadow(&self) -> Option<&Arc<Version>> {
        self.trial
            .as_ref()
            .filter(|(_, rollout)| *rollout == Rollout::Shadow)
            .map(|(version, _)| version)
    }

    fn missing(&self) -> PolicyRef {
        PolicyRef::new(&self.name, "none")
    }
}

/// Is the request one of the canary's `share` thousandths? The same every time it is asked.
fn is_canary(facts: &Facts, share: u16, by: CanaryBy) -> bool {
    let request = &facts.request;
    let hashed = match by {
        CanaryBy::Tenant => request.tenant().unwrap_or(request.id()),
        CanaryBy::Request => request.id(),
    };
    let hash = fnv1a_chain([hashed.as_bytes()], hashed.len().max(1), 1)
        .first()
        .copied()
        .unwrap_or_default();
    // FNV's low bits are weak for short keys; the middle of a multiplied hash is not.
    let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    spread % 1000 < u64::from(share)
}

impl Advisor for Chain {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Merged {
        let mut merge = Merge::new(fleet, facts.request.model());
        let mut facts = facts.clone();
        for link in &self.links {
            let before = link.shadow().map(|shadow| (shadow, facts.clone()));
            let asked = match link.deciding(&facts) {
                Ok(version) => ask(version, &mut facts, fleet, trace)
                    .map(|advice| (version, advice))
                    .map_err(|error| (version.reference.clone(), error.to_string())),
                Err(error) => Err((link.missing(), error.clone())),
            };
            if let (Some((shadow, facts)), Some(background)) = (before, &self.background) {
                let advice = asked.as_ref().ok().map(|(_, advice)| advice.clone());
                background.shadow(ShadowJob {
                    shadow: Arc::clone(shadow),
                    facts,
                    fleet: Arc::clone(fleet),
                    advice,
                });
            }
            let (name, problem) = match asked {
                Ok((version, advice)) => {
                    merge.add(&version.reference, link.weight, advice);
                    if merge.ended() {
                        break;
                    }
                    continue;
                }
                Err(failed) => failed,
            };
            let on_error = link.on_error;
            tracing::warn!(policy = %name, request = facts.request.id(), ?on_error, "no advice: {problem}");
            match on_error {
                OnError::Skip => {}
                OnError::Default => return BuiltIn.advise(&facts, fleet, trace),
                OnError::Refuse => {
                    let reject = Some(OnError::refusal(&name));
                    merge.add(&name, 0, Advice { reject, ..Advice::default() });
                    break;
                }
            }
        }
        merge.finish(self.on_conflict)
    }

    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        Some(&self.info)
    }

    fn recovers(&self) -> bool {
        self.recovers
    }

    /// The first policy that wants anything but the plan decides.
    fn recover(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        trace: &mut Trace,
    ) -> Recovery {
        for link in &self.links {
            let Ok(version) = link.deciding(facts) else { continue };
            if !version.hooks().on_failure {
                continue;
            }
            match ask_recovery(version, facts, fleet, failed, trace) {
                Ok(Recovery::Planned) => {}
                Ok(recovery) => return recovery,
                Err(problem) => {
                    tracing::warn!(policy = %version.reference, request = facts.request.id(), "no advice after a failure: {problem}");
                }
            }
        }
        Recovery::Planned
    }

    fn learns(&self) -> bool {
        self.learns
    }

    fn ended(&self, outcome: &Outcome) {
        if let Some(background) = &self.background {
            background.ended(outcome);
        }
    }
}

/// Ask one policy, and leave out what it may not advise. Its edits show in `facts` afterwards, for the policies that come
/// after it.
pub(crate) fn ask(
    version: &Version,
    facts: &mut Facts,
    fleet: &Arc<FleetView>,
    trace: &mut Trace,
) -> Result<Advice, NoAdvice> {
    let mut interview = HostCallMode::of(trace);
    let (advised, dropped) = advised(version, facts, fleet, &mut interview);
    trace.consulted(|| Consulted {
        policy: version.reference.clone(),
        hook: Hook::Request.name().to_owned(),
        took: interview.took,
        reads: interview.into_reads(),
        advice: advised.as_ref().ok().cloned(),
        note: advised.as_ref().err().map(ToString::to_string),
        dropped,
        fleet: Vec::new(),
    });
    advised
}

/// The same, and what was left out; what it asks goes the way of `interview`.
pub(crate) fn advised(
    version: &Version,
    facts: &mut Facts,
    fleet: &Arc<FleetView>,
    interview: &mut HostCallMode,
) -> (Result<Advice, NoAdvice>, Vec<String>) {
    let mut left_out = Vec::new();
    let mut advised = version.advise(facts, fleet, interview);
    if let Ok(advice) = &mut advised {
        let id = facts.request.id();
        for dropped in permit(advice, &version.allow) {
            version.figures().dropped(dropped.what);
            tracing::debug!(policy = %version.reference, request = id, "{} dropped: {}", dropped.what, dropped.reason);
            left_out.push(format!("{}: {}", dropped.what, dropped.reason));
        }
        // This host has no experimental settings; whoever sets some may want to know that.
        advice.hints.iter().for_each(|_| version.figures().dropped("hint"));
        if !advice.edits.is_empty() {
            let (edited, refused) = facts.request.edited(&advice.edits);
            for (edit, reason) in refused {
                version.figures().dropped(edit.kind());
                tracing::warn!(policy = %version.reference, request = id, "{} dropped: {reason}", edit.kind());
                left_out.push(format!("{}: {reason}", edit.kind()));
                advice.edits.retain(|kept| *kept != edit);
            }
            facts.request = edited;
        }
    }
    (advised, left_out)
}

fn ask_recovery(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    failed: &FailureReport,
    trace: &mut Trace,
) -> Result<Recovery, NoAdvice> {
    let mut interview = HostCallMode::of(trace);
    let (recovery, dropped) = recovered(version, facts, fleet, failed, &mut interview);
    trace.consulted(|| Consulted {
        policy: version.reference.clone(),
        hook: Hook::Failure.name().to_owned(),
        took: interview.took,
        reads: interview.into_reads(),
        advice: None,
        note: Some(match &recovery {
            Ok(recovery) => serde_json::to_string(recovery).unwrap_or_default(),
            Err(error) => error.to_string(),
        }),
        dropped,
        fleet: fleet.stats.clone(),
    });
    recovery
}

/// Ask one policy what to do after a failed try, and leave out what it may not want.
pub(crate) fn recovered(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    failed: &FailureReport,
    interview: &mut HostCallMode,
) -> (Result<Recovery, NoAdvice>, Vec<String>) {
    let mut left_out = Vec::new();
    let mut recovery = version.recover(facts, fleet, failed, interview);
    if let Ok(Recovery::Retry(step)) = &mut recovery {
        for dropped in permit_edits(&mut step.edits, &version.allow) {
            version.figures().dropped(dropped.what);
            left_out.push(format!("{}: {}", dropped.what, dropped.reason));
        }
    }
    (recovery, left_out)
}
