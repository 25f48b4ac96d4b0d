//! `pointsman top`: what a running host does, in the terminal, as it changes.

mod feed;
mod hosts;
mod keys;
mod model;
mod signals;
mod view;

use std::io::IsTerminal as _;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http::Method;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::{execute, terminal};

use self::feed::Update;
use self::keys::Command;
use self::model::Model;
use self::signals::StopFlag;
use crate::cli::top::Top;
use crate::output;
use crate::policy::HostClient;

/// How long a key is waited for before updates are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often ages are drawn anew while nothing changes.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time for the first state with `--once`.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of a frame with `--once` if standard output is not a terminal.
const DEFAULT_SIZE: (u16, u16) = (120, 40);

/// Shows a running host until the user quits.
///
/// # Errors
/// If the host is not reachable, or standard output is not a terminal.
pub(crate) fn top(options: &Top) -> Result<()> {
    let client = || HostClient::new(&options.target);
    let updates = feed::follow(client()?)?;
    if options.once {
        return once(&updates);
    }
    if !std::io::stdout().is_terminal() {
        bail!("standard output is not a terminal; use --once to print one frame");
    }
    let client = client()?;
    let stop = signals::watch(restore)?;
    let mut terminal = ratatui::try_init().context("failed to set up the terminal")?;
    let result = run(&mut terminal, &updates, &client, &stop);
    drop(terminal);
    restore();
    result
}

/// Restores the modes of the terminal, its screen and its cursor.
fn restore() {
    ratatui::restore();
    // Fails if the terminal is gone.
    execute!(std::io::stdout(), Show).ok();
}

fn run(
    terminal: &mut ratatui::DefaultTerminal,
    updates: &Receiver<Update>,
    client: &HostClient,
    stop: &StopFlag,
) -> Result<()> {
    let mut model = Model::default();
    let (mut is_changed, mut drawn) = (true, Instant::now());
    loop {
        is_changed |= take_updates(&mut model, updates)?;
        if stop.is_set() {
            return Ok(());
        }
        if is_changed || drawn.elapsed() >= REDRAW_INTERVAL {
            terminal.draw(|frame| view::draw(frame, &model)).context("failed to draw")?;
            (is_changed, drawn) = (false, Instant::now());
        }
        if !event::poll(POLL_INTERVAL).context("failed to read the terminal")? {
            continue;
        }
        is_changed = true;
        if let Event::Key(key) = event::read().context("failed to read the terminal")? {
            match keys::on_key(&mut model, key) {
                None => {}
                Some(Command::Quit) => return Ok(()),
                Some(Command::Send { method, path, label }) => {
                    model.message = match send(client, method, &path) {
                        Ok(()) => format!("{label}: done"),
                        Err(error) => format!("{label}: {}", output::with_causes(&error)),
                    };
                }
            }
        }
    }
}

/// Takes over what has arrived. Returns true if something has changed.
///
/// # Errors
/// If the host has never been reached.
fn take_updates(model: &mut Model, updates: &Receiver<Update>) -> Result<bool> {
    let mut is_changed = false;
    loop {
        match updates.try_recv() {
            Ok(Update::Failed(error)) if !model.has_state() => return Err(error),
            Ok(update) => model.apply(update),
            Err(TryRecvError::Empty) => return Ok(is_changed),
            Err(TryRecvError::Disconnected) => bail!("the connection to the host has ended"),
        }
        is_changed = true;
    }
}

fn send(client: &HostClient, method: Method, path: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    runtime.block_on(client.call_text(method, path, String::new()))?;
    Ok(())
}

/// Prints one frame as text.
fn once(updates: &Receiver<Update>) -> Result<()> {
    let mut model = Model::default();
    let deadline = Instant::now() + FIRST_TIMEOUT;
    while !model.has_state() {
        let left = deadline.saturating_duration_since(Instant::now());
        match updates.recv_timeout(left).context("the host sent no state in time")? {
            Update::Failed(error) => return Err(error),
            update => model.apply(update),
        }
    }
    let size = std::io::stdout().is_terminal().then(|| terminal::size().ok()).flatten();
    output::print(&frame_text(&model, size.unwrap_or(DEFAULT_SIZE))?)
}

/// Returns a frame as text, without trailing spaces.
fn frame_text(model: &Model, (width, height): (u16, u16)) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).context("failed to draw")?;
    terminal.draw(|frame| view::draw(frame, model)).context("failed to draw")?;
    let buffer = terminal.backend().buffer();
    let line = |y: u16| -> String { (0..width).map(|x| buffer[(x, y)].symbol()).collect() };
    let lines: Vec<String> = (0..height).map(|y| line(y).trim_end().to_owned()).collect();
    Ok(lines.join("\n").trim_end().to_owned() + "\n")
}

#[cfg(test)]
mod tests;
