//! The traffic of a scenario: its streams, each with random numbers of its own, merged by time.
//!
//! Memory is that of the requests which clients wait for, however long the run is: generators know the time of the last
//! request, and files are read line by line.

mod conversations;
mod csv;
mod generator;
mod reader;
mod recorded;
mod rows;
mod times;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pointsman_settings::Location;

use self::conversations::{Conversations, Turn};
use self::generator::Content;
use self::rows::{Row, Sorted};
use self::times::Times;
use crate::scenario::{Format, Source, Stream, Trace};
use crate::traffic::{Ask, ClassId, Traffic};

/// The number of a stream stands in the upper bits of its sessions' numbers.
const STREAM_SHIFT: u32 = 48;

/// The requests of one run.
pub struct Arrivals {
    classes: Vec<String>,
    feeds: Vec<Feed>,
    problem: Option<String>,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrivals").field("classes", &self.classes).finish_non_exhaustive()
    }
}

/// One stream, and the request that comes next.
struct Feed {
    content: Content,
    kind: Kind,
    until: Duration,
    /// How many it gave.
    given: u64,
    next: Option<Ask>,
}

enum Kind {
    Open(Times),
    Sessions(Times),
    Rows {
        rows: Sorted,
        from: Duration,
        speed: f64,
        first: Option<i64>,
        last: Duration,
    },
    Conversations {
        times: Times,
        conversations: Conversations,
        left: BTreeMap<u64, std::vec::IntoIter<Turn>>,
    },
}

impl Arrivals {
    /// The streams with this seed, at a wall clock that begins here. Each is asked for its first request at once.
    pub(crate) fn new(
        streams: &[Arc<Stream>],
        seed: u64,
        begins_ms: u64,
    ) -> Result<Self, (Location, String)> {
        let mut classes: Vec<String> = Vec::new();
        let mut feeds = Vec::new();
        for (index, stream) in streams.iter().enumerate() {
            let class =
                classes.iter().position(|class| *class == stream.class).unwrap_or_else(|| {
                    classes.push(stream.class.clone());
                    classes.len() - 1
                });
            let class = ClassId(u16::try_from(class).unwrap_or(u16::MAX));
            let mut feed = Feed::new(stream, index as u64, class, seed, begins_ms);
            feed.advance().map_err(|what| (stream.place.clone(), what))?;
            feeds.push(feed);
        }
        Ok(Self { classes, feeds, problem: None })
    }

    /// Why there was no next request though there should have been: a file that could not be read on.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

impl Traffic for Arrivals {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn next(&mut self) -> Option<Ask> {
        if self.problem.is_some() {
            return None;
        }
        let waiting = |feed: &&mut Feed| feed.next.is_some();
        // There are few streams; of those at the same time, the first.
        let feed = self
            .feeds
            .iter_mut()
            .filter(waiting)
            .min_by_key(|feed| feed.next.as_ref().map(|ask| ask.at))?;
        let ask = feed.next.take();
        self.problem = feed.advance().err();
        ask
    }

    fn after(&mut self, ask: &Ask, ended: Duration) -> Option<Ask> {
        let feed = usize::try_from(ask.session >> STREAM_SHIFT).ok()?;
        self.feeds.get_mut(feed)?.after(ask, ended)
    }
}

impl Feed {
    fn new(stream: &Arc<Stream>, index: u64, class: ClassId, seed: u64, begins_ms: u64) -> Self {
        let name = format!("traffic {index} {}", stream.class);
        let times = |pace| Times::new(pace, seed, &name, stream.from, begins_ms);
        let kind = match &stream.source {
            Source::Open(pace) => Kind::Open(times(pace)),
            Source::Sessions(sessions) => Kind::Sessions(times(&sessions.pace)),
            Source::Trace(trace) => match &trace.pace {
                Some(pace) => Kind::Conversations {
                    times: times(pace),
                    conversations: Conversations::open(&trace.file),
                    left: BTreeMap::new(),
                },
                None => Kind::Rows {
                    rows: Sorted::new(rows(trace)),
                    from: stream.from,
                    speed: trace.speed,
                    first: None,
                    last: stream.from,
                },
            },
        };
        let content = Content::new(Arc::clone(stream), index << STREAM_SHIFT, class, seed, name);
        Self { content, kind, until: stream.until, given: 0, next: None }
    }

    /// Make the next request, if there is one.
    fn advance(&mut self) -> Result<(), String> {
        self.next = self.make()?.filter(|ask| ask.at < self.until);
        self.given += 1;
        Ok(())
    }

    fn make(&mut self) -> Result<Option<Ask>, String> {
        if self.content.limit().is_some_and(|limit| self.given >= limit) {
            return Ok(None);
        }
        match &mut self.kind {
            Kind::Open(times) => Ok(Some(self.content.single(times.next(), self.given))),
            Kind::Sessions(times) => Ok(Some(self.content.first_turn(times.next(), self.given))),
            Kind::Rows { rows, from, speed, first, last } => {
                let Some(row) = rows.next().transpose()? else { return Ok(None) };
                let since = row.at.saturating_sub(*first.get_or_insert(row.at)).max(0);
                let at = *from + crate::random::seconds(since as f64 / 1e6 / *speed);
                // What was written much too late.
                *last = at.max(*last);
                Ok(Some(self.content.of_row(*last, self.given, row)))
            }
            Kind::Conversations { times, conversations, left } => {
                let Some(turns) = conversations.next().transpose()? else { return Ok(None) };
                let mut turns = turns.into_iter();
                let Some(turn) = turns.next() else { return Ok(None) };
                let ask = self.content.turn_of(times.next(), self.given, turn);
                if turns.len() > 0 {
                    left.insert(ask.session, turns);
                }
                Ok(Some(ask))
            }
        }
    }

    fn after(&mut self, ask: &Ask, ended: Duration) -> Option<Ask> {
        let next = match &mut self.kind {
            Kind::Open(_) | Kind::Rows { .. } => None,
            Kind::Sessions(_) => self.content.next_turn(ask, ended),
            Kind::Conversations { left, .. } => {
                let turns = left.get_mut(&ask.session)?;
                let turn = turns.next();
                if turns.len() == 0 {
                    left.remove(&ask.session);
                }
                turn.map(|turn| self.content.next_turn_of(ask, ended, turn))
            }
        };
        next.filter(|next| next.at < self.until)
    }
}

/// The rows of a file with times.
fn rows(trace: &Trace) -> Box<dyn Iterator<Item = Result<Row, String>>> {
    match trace.format {
        Format::Azure => Box::new(csv::azure(&trace.file)),
        Format::BurstGpt => Box::new(csv::burst_gpt(&trace.file)),
        Format::Records => recorded::rows(&trace.file),
        // It has no times, and never comes without a pace.
        Format::ShareGpt => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests;
