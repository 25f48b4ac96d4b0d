//! What `pointsman top` shows, and what is selected.

use std::collections::VecDeque;
use std::time::UNIX_EPOCH;

use http::Method;
use serde_json::Value;

use super::feed::Update;
use super::hosts;
use crate::output::with_causes;

/// Lines of the log and decisions that are kept.
const MAX_KEPT: usize = 500;

/// A view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum View {
    #[default]
    Lanes,
    Requests,
    Decisions,
    Policies,
    Log,
    Hosts,
}

impl View {
    /// All views, in the order of their keys.
    pub(super) const ALL: [Self; 6] =
        [Self::Lanes, Self::Requests, Self::Decisions, Self::Policies, Self::Log, Self::Hosts];

    /// Returns the name of the view.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Lanes => "Lanes",
            Self::Requests => "Requests",
            Self::Decisions => "Decisions",
            Self::Policies => "Policies",
            Self::Log => "Log",
            Self::Hosts => "Hosts",
        }
    }
}

/// A command that waits for a confirmation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) text: String,
    pub(super) method: Method,
    pub(super) path: String,
}

/// What is shown, and what is selected.
#[derive(Debug, Default)]
pub(super) struct Model {
    state: Value,
    pub(super) decisions: VecDeque<Value>,
    pub(super) log: VecDeque<Value>,
    pub(super) lost: u64,
    /// Why the host is not reachable at the moment.
    pub(super) failure: Option<String>,
    pub(super) view: View,
    pub(super) selected: usize,
    /// What waits for a confirmation.
    pub(super) question: Option<Question>,
    /// The result of the last command.
    pub(super) message: String,
}

impl Model {
    /// Takes over what has arrived.
    pub(super) fn apply(&mut self, update: Update) {
        match update {
            Update::State(state) => {
                self.state = state;
                self.failure = None;
                self.select(self.selected);
            }
            Update::Decision(row) => {
                self.decisions.push_front(row);
                self.decisions.truncate(MAX_KEPT);
            }
            Update::Log(line) => {
                self.log.push_back(line);
                if self.log.len() > MAX_KEPT {
                    self.log.pop_front();
                }
            }
            Update::Lost(count) => self.lost += count,
            Update::Failed(error) => self.failure = Some(with_causes(&error)),
        }
    }

    /// Returns true once the host has sent its state.
    pub(super) fn has_state(&self) -> bool {
        self.state.is_object()
    }

    /// Returns a list of the state, such as `lanes`.
    pub(super) fn list(&self, name: &str) -> &[Value] {
        self.state[name].as_array().map_or(&[], Vec::as_slice)
    }

    /// Returns the rows of the view of other hosts.
    pub(super) fn hosts(&self) -> Vec<[String; 4]> {
        hosts::rows(self.list("lanes"), self.list("fleet_readers"), &self.state["shared_state"])
    }

    /// Returns a text of the state, such as `version`.
    pub(super) fn text(&self, name: &str) -> &str {
        self.state[name].as_str().unwrap_or_default()
    }

    /// Returns the requests: those that wait first, by their places.
    pub(super) fn requests(&self) -> Vec<&Value> {
        let mut requests: Vec<&Value> = self.list("requests").iter().collect();
        let place = |request: &&Value| request["position"].as_u64().unwrap_or(u64::MAX);
        requests.sort_by_key(place);
        requests
    }

    /// Returns the milliseconds since a time.
    pub(super) fn age_ms(unix_ms: Option<u64>) -> u64 {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
        // Saturates: the clock of another machine may be ahead.
        u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(unix_ms.unwrap_or(u64::MAX))
    }

    /// Returns the number of rows of the current view.
    pub(super) fn rows(&self) -> usize {
        match self.view {
            View::Lanes => self.list("lanes").len(),
            View::Requests => self.list("requests").len(),
            View::Decisions => self.decisions.len(),
            View::Policies => self.list("policies").len(),
            View::Log => self.log.len(),
            View::Hosts => self.hosts().len(),
        }
    }

    /// Selects a row, or the last one.
    pub(super) fn select(&mut self, row: usize) {
        self.selected = row.min(self.rows().saturating_sub(1));
    }

    /// Shows another view.
    pub(super) fn show(&mut self, view: View) {
        self.view = view;
        self.selected = 0;
    }
}
