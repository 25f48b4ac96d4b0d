//! Conversations with three lanes of a real model that take turns: the time to the first token
//! after each switch, with and without what is saved of conversations, and whether the answers are
//! the same.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use pointsman_xtask::command::target_dir;
use pointsman_xtask::setup;

use super::server::{free_port, start};
use super::waiting::metric;

const LANES: [&str; 3] = ["orchestrator", "coder", "super_reader"];
/// Turns of each conversation, unless `POINTSMAN_BENCH_TURNS` is set.
const TURNS: usize = 10;
/// Words of the document with which each conversation begins: about 1,700 tokens.
const DOCUMENT_WORDS: usize = 700;
const MAX_TOKENS: usize = 16;
/// The longest time to the first token that is waited for.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The answers and the times to the first token of all turns, in their order.
struct Answers {
    texts: Vec<String>,
    firsts: Vec<Duration>,
    restored_tokens: f64,
    restore_seconds: f64,
}

/// Runs the benchmark and prints the results.
pub(super) fn switch(root: &Path) -> Result<()> {
    let turns = std::env::var("POINTSMAN_BENCH_TURNS").ok().and_then(|turns| turns.parse().ok());
    let turns = turns.unwrap_or(TURNS).max(2);
    let without = converse(root, turns, None)?;
    let with = converse(root, turns, Some(&without.texts))?;
    println!(
        "{:<22}{:>12}{:>12}{:>12}{:>18}",
        "time to first token", "first turn", "median", "maximum", "tokens restored"
    );
    // The first turn of a conversation has nothing that could be restored.
    let later = |answers: &Answers| {
        let mut firsts = answers.firsts[LANES.len()..].to_vec();
        firsts.sort();
        firsts
    };
    for (name, answers) in [("without", &without), ("with conversations", &with)] {
        let firsts = later(answers);
        println!(
            "{name:<22}{:>10.2} s{:>10.2} s{:>10.2} s{:>18}",
            answers.firsts[0].as_secs_f64(),
            firsts[firsts.len() / 2].as_secs_f64(),
            firsts[firsts.len() - 1].as_secs_f64(),
            answers.restored_tokens
        );
    }
    let median = |answers: &Answers| later(answers)[(turns - 1) * LANES.len() / 2].as_secs_f64();
    println!(
        "after a switch: {:.1} times shorter; a restore took {:.0} ms on average",
        median(&without) / median(&with),
        with.restore_seconds * 1e3
    );
    let same = without.texts.iter().zip(&with.texts).filter(|(left, right)| left == right).count();
    println!("greedy answers that are the same: {same} of {}", without.texts.len());
    Ok(())
}

/// Runs all conversations with a new host. With a `history`, conversations are saved and restored,
/// and go on with its answers instead of their own, so that the prompts are the same.
fn converse(root: &Path, turns: usize, history: Option<&[String]>) -> Result<Answers> {
    let folder = target_dir()?.join("bench").join("switch");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let file = folder.join("switch.toml");
    fs::write(&file, config(root, &folder, history.is_some()))?;
    let venv = setup::venv(false)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let port = free_port()?;
    let mut command = Command::new(program()?);
    command.arg("serve").arg(&file).args(["--listen", &format!("127.0.0.1:{port}")]);
    command.env("PATH", format!("{}:{path}", venv.join("bin").display()));
    let server = start("pointsman", &mut command, port, false)?;
    let mut conversations = vec![Vec::new(); LANES.len()];
    let (mut texts, mut firsts) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        for (lane, messages) in LANES.iter().zip(&mut conversations) {
            messages.push(("user", question(lane, turn)));
            let (text, first) = ask(port, lane, messages)?;
            let answer = history.and_then(|history| history.get(texts.len())).unwrap_or(&text);
            messages.push(("assistant", answer.clone()));
            firsts.push(first);
            texts.push(text);
        }
    }
    let restored = |lane: &str, name: &str| {
        metric(port, &format!("pointsman_conversation_{name}{{lane=\"{lane}\"}}")).unwrap_or(0.0)
    };
    let sum = |name: &str| LANES.iter().map(|lane| restored(lane, name)).sum::<f64>();
    let restore_seconds = sum("restore_seconds_sum") / sum("restore_seconds_count").max(1.0);
    let restored_tokens = sum("restored_tokens_total");
    drop(server);
    Ok(Answers { texts, firsts, restored_tokens, restore_seconds })
}

