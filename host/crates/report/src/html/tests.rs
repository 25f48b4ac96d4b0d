use std::collections::BTreeSet;

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use std::time::Duration;

use pointsman_domain::{EngineKind, EngineState, LaneId, RequestResult};

use super::*;
use crate::collector::Collector;
use crate::objective::Objective;
use crate::sweep::{Point, Sweep};
use crate::testing::{TestRequest, at, day, lane, live, small};

/// Returns a report of days with turns of different lengths.
fn day(names: &[(&str, f64)], seeds: u64, hours: f64) -> Report {
    let objectives = [
        "interactive.wait.p99 < 15m",
        "batch.wait.p50 < 30m",
        "switches_per_hour < 3",
        "lost == 0",
    ];
    let objectives = objectives.map(|text| Objective::parse(text).unwrap());
    let variant = |(name, turn): &(&str, f64)| {
        let runs = (1..=seeds).map(|seed| day::run(seed, *turn, hours, 600.0)).collect();
        VariantReport::new(*name, runs, &objectives)
    };
    Report {
        title: "A day of Cortex".to_owned(),
        scenario: "Three lanes, two of which take turns on one GPU.\nUsers, agents and batch work."
            .to_owned(),
        variants: names.iter().map(variant).collect(),
        sweep: None,
    }
}

/// Returns the names of all elements and attributes, and all text. Panics if the page is not
/// well-formed as XML, but for `meta`, which has no end tag in HTML.
fn read(page: &str) -> (BTreeSet<String>, String) {
    let mut parts = page.split("<meta ");
    let mut xml = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| xml += &format!("<meta {}", part.replacen('>', "/>", 1)));
    let mut reader = Reader::from_str(&xml);
    reader.config_mut().check_end_names = true;
    let (mut names, mut text, mut depth) = (BTreeSet::new(), String::new(), 0);
    loop {
        match reader
            .read_event()
            .unwrap_or_else(|error| panic!("{error} at {}", reader.buffer_position()))
        {
            Event::Start(element) => {
                depth += 1;
                element_of(&element, &mut names, &mut text);
            }
            Event::Empty(element) => element_of(&element, &mut names, &mut text),
            Event::End(_) => depth -= 1,
            Event::Text(some) => text.push_str(&some),
            Event::GeneralRef(some) => {
                let some: &str = &some;
                let known = [("lt", "<"), ("gt", ">"), ("amp", "&"), ("quot", "\"")];
                text.push_str(
                    known
                        .iter()
                        .find(|(name, _)| *name == some)
                        .unwrap_or_else(|| panic!("&{some};"))
                        .1,
                );
            }
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0, "unclosed element");
    (names, text)
}

fn element_of(element: &BytesStart<'_>, names: &mut BTreeSet<String>, text: &mut String) {
    names.insert(element.name().as_ref().to_owned());
    for attribute in element.attributes() {
        let attribute = attribute.unwrap();
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).unwrap();
        text.push_str(&value);
        assert!(!value.contains("NaN") && !value.contains("inf "), "{value}");
        names.insert(format!("@{}", attribute.key.as_ref()));
    }
    text.push('\n');
}

/// Elements that a page may contain: none that runs scripts or loads anything.
const ELEMENTS: [&str; 39] = [
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "section",
    "h1",
    "h2",
    "p",
    "ul",
    "li",
    "span",
    "strong",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "figure",
    "svg",
    "text",
    "line",
    "rect",
    "circle",
    "path",
    "@lang",
    "@charset",
    "@name",
    "@content",
    "@class",
    "@role",
    "@aria-label",
];
const SHAPES: [&str; 24] = [
    "@viewBox",
    "@x",
    "@y",
    "@x1",
    "@y1",
    "@x2",
    "@y2",
    "@cx",
    "@cy",
    "@r",
    "@d",
    "@width",
    "@height",
    "@text-anchor",
    "@scope",
    "@colspan",
    "@open",
    "@xmlns",
    "svg",
    "style",
    "rect",
    "title",
    "text",
    "path",
];

fn check(page: &str) -> String {
    let (names, text) = read(page);
    for name in names {
        assert!(ELEMENTS.contains(&name.as_str()) || SHAPES.contains(&name.as_str()), "{name}");
    }
    assert!(!page.contains("url(") && !page.contains("@import"));
    text
}

#[test]
fn page_is_well_formed_and_complete() {
    let mut report = day(&[("as it stands", 1800.0), ("short turns", 600.0)], 2, 6.0);
    report.sweep = Some(sweep());
    let page = report.html();
    let text = check(&page);
    let plots = report.plots();
    for plot in &plots {
        assert!(page.contains(&plot.drawing.inline().0), "{}", plot.name);
    }
    let has_plot = |name: String| plots.iter().any(|plot| plot.name == name);
    for class in day::CLASSES {
        assert!(text.contains(&format!("class {class}")), "{class}");
        for plot in ["wait", "first-byte", "wait-over-time"] {
            assert!(has_plot(format!("{plot}-{class}")), "{plot}-{class}");
        }
    }
    for lane in day::LANES {
        assert!(text.contains(&format!("lane {lane}")), "{lane}");
        assert!(has_plot(format!("queue-{lane}")) || lane == "cloud", "{lane}");
    }
    for plot in ["engines-short-turns", "failures-short-turns", "tenants"] {
        assert!(has_plot(plot.to_owned()), "{plot}");
    }
    for class in ["good", "bad"] {
        assert!(page.contains(&format!("<span class=\"{class}\">")), "{class}");
    }
    for value in [
        "interactive.wait.p99 < 15m",
        "cortex@0.3.0+9f6cf3c7",
        "the tenant has used up its quota",
        "fleet.switching.min-residency = 600s",
        "45.0 s, 00:00:00 to 00:00:45",
    ] {
        assert!(text.contains(value), "{value}");
    }
    assert_eq!(page, report.html(), "equal runs give equal pages");
    assert!(
        report.text().contains("fleet.switching.min-residency")
            && report.text().contains("short turns")
    );
    let json = report.json();
    assert_eq!(json["sweep"]["points"][0]["runs"][0]["classes"][2]["name"], "batch");
    assert_eq!(json["variants"][1]["objectives"][0]["met"], true);
}

