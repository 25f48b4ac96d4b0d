//! The spans of log events: an engine's events are inside the spans `lane` and `engine`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::drivers::command::Program;
use super::tests::{LIMITS, start_lane};
use super::*;

type Fields = BTreeMap<&'static str, String>;

/// A visitor that formats each field with `Debug`.
struct FieldVisitor<'a>(&'a mut Fields);

impl Visit for FieldVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

/// A span, or an event with the spans around it, outermost first.
#[derive(Debug, Clone, Default)]
struct Collected {
    name: &'static str,
    fields: Fields,
    parents: Vec<(&'static str, Fields)>,
}

thread_local! {
    /// The entered spans of the current thread. Background threads enter spans too.
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// A subscriber that collects events with the fields of their spans.
#[derive(Debug, Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Collected>>>,
    events: Arc<Mutex<Vec<Collected>>>,
}

impl Collector {
    /// Returns the first event with this message.
    fn event(&self, message: &str) -> Option<Collected> {
        let events = self.events.lock();
        events.iter().find(|event| event.fields["message"] == message).cloned()
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("pointsman_fleet")
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut span = Collected { name: attributes.metadata().name(), ..Collected::default() };
        attributes.record(&mut FieldVisitor(&mut span.fields));
        let mut spans = self.spans.lock();
        spans.push(span);
        // Ids start at 1.
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut spans = self.spans.lock();
        let span = &mut spans[id.into_u64() as usize - 1];
        values.record(&mut FieldVisitor(&mut span.fields));
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut collected = Collected::default();
        event.record(&mut FieldVisitor(&mut collected.fields));
        let spans = self.spans.lock();
        collected.parents = ENTERED.with_borrow(|entered| {
            let entered = entered.iter().map(|id| &spans[*id as usize - 1]);
            entered.map(|span| (span.name, span.fields.clone())).collect()
        });
        self.events.lock().push(collected);
    }

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.into_u64()));
    }

    fn exit(&self, _id: &Id) {
        ENTERED.with_borrow_mut(|entered| {
            entered.pop();
        });
    }
}

/// An engine that is started, but never ready.
pub(super) fn sleeping_engine(port: Option<u16>, check_listener: bool) -> EngineSpec {
    let program = Program {
        command_line: CommandLine {
            command: ["sleep", "1000"].map(str::to_owned).to_vec(),
            env: Vec::new(),
        },
        ready_path: "/health".into(),
        reuse_connections: false,
        run: ProcessSpec {
            directory: None,
            port,
            check_listener,
            start_timeout: Duration::from_secs(1000),
            stop_grace: Duration::from_secs(10),
            backoff: engine_spec::NO_BACK_OFF,
        },
    };
    driver::EngineConfig::new(program).into_spec()
}

#[tokio::test]
async fn engine_events_are_inside_the_lane_and_engine_spans() {
    let collector = Collector::default();
    let _default = tracing::subscriber::set_default(collector.clone());
    let (fleet, tasks) = start_lane(sleeping_engine(None, true), Residency::Always, 1, LIMITS);
    // The supervisor logs the start before it waits for anything else.
    let mut status = fleet.statuses.borrow()[0].clone();
    let started = status.wait_for(|status| status.pid.is_some());
    let started = tokio::time::timeout(Duration::from_secs(30), started).await.unwrap();
    let status = started.unwrap().clone();
    let started = collector.event("engine started").unwrap();
    tasks.shutdown().await;
    let stopped = collector.event("engine stopped").unwrap();
    for event in [started, stopped] {
        let [(lane, lane_fields), (engine, engine_fields)] = &event.parents[..] else {
            panic!("{event:?}")
        };
        assert_eq!((*lane, *engine), ("lane", "engine"));
        assert_eq!((&*lane_fields["lane"], &*lane_fields["driver"]), ("a", "command"));
        assert_eq!(engine_fields["start"], "1");
        assert_eq!(engine_fields["pid"], status.pid.unwrap().to_string());
        assert_eq!(engine_fields["port"], status.port.unwrap().to_string());
        assert!(!event.fields.contains_key("lane"), "{event:?}");
    }
}
