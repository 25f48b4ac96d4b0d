//! Draws `pointsman top`. What engines and clients have written is drawn without control
//! characters.

use pointsman_report::table::clean;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};
use serde_json::Value;

use super::model::{Model, View};
use crate::other_host::OtherHost;

/// Draws one frame.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let parts = [Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)];
    let [head, body, foot] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(Paragraph::new(tabs(model)), head);
    match model.view {
        View::Lanes => draw_lanes(frame, model, body),
        View::Requests => draw_requests(frame, model, body),
        View::Decisions => draw_decisions(frame, model, body),
        View::Policies => draw_policies(frame, model, body),
        View::Log => draw_log(frame, model, body),
        View::Hosts => draw_hosts(frame, model, body),
    }
    frame.render_widget(Paragraph::new(footer(model)), foot);
}

fn tabs(model: &Model) -> Line<'static> {
    let mut spans = vec![Span::styled("Pointsman ", Modifier::BOLD)];
    for (view, number) in View::ALL.into_iter().zip(1..) {
        let style = match view == model.view {
            true => Style::new().add_modifier(Modifier::REVERSED),
            false => Style::new(),
        };
        spans.push(Span::styled(format!(" {number} {} ", view.title()), style));
    }
    let (lanes, requests) = (model.list("lanes").len(), model.list("requests").len());
    spans.push(Span::raw(format!("  {lanes} lanes, {requests} requests")));
    Line::from(spans)
}

fn footer(model: &Model) -> Line<'static> {
    if let Some(question) = &model.question {
        let text = format!("{}? y: yes, any other key: no", clean(&question.text));
        return Line::styled(text, Color::Yellow);
    }
    if let Some(failure) = &model.failure {
        return Line::styled(format!("not connected: {}", clean(failure)), Color::Red);
    }
    if !model.message.is_empty() {
        return Line::raw(clean(&model.message));
    }
    let keys = match model.view {
        View::Lanes => "l load  u unload  h hold  d drain  r resume",
        View::Requests => "c cancel",
        View::Policies => "p promote  b roll back  d disable  e enable",
        View::Decisions | View::Log | View::Hosts => "↑ ↓ move",
    };
    let lost = if model.lost > 0 { format!("  {} events lost", model.lost) } else { String::new() };
    Line::raw(format!("{keys}  tab view  q quit  {}{lost}", model.text("version")))
}

