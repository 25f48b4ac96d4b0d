//! `pointsman top` on a terminal: what it shows, its keys, sizes of all kinds, a host that goes
//! away and comes back, and the terminal after it.

use std::path::Path;

use pointsman_tests::host::{Host, program};
use pointsman_tests::terminal::Terminal;
use pointsman_tests::wait_until;
use rustix::process::Signal;

use crate::{FAKE_ENGINE, lane, one_lane};

const SIZE: (u16, u16) = (100, 30);

fn top(socket: &Path, size: (u16, u16)) -> Terminal {
    let program = program(FAKE_ENGINE);
    Terminal::start(&program, &["top", "--socket", socket.to_str().unwrap()], size)
}

fn socket(host: &Host) -> &Path {
    host.admin_socket().unwrap()
}

/// Returns true if the table of lanes has one in this state.
fn has_lane(text: &str, name: &str, state: &str) -> bool {
    let mut rows = text.lines().map(|line| line.trim_start_matches('│').split_whitespace());
    rows.any(|row| row.take(2).eq([name, state]))
}

#[test]
fn keys_command_the_host_and_the_terminal_is_restored() {
    let host = one_lane(&[]);
    let mut top = top(socket(&host), SIZE);
    top.wait_for("the lane is shown", |text| has_lane(text, "a", "ready"));
    assert!(top.is_raw() && !top.is_restored());
    assert!(top.see(|screen| screen.alternate_screen() && screen.hide_cursor()));
    top.type_keys("h");
    top.wait_for("a confirmation is asked for", |text| text.contains("hold lane a?"));
    top.type_keys("n");
    top.wait_for("the question is gone", |text| !text.contains("hold lane a?"));
    assert_eq!(host.lane("a")["state"], "ready");
    top.type_keys("hy");
    top.wait_for("the lane is held", |text| has_lane(text, "a", "down"));
    top.type_keys("\t");
    top.wait_for("the next view is shown", |text| text.contains("WAITS FOR"));
    // Back tab, an arrow, and page down.
    top.type_keys("\x1b[Z\x1b[B\x1b[6~");
    top.wait_for("the view before is shown", |text| has_lane(text, "a", "down"));
    top.type_keys("5");
    top.wait_for("the log is shown", |text| text.contains("action of an operator"));
    top.type_keys("q");
    assert!(top.wait_for_exit().success());
    wait_until("the terminal is restored", || top.is_restored());
}

#[test]
fn the_terminal_is_restored_after_control_c_and_sigterm() {
    let host = one_lane(&[]);
    let mut by_key = top(socket(&host), SIZE);
    by_key.wait_for("the lane is shown", |text| has_lane(text, "a", "ready"));
    by_key.type_keys("\x03");
    assert!(by_key.wait_for_exit().success());
    wait_until("the terminal is restored", || by_key.is_restored());
    let mut by_signal = top(socket(&host), SIZE);
    by_signal.wait_for("the lane is shown", |text| has_lane(text, "a", "ready"));
    by_signal.signal(Signal::TERM);
    by_signal.wait_for_exit();
    wait_until("the terminal is restored", || by_signal.is_restored());
}

/// A key of which only the beginning has arrived blocks crossterm 0.29, as one can that comes
/// together with a new size.
#[test]
fn signals_end_it_while_it_is_blocked_in_a_read_of_the_terminal() {
    let host = one_lane(&[]);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut top = top(socket(&host), SIZE);
        top.wait_for("the lane is shown", |text| has_lane(text, "a", "ready"));
        top.type_keys("\x1b[");
        wait_until("it is blocked", || top.is_reading());
        top.signal(signal);
        assert!(top.wait_for_exit().success());
        wait_until("the terminal is restored", || top.is_restored());
    }
}

#[test]
fn terminals_of_any_size_are_drawn() {
    let host = one_lane(&[]);
    let mut top = top(socket(&host), (60, 20));
    top.wait_for("the lane is shown", |text| has_lane(text, "a", "ready"));
    let has_corner = |columns: u16, rows: u16| {
        // The body ends above the last line.
        move |screen: &vt100::Screen| {
            screen.cell(rows - 2, columns - 1).is_some_and(|cell| cell.contents() == "┘")
        }
    };
    for size @ (columns, rows) in [(140, 40), (1, 1), (50, 12), (3, 2), (200, 3), (2, 60), (80, 24)]
    {
        top.resize(size);
        for view in ["1", "2", "3", "4", "5", "6", "1"] {
            top.type_keys(view);
        }
        if columns >= 50 && rows >= 12 {
            let what = format!("{columns} columns and {rows} rows are used");
            wait_until(&what, || top.see(has_corner(columns, rows)));
            top.wait_for(&what, |text| has_lane(text, "a", "ready"));
        }
    }
    assert!(top.end_with("q").success());
    wait_until("the terminal is restored", || top.is_restored());
}

#[test]
fn a_host_that_goes_away_is_shown_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        format!("[state]\ndir = \"state\"\norphan-grace = \"0s\"\n{}", lane("a", &["a"], &[]));
    let program = program(FAKE_ENGINE);
    let mut host = Host::start_in(&program, dir, &config, &[]).wait_until_ready();
    let mut top = top(socket(&host), SIZE);
    top.wait_for("the lane is shown", |text| has_lane(text, "a", "ready"));
    host.signal(Signal::TERM);
    host.wait_for_exit();
    top.wait_for("the loss is shown", |text| text.contains("not connected"));
    assert!(has_lane(&top.text(), "a", "ready"), "what was known last stays");
    let again = Host::start_in(&program, host.into_dir(), &config, &[]).wait_until_ready();
    top.wait_for("it is connected again", |text| !text.contains("not connected"));
    again.signal(Signal::TERM);
    top.type_keys("q");
    assert!(top.wait_for_exit().success());
    wait_until("the terminal is restored", || top.is_restored());
}

#[test]
fn a_host_that_is_not_there_is_an_error_and_leaves_the_terminal_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut top = top(&dir.path().join("missing.sock"), SIZE);
    assert_eq!(top.wait_for_exit().code(), Some(1));
    wait_until("the terminal is restored", || top.is_restored());
    top.wait_for("the error is shown", |text| text.contains("missing.sock"));
}
