//! Looks at `/status` all the time, so that it is known afterwards what the engines went through, and when.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::processes::of_session;
use crate::talk::exchange;

const LOOK: Duration = Duration::from_millis(50);

/// Something that was not so at the look before.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) at: Instant,
    pub(crate) lane: String,
    /// State of the engine.
    pub(crate) engine: String,
    pub(crate) progress: Option<String>,
    pub(crate) problem: Option<String>,
}

#[derive(Debug, Default)]
struct Seen {
    changes: Vec<Change>,
    /// Engines by lane and session.
    sessions: BTreeSet<(String, u32)>,
    /// Sentences about engines of two lanes that were there at once.
    overlaps: Vec<String>,
}

/// A thread that looks. Ends when dropped.
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Of the host on this port, whose lanes have memory for one.
    pub(crate) fn start(port: u16) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(status) = status(port) {
                        look(&mut seen.lock().unwrap(), &status);
                    }
                    std::thread::park_timeout(LOOK);
                }
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// What a lane went through since then.
    pub(crate) fn since(&self, then: Instant, lane: &str) -> Vec<Change> {
        let seen = self.seen.lock().unwrap();
        seen.changes
            .iter()
            .filter(|change| change.at >= then && change.lane == lane)
            .cloned()
            .collect()
    }

    /// The states of an engine since then, each with its length; the last one lasts until now.
    pub(crate) fn states(&self, then: Instant, lane: &str) -> Vec<(String, Duration)> {
        let mut states: Vec<(String, Instant)> = Vec::new();
        for change in self.since(then, lane) {
            if states.last().is_none_or(|(state, _)| *state != change.engine) {
                states.push((change.engine, change.at));
            }
        }
        let ends: Vec<Instant> =
            states.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]).collect();
        states.into_iter().zip(ends).map(|((state, at), end)| (state, end - at)).collect()
    }

    /// How long an engine was in a state, the first time since then.
    pub(crate) fn spent(&self, then: Instant, lane: &str, state: &str) -> Option<Duration> {
        self.states(then, lane)
            .into_iter()
            .find(|(name, _)| name == state)
            .map(|(_, length)| length)
    }

    /// Engines of two lanes that were there at once.
    pub(crate) fn overlaps(&self) -> Vec<String> {
        self.seen.lock().unwrap().overlaps.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// As `/status` says it; `None` if there is no answer.
fn status(port: u16) -> Option<Value> {
    let answer = exchange(port, "GET", "/status", "").ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

fn look(seen: &mut Seen, status: &Value) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let lanes = status["lanes"].as_array().unwrap();
    for lane in lanes {
        let change = Change {
            at: Instant::now(),
            lane: text(&lane["name"]).unwrap_or_default(),
            engine: text(&lane["engine"]).unwrap_or_default(),
            progress: text(&lane["progress"]),
            problem: text(&lane["problem"]),
        };
        let same = |last: &&Change| {
            (&last.engine, &last.progress, &last.problem)
                == (&change.engine, &change.progress, &change.problem)
        };
        let last = seen.changes.iter().rev().find(|last| last.lane == change.lane);
        if last.filter(same).is_none() {
            seen.changes.push(change);
        }
    }
    let running: Vec<(String, u32)> = lanes
        .iter()
        .filter_map(|lane| Some((text(&lane["name"])?, u32::try_from(lane["pid"].as_u64()?).ok()?)))
        .collect();
    for (lane, pid) in &running {
        for (other, session) in seen.sessions.iter().filter(|(other, _)| other != lane) {
            let left = of_session(*session);
            if !left.is_empty() {
                seen.overlaps
                    .push(format!("{lane} was there as {pid}, and of {other} still {left:?}"));
            }
        }
    }
    seen.sessions.extend(running);
}