/// Draws a table with the selected row.
fn draw_table<const N: usize>(
    frame: &mut Frame<'_>,
    (title, area): (&'static str, Rect),
    selected: usize,
    columns: [(&'static str, Constraint); N],
    rows: Vec<[String; N]>,
) {
    let head = Row::new(columns.map(|(name, _)| name)).style(Modifier::BOLD);
    let is_empty = rows.is_empty();
    let rows = rows.into_iter().map(|row| {
        let color = color(&row);
        Row::new(row.map(Cell::from)).style(color.map_or(Style::new(), Style::from))
    });
    let table = Table::new(rows, columns.map(|(_, width)| width))
        .header(head)
        .block(Block::bordered().title(title))
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected((!is_empty).then_some(selected));
    frame.render_stateful_widget(table, area, &mut state);
}

/// Returns the color of a row, by the state that it shows.
fn color(row: &[String]) -> Option<Color> {
    row.iter().take(3).find_map(|cell| match cell.as_str() {
        "ready" | "active" | "live" | "up" => Some(Color::Green),
        "starting" | "draining" | "degraded" | "queued" => Some(Color::Yellow),
        "down" | "failed" | "breaker-open" => Some(Color::Red),
        "unloaded" | "disabled" => Some(Color::DarkGray),
        _ => None,
    })
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), pointsman_fleet::format_size)
}

fn seconds(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

fn draw_lanes(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let groups = model.list("groups");
    let height = u16::try_from(groups.len()).unwrap_or(u16::MAX).saturating_add(3).min(8);
    let height = if groups.is_empty() { 0 } else { height };
    let [top, bottom] =
        Layout::vertical([Constraint::Min(4), Constraint::Length(height)]).areas(area);
    let rows = model.list("lanes").iter().map(|lane| {
        let detail = ["progress", "problem"].into_iter().find(|name| !lane[*name].is_null());
        let by_hand = lane["manual"]["mode"].as_str().map(|mode| format!("by hand: {mode}"));
        let host = || OtherHost::read(&lane["host"]).map(|host| format!("at {}", host.name()));
        let detail = detail.map(|name| text(&lane[name])).or(by_hand).or_else(host);
        let detail = detail.unwrap_or_default();
        [
            text(&lane["name"]),
            text(&lane["state"]),
            format!("{}/{}", text(&lane["running"]), text(&lane["slots"])),
            text(&lane["queued"]),
            size(&lane["memory"]["need_bytes"]),
            detail,
        ]
    });
    let columns = [
        ("LANE", Constraint::Fill(2)),
        ("STATE", Constraint::Length(9)),
        ("SLOTS", Constraint::Length(7)),
        ("QUEUED", Constraint::Length(6)),
        ("MEMORY", Constraint::Length(10)),
        ("WHAT", Constraint::Fill(3)),
    ];
    draw_table(frame, ("Lanes", top), model.selected, columns, rows.collect());
    if height > 0 {
        let rows = groups.iter().map(|group| {
            let lanes = group["lanes"].as_array().into_iter().flatten().map(text);
            let lanes = lanes.collect::<Vec<_>>().join(", ");
            let held =
                format!("{} of {}", size(&group["reserved_bytes"]), size(&group["budget_bytes"]));
            [text(&group["name"]), held, lanes]
        });
        let columns = [
            ("GROUP", Constraint::Length(16)),
            ("MEMORY", Constraint::Length(24)),
            ("LANES", Constraint::Fill(1)),
        ];
        draw_table(frame, ("Groups", bottom), usize::MAX, columns, rows.collect());
    }
}

fn draw_requests(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let rows = model.requests().into_iter().map(|request| {
        let state = match request["position"].as_u64() {
            Some(position) => format!("queued {position}"),
            None => text(&request["state"]),
        };
        [
            state,
            text(&request["lane"]),
            text(&request["model"]),
            text(&request["tenant"]),
            seconds(Model::age_ms(request["arrived_unix_ms"].as_u64())),
            text(&request["tokens"]),
            request["why"].as_str().map(clean).unwrap_or_default(),
            text(&request["id"]),
        ]
    });
    let columns = [
        ("STATE", Constraint::Length(11)),
        ("LANE", Constraint::Fill(1)),
        ("MODEL", Constraint::Fill(1)),
        ("TENANT", Constraint::Length(10)),
        ("AGE", Constraint::Length(11)),
        ("TOKENS", Constraint::Length(7)),
        ("WAITS FOR", Constraint::Length(22)),
        ("ID", Constraint::Fill(1)),
    ];
    draw_table(frame, ("Requests", area), model.selected, columns, rows.collect());
}

fn draw_decisions(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let rows = model.decisions.iter().map(|decision| {
        [
            text(&decision["outcome"]),
            text(&decision["status"]),
            text(&decision["model"]),
            text(&decision["lane"]),
            decision["duration_ms"].as_u64().map_or_else(|| "-".to_owned(), seconds),
            text(&decision["reason"]),
            text(&decision["decided_by"]),
            text(&decision["id"]),
        ]
    });
    let columns = [
        ("OUTCOME", Constraint::Length(10)),
        ("STATUS", Constraint::Length(6)),
        ("MODEL", Constraint::Fill(1)),
        ("LANE", Constraint::Fill(1)),
        ("DURATION", Constraint::Length(11)),
        ("REASON", Constraint::Fill(2)),
        ("DECIDED BY", Constraint::Length(12)),
        ("ID", Constraint::Fill(1)),
    ];
    draw_table(frame, ("Decisions", area), model.selected, columns, rows.collect());
}

fn draw_policies(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let rows = model.list("policies").iter().map(|policy| {
        let candidate = &policy["candidate"];
        let candidate = match candidate.is_null() {
            true => "-".to_owned(),
            false => format!("{} ({})", text(&candidate["version"]), text(&candidate["mode"])),
        };
        [
            text(&policy["name"]),
            text(&policy["state"]),
            text(&policy["version"]),
            text(&policy["calls"]),
            text(&policy["faults"]),
            candidate,
        ]
    });
    let columns = [
        ("POLICY", Constraint::Fill(1)),
        ("STATE", Constraint::Length(12)),
        ("VERSION", Constraint::Fill(1)),
        ("CALLS", Constraint::Length(9)),
        ("FAULTS", Constraint::Length(7)),
        ("CANDIDATE", Constraint::Fill(2)),
    ];
    draw_table(frame, ("Policies", area), model.selected, columns, rows.collect());
}

fn draw_hosts(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let columns = [
        ("WHAT", Constraint::Length(6)),
        ("NAME", Constraint::Fill(1)),
        ("STATE", Constraint::Length(10)),
        ("DETAILS", Constraint::Fill(4)),
    ];
    draw_table(frame, ("Hosts", area), model.selected, columns, model.hosts());
}

fn draw_log(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let visible = usize::from(area.height.saturating_sub(2));
    let begin = model.log.len().saturating_sub(visible);
    let lines = model.log.iter().skip(begin).map(|line| {
        let fields = line["fields"].as_object().into_iter().flatten();
        let fields = fields.map(|(name, value)| format!(" {}={}", clean(name), text(value)));
        let level = text(&line["level"]);
        let color = match level.as_str() {
            "ERROR" => Color::Red,
            "WARN" => Color::Yellow,
            _ => Color::Reset,
        };
        let fields = fields.collect::<String>();
        Line::styled(format!("{level:>5} {}{fields}", text(&line["message"])), color)
    });
    let lines: Vec<Line<'_>> = lines.collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Log")), area);
}
