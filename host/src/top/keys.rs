//! What keys do in `pointsman top`.

use http::Method;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::model::{Model, Question, View};
use crate::policy::percent_encoded;

/// Rows of a page.
const PAGE: usize = 10;

/// What follows a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Quit,
    /// Send a request to the host.
    Send {
        method: Method,
        path: String,
        label: String,
    },
}

/// Handles a key, and returns what to do.
pub(super) fn on_key(model: &mut Model, key: KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
        return Some(Command::Quit);
    }
    if let Some(Question { text, method, path }) = model.question.take() {
        let is_confirmed = matches!(key.code, KeyCode::Char('y') | KeyCode::Enter);
        let label = text;
        return is_confirmed.then_some(Command::Send { method, path, label });
    }
    model.message.clear();
    let row = model.selected;
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Some(Command::Quit),
        KeyCode::Char(digit @ '1'..='6') => {
            let index = usize::from(digit as u8 - b'1');
            model.show(View::ALL[index]);
        }
        KeyCode::Tab => model.show(neighbour(model.view, 1)),
        KeyCode::BackTab => model.show(neighbour(model.view, View::ALL.len() - 1)),
        KeyCode::Down | KeyCode::Char('j') => model.select(row + 1),
        KeyCode::Up | KeyCode::Char('k') => model.select(row.saturating_sub(1)),
        KeyCode::PageDown => model.select(row + PAGE),
        KeyCode::PageUp => model.select(row.saturating_sub(PAGE)),
        KeyCode::Home => model.select(0),
        KeyCode::End => model.select(usize::MAX),
        KeyCode::Char(letter) => model.question = question(model, letter),
        _ => {}
    }
    None
}

fn neighbour(view: View, step: usize) -> View {
    let index = View::ALL.iter().position(|other| *other == view).unwrap_or_default();
    View::ALL[(index + step) % View::ALL.len()]
}

/// Returns the command of a letter for the selected row; `None` if it has none.
fn question(model: &Model, letter: char) -> Option<Question> {
    let name = |row: Option<&Value>, field: &str| row?[field].as_str().map(str::to_owned);
    let post = |text: String, path: String| Question { text, method: Method::POST, path };
    match model.view {
        View::Lanes => {
            let lane = name(model.list("lanes").get(model.selected), "name")?;
            let (verb, path) = match letter {
                'l' => ("load", "load?wait=false"),
                'u' => ("unload", "unload?wait=false"),
                'h' => ("hold", "unload?wait=false&hold=true"),
                'd' => ("drain", "drain"),
                'r' => ("resume", "drain?undo=true"),
                _ => return None,
            };
            let path = format!("/lanes/{}/{path}", percent_encoded(&lane));
            Some(post(format!("{verb} lane {lane}"), path))
        }
        View::Requests if letter == 'c' => {
            let id = name(model.requests().get(model.selected).copied(), "id")?;
            let path = format!("/requests/{}", percent_encoded(&id));
            Some(Question { text: format!("cancel request {id}"), method: Method::DELETE, path })
        }
        View::Policies => {
            let policy = name(model.list("policies").get(model.selected), "name")?;
            let verb = match letter {
                'p' => "promote",
                'b' => "rollback",
                'd' => "disable",
                'e' => "enable",
                _ => return None,
            };
            let path = format!("/policies/{}/{verb}", percent_encoded(&policy));
            Some(post(format!("{verb} policy {policy}"), path))
        }
        View::Requests | View::Decisions | View::Log | View::Hosts => None,
    }
}
