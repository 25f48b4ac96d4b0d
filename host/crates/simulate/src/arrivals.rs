//! The traffic of a scenario: its streams, each with its own random numbers, merged by time.
//!
//! Memory is bounded by the number of requests that clients wait for, and not by the length of the
//! run: generators only remember the time of the last request, and trace files are read line by
//! line.

mod conversations;
mod csv;
mod error;
mod generator;
mod reader;
mod recorded;
mod rows;
mod spec;
mod times;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::conversations::{Conversations, Turn};
pub use self::error::{TraceError, TraceLineError};
use self::generator::{Gaps, RequestGenerator};
use self::rows::{SortedRows, TraceRow};
pub use self::spec::{
    ArrivalProcess, HeaderValue, Headers, Media, Models, Sessions, Tenants, TraceFile, TraceFormat,
    TrafficSource, TrafficStream,
};
use self::times::ArrivalTimes;
use crate::traffic::{ClassId, SimRequest, Traffic};

/// The position of a stream's index in the session numbers of its requests.
const STREAM_SHIFT: u32 = 48;

/// The requests of one run.
pub struct Arrivals {
    classes: Vec<String>,
    streams: Vec<StreamState>,
    error: Option<TraceError>,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrivals").field("classes", &self.classes).finish_non_exhaustive()
    }
}

/// A stream with its next request.
struct StreamState {
    generator: RequestGenerator,
    source: SourceState,
    until: Duration,
    /// The number of requests generated so far, without follow-ups.
    count: u64,
    next: Option<SimRequest>,
}

enum SourceState {
    Open(ArrivalTimes),
    Sessions(ArrivalTimes),
    Rows {
        rows: SortedRows,
        from: Duration,
        speed: f64,
        /// The recorded time of the first row.
        first: Option<i64>,
        /// The arrival time of the last request.
        last: Duration,
    },
    Conversations {
        times: ArrivalTimes,
        conversations: Conversations,
        /// The remaining turns of each conversation, by session.
        remaining: BTreeMap<u64, std::vec::IntoIter<Turn>>,
    },
}

impl Arrivals {
    /// Creates the traffic of these streams, and generates the first request of each. The wall
    /// clock at the start is given in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// The index of a stream whose trace file cannot be read, with the cause.
    pub fn new(
        streams: &[Arc<TrafficStream>],
        seed: u64,
        start_ms: u64,
    ) -> Result<Self, (usize, TraceError)> {
        let mut classes: Vec<String> = Vec::new();
        let mut states = Vec::new();
        for (index, stream) in streams.iter().enumerate() {
            // Several streams may belong to the same class.
            let class =
                classes.iter().position(|class| *class == stream.class).unwrap_or_else(|| {
                    classes.push(stream.class.clone());
                    classes.len() - 1
                });
            let class = ClassId(u16::try_from(class).unwrap_or(u16::MAX));
            let mut state = StreamState::new(stream, index as u64, class, seed, start_ms);
            state.advance().map_err(|error| (index, error))?;
            states.push(state);
        }
        Ok(Self { classes, streams: states, error: None })
    }

    /// Returns the error that ended the traffic early, if a trace file could not be read further.
    pub fn error(&self) -> Option<&TraceError> {
        self.error.as_ref()
    }

    /// Returns what the trace files do not say of the requests so far, and what was used instead.
    pub fn warnings(&self) -> Vec<String> {
        let streams = self.streams.iter().enumerate();
        streams.flat_map(|(index, stream)| stream.warnings(index)).collect()
    }
}

impl Traffic for Arrivals {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn next(&mut self) -> Option<SimRequest> {
        if self.error.is_some() {
            return None;
        }
        let has_next = |stream: &&mut StreamState| stream.next.is_some();
        // A linear search, because there are few streams. At the same time, the first one wins.
        let stream = self
            .streams
            .iter_mut()
            .filter(has_next)
            .min_by_key(|stream| stream.next.as_ref().map(|request| request.at))?;
        let request = stream.next.take();
        self.error = stream.advance().err();
        request
    }

    fn follow_up(&mut self, request: &SimRequest, ended_at: Duration) -> Option<SimRequest> {
        let stream = usize::try_from(request.session >> STREAM_SHIFT).ok()?;
        self.streams.get_mut(stream)?.follow_up(request, ended_at)
    }
}

