//! A monitor that polls `/status` and records the states of the engines.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman_tests::client::get_unix;
use serde_json::Value;

use crate::processes::session_members;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A change of a lane's status between two polls.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) at: Instant,
    pub(crate) lane: String,
    /// The state of the engine.
    pub(crate) engine: String,
    pub(crate) progress: Option<String>,
    pub(crate) problem: Option<String>,
}

#[derive(Debug, Default)]
struct History {
    changes: Vec<Change>,
    /// The engines, by lane and session.
    sessions: BTreeSet<(String, u32)>,
    /// Descriptions of engines of two lanes that existed at the same time.
    overlaps: Vec<String>,
}

/// A thread that polls the status, until dropped.
pub(crate) struct StatusMonitor {
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StatusMonitor {
    /// Starts monitoring the host with this admin socket, whose lanes have memory for one engine.
    pub(crate) fn start(socket: PathBuf) -> Self {
        let (history, stop) = (Arc::<Mutex<History>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (history, stop) = (Arc::clone(&history), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(status) = read_status(&socket) {
                        record(&mut history.lock().unwrap(), &status);
                    }
                    pointsman_tests::pause(POLL_INTERVAL);
                }
            }
        });
        Self { history, stop, thread: Some(thread) }
    }

    /// Returns the changes of a lane since then.
    pub(crate) fn changes_since(&self, then: Instant, lane: &str) -> Vec<Change> {
        let history = self.history.lock().unwrap();
        history
            .changes
            .iter()
            .filter(|change| change.at >= then && change.lane == lane)
            .cloned()
            .collect()
    }

    /// Returns the states of an engine since then, each with its duration. The last one lasts until
    /// now.
    pub(crate) fn states(&self, then: Instant, lane: &str) -> Vec<(String, Duration)> {
        let mut states: Vec<(String, Instant)> = Vec::new();
        for change in self.changes_since(then, lane) {
            if states.last().is_none_or(|(state, _)| *state != change.engine) {
                states.push((change.engine, change.at));
            }
        }
        let ends: Vec<Instant> =
            states.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]).collect();
        states.into_iter().zip(ends).map(|((state, at), end)| (state, end - at)).collect()
    }

    /// Returns how long an engine was in a state, the first time since then.
    pub(crate) fn time_in_state(&self, then: Instant, lane: &str, state: &str) -> Option<Duration> {
        self.states(then, lane)
            .into_iter()
            .find(|(name, _)| name == state)
            .map(|(_, duration)| duration)
    }

    /// Returns descriptions of engines of two lanes that existed at the same time.
    pub(crate) fn overlaps(&self) -> Vec<String> {
        self.history.lock().unwrap().overlaps.clone()
    }
}

impl Drop for StatusMonitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed.
            thread.join().ok();
        }
    }
}

/// Reads the status; `None` if the host does not respond.
fn read_status(socket: &Path) -> Option<Value> {
    let response = get_unix(socket, "/status").ok()?;
    serde_json::from_slice(&response.body).ok()
}

/// Adds a status to the history.
fn record(history: &mut History, status: &Value) {
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
        let is_same = |last: &&Change| {
            (&last.engine, &last.progress, &last.problem)
                == (&change.engine, &change.progress, &change.problem)
        };
        let last = history.changes.iter().rev().find(|last| last.lane == change.lane);
        if last.filter(is_same).is_none() {
            history.changes.push(change);
        }
    }
    let running: Vec<(String, u32)> = lanes
        .iter()
        .filter_map(|lane| Some((text(&lane["name"])?, u32::try_from(lane["pid"].as_u64()?).ok()?)))
        .collect();
    for (lane, pid) in &running {
        for (other, session) in history.sessions.iter().filter(|(other, _)| other != lane) {
            let left = session_members(*session);
            if !left.is_empty() {
                history
                    .overlaps
                    .push(format!("{lane} had process {pid} while {other} still had {left:?}"));
            }
        }
    }
    history.sessions.extend(running);
}