fn sweep() -> Sweep {
    let point = |(turn, value): (f64, &str)| Point {
        line: "cortex".to_owned(),
        value: value.to_owned(),
        number: Some(turn),
        runs: (1..3).map(|seed| day::run(seed, turn, 2.0, 300.0).summary).collect(),
    };
    let points = [(600.0, "600s"), (300.0, "300s")].map(point).to_vec();
    Sweep { parameter: "fleet.switching.min-residency".to_owned(), points }
}

#[test]
fn plots_are_available_as_files_with_fixed_colors() {
    let report = day(&[("as it stands", 1800.0)], 1, 6.0);
    let plots = report.plots();
    let names: Vec<&str> = plots.iter().map(|plot| plot.name.as_str()).collect();
    let expected = [
        "wait",
        "first-byte",
        "arrivals",
        "wait-over-time",
        "queue",
        "failures-as-it-stands",
        "engines-as-it-stands",
        "tenants",
    ];
    assert_eq!(names, expected);
    for plot in &plots {
        let svg = plot.svg();
        let text = check(&svg);
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""), "{}", plot.name);
        assert!(!svg.contains("var(") && svg.contains("#0072b2"), "{}", plot.name);
        assert!(svg.contains("role=\"img\" aria-label=\""), "{}", plot.name);
        let lines =
            if plot.name.starts_with("engines") { &day::LANES[..] } else { &day::CLASSES[..] };
        if ["wait", "first-byte", "arrivals", "engines-as-it-stands"].contains(&plot.name.as_str())
        {
            assert!(lines.iter().all(|name| text.contains(name)), "{}", plot.name);
        }
    }
}

#[test]
fn names_are_escaped() {
    const HOSTILE: &str = "<script>alert(\"x\")</script>&amp;'\u{1b}]0;\u{0}\u{ffff}--><style>";
    let lanes = [lane(0, HOSTILE, EngineKind::Vllm), lane(1, "b", EngineKind::Vllm)];
    let run = || {
        let mut to = Collector::new(&lanes, &[HOSTILE.to_owned()]);
        to.engine(at(1.0), LaneId(0), EngineState::Ready);
        to.load(at(2.0), LaneId(0), 3, 1);
        for tenant in [HOSTILE, "b"] {
            let request = TestRequest::new(1.0, 0, tenant);
            live(&mut to, &request, 0, RequestResult::Answered, [1.0, 2.0, 3.0]);
            live(&mut to, &request, 0, RequestResult::FellBack, [1.0, 2.0, 3.0]);
            to.ended(&request.failed(9.0, HOSTILE));
        }
        to.finish(1, 6, at(10.0))
    };
    let objective =
        Objective::parse("lane.<x.wait.p99 < 1s").or(Objective::parse("lost == 0")).unwrap();
    let point = Point {
        line: HOSTILE.to_owned(),
        value: HOSTILE.to_owned(),
        number: None,
        runs: vec![run().summary],
    };
    let report = Report {
        title: HOSTILE.to_owned(),
        scenario: HOSTILE.to_owned(),
        variants: [HOSTILE, "b"]
            .map(|name| VariantReport::new(name, vec![run()], std::slice::from_ref(&objective)))
            .to_vec(),
        sweep: Some(Sweep { parameter: HOSTILE.to_owned(), points: vec![point] }),
    };
    let seen = "<script>alert(\"x\")</script>&amp;' ]0;  --><style>";
    assert!(check(&report.html()).contains(seen));
    for plot in report.plots() {
        check(&plot.svg());
        assert!(plot.name.chars().all(|c| c.is_alphanumeric() || c == '-'), "{}", plot.name);
    }
    assert!(!report.text().contains(|c: char| c.is_control() && c != '\n'));
}

#[test]
fn empty_reports_can_be_rendered() {
    let nothing = Report {
        title: "Nothing".to_owned(),
        scenario: String::new(),
        variants: Vec::new(),
        sweep: None,
    };
    check(&nothing.html());
    assert_eq!(nothing.text(), "Nothing\n");
    let idle = VariantReport::new("idle", vec![small().finish(1, 0, Duration::ZERO)], &[]);
    let report = Report {
        variants: vec![idle.clone(), VariantReport::new("no runs", Vec::new(), &[])],
        ..nothing
    };
    check(&report.html());
    assert!(report.text().contains("idle"));
    let standalone = Report { variants: vec![idle], ..report };
    check(&standalone.html());
}