impl StreamState {
    fn new(
        stream: &Arc<TrafficStream>,
        index: u64,
        class: ClassId,
        seed: u64,
        start_ms: u64,
    ) -> Self {
        let name = format!("traffic {index} {}", stream.class);
        let times = |process| ArrivalTimes::new(process, seed, &name, stream.from, start_ms);
        let source = match &stream.source {
            TrafficSource::Open(process) => SourceState::Open(times(process)),
            TrafficSource::Sessions(sessions) => SourceState::Sessions(times(&sessions.arrivals)),
            TrafficSource::Trace(trace) => match &trace.arrivals {
                Some(process) => SourceState::Conversations {
                    times: times(process),
                    conversations: Conversations::open(&trace.file),
                    remaining: BTreeMap::new(),
                },
                None => SourceState::Rows {
                    rows: SortedRows::new(rows(trace)),
                    from: stream.from,
                    speed: trace.speed,
                    first: None,
                    last: stream.from,
                },
            },
        };
        let first_session = index << STREAM_SHIFT;
        let generator = RequestGenerator::new(Arc::clone(stream), first_session, class, seed, name);
        Self { generator, source, until: stream.until, count: 0, next: None }
    }

    /// Generates the next request, if there is one.
    fn advance(&mut self) -> Result<(), TraceError> {
        self.next = self.generate()?.filter(|request| request.at < self.until);
        self.count += 1;
        Ok(())
    }

    fn generate(&mut self) -> Result<Option<SimRequest>, TraceError> {
        if self.generator.limit().is_some_and(|limit| self.count >= limit) {
            return Ok(None);
        }
        match &mut self.source {
            SourceState::Open(times) => Ok(Some(self.generator.single(times.next(), self.count))),
            SourceState::Sessions(times) => {
                Ok(Some(self.generator.first_turn(times.next(), self.count)))
            }
            SourceState::Rows { rows, from, speed, first, last } => {
                let Some(row) = rows.next().transpose()? else { return Ok(None) };
                // Saturating, because a damaged file may contain any number.
                let elapsed = row.at.saturating_sub(*first.get_or_insert(row.at)).max(0);
                let at = *from + crate::random::seconds(elapsed as f64 / 1e6 / *speed);
                // A row that was written later than the sort window allows for arrives at once.
                *last = at.max(*last);
                Ok(Some(self.generator.recorded_request(*last, self.count, row)))
            }
            SourceState::Conversations { times, conversations, remaining } => {
                let Some(turns) = conversations.next().transpose()? else { return Ok(None) };
                let mut turns = turns.into_iter();
                let Some(turn) = turns.next() else { return Ok(None) };
                let request = self.generator.conversation_start(times.next(), self.count, turn);
                if turns.len() > 0 {
                    remaining.insert(request.session, turns);
                }
                Ok(Some(request))
            }
        }
    }

    fn warnings(&self, index: usize) -> Vec<String> {
        let rows = match &self.source {
            SourceState::Rows { .. } => self.generator.gaps(),
            SourceState::Conversations { .. } => {
                Gaps { requests: self.count.saturating_sub(1), ..Gaps::default() }
            }
            SourceState::Open(_) | SourceState::Sessions(_) => return Vec::new(),
        };
        if rows.requests == 0 {
            return vec![format!("traffic[{index}]: the file has no requests for this simulation")];
        }
        let gaps = [
            (rows.texts, "text: policies see generated words"),
            (rows.prompts, "prompt length: drawn from `prompt`"),
            (rows.outputs, "response length: drawn from `output`"),
        ];
        let gaps = gaps.into_iter().filter(|(count, _)| *count > 0);
        let all = rows.requests;
        gaps.map(|(count, what)| {
            format!("traffic[{index}]: {count} of {all} requests without {what}")
        })
        .collect()
    }

    fn follow_up(&mut self, request: &SimRequest, ended_at: Duration) -> Option<SimRequest> {
        let next = match &mut self.source {
            SourceState::Open(_) | SourceState::Rows { .. } => None,
            SourceState::Sessions(_) => self.generator.next_turn(request, ended_at),
            SourceState::Conversations { remaining, .. } => {
                let turns = remaining.get_mut(&request.session)?;
                let turn = turns.next();
                if turns.len() == 0 {
                    remaining.remove(&request.session);
                }
                turn.map(|turn| self.generator.next_conversation_turn(request, ended_at, turn))
            }
        };
        next.filter(|next| next.at < self.until)
    }
}

/// Opens a trace file whose rows have times.
fn rows(trace: &TraceFile) -> Box<dyn Iterator<Item = Result<TraceRow, TraceError>>> {
    match trace.format {
        TraceFormat::Azure => Box::new(csv::azure(&trace.file)),
        TraceFormat::BurstGpt => Box::new(csv::burst_gpt(&trace.file)),
        TraceFormat::Records => recorded::rows(&trace.file),
        // Has no times. A scenario without an arrival process for it is rejected.
        TraceFormat::ShareGpt => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests;