/// Returns the program under test: that in `POINTSMAN_PROGRAM`, or the release build.
fn program() -> Result<std::path::PathBuf> {
    match std::env::var_os("POINTSMAN_PROGRAM") {
        Some(program) => Ok(program.into()),
        None => Ok(super::programs()?.join("pointsman")),
    }
}

fn config(root: &Path, folder: &Path, enabled: bool) -> String {
    let script = root.join("examples/llama_engine.py");
    let lane = |name: &&str| {
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"cpu\"\nmemory = \"1GiB\"\nslots = 1\n\
             [lanes.engine]\ndriver = \"llama-cpp\"\n\
             command = [\"python3\", {script:?}, \"--port\", \"{{port}}\", \"--alias\", \
             \"{{lane}}\", \"--slots\", \"1\", \"--context\", \"8192\", \"--slot-save-path\", \
             \"{{conversations}}\"]\n"
        )
    };
    let lanes: String = LANES.iter().map(lane).collect();
    format!(
        "server = {{ deadline = \"10m\" }}\n\
         switching = {{ min-residency = 0.0, linger = \"0s\" }}\nqueue = {{ max-wait = \"5m\" }}\n\
         [log]\nlevel = \"warn\"\n[state]\ndir = {:?}\n[conversations]\nenabled = {enabled}\n\
         [[groups]]\nname = \"cpu\"\nmemory = \"1GiB\"\n{lanes}",
        folder.join("state")
    )
}

/// Returns what is asked in a turn, of which the first one has a document.
fn question(lane: &str, turn: usize) -> String {
    if turn > 0 {
        return format!("And what about part {turn}? Answer in one sentence.");
    }
    let words: Vec<String> =
        (0..DOCUMENT_WORDS).map(|word| format!("word{}", word * 7 % 100)).collect();
    format!("A text for {lane}: {}. What is it about?", words.join(" "))
}

/// Sends a turn. Returns the text of the answer, as it is within a JSON literal, and the time to
/// its first token.
fn ask(port: u16, lane: &str, messages: &[(&str, String)]) -> Result<(String, Duration)> {
    let messages: Vec<String> = messages
        .iter()
        .map(|(role, text)| format!("{{\"role\":\"{role}\",\"content\":\"{text}\"}}"))
        .collect();
    let body = format!(
        "{{\"model\":\"{lane}\",\"stream\":true,\"temperature\":0,\"max_tokens\":{MAX_TOKENS},\
         \"messages\":[{}]}}",
        messages.join(",")
    );
    let begun = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("failed to connect")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Without chunks, so that each event is a line.
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.0\r\nhost: localhost\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let (mut text, mut first, mut is_complete) = (String::new(), None, false);
    for line in BufReader::new(stream).lines() {
        let line = line?;
        is_complete |= line == "data: [DONE]";
        let piece = content(&line);
        if !piece.is_empty() {
            first.get_or_insert_with(|| begun.elapsed());
            text.push_str(piece);
        }
    }
    ensure!(is_complete, "{lane}: the response is not complete: {text}");
    Ok((text, first.with_context(|| format!("{lane}: the response is empty"))?))
}

/// Returns the text of an event, as it is within its JSON literal.
fn content(line: &str) -> &str {
    let Some((_, rest)) = line.split_once("\"content\":\"") else { return "" };
    let mut is_escaped = false;
    let end = rest.find(|character| {
        let ends = character == '"' && !is_escaped;
        is_escaped = character == '\\' && !is_escaped;
        ends
    });
    &rest[..end.unwrap_or(0)]
}
