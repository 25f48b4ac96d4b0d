//! What the access log and traces cost: instructions and CPU time per request without them, with an
//! access log in a file, and with a trace of every request as well.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use pointsman_xtask::command::target_dir;

use super::instructions::instructions;
use super::load::{compare, table};
use super::server::{configuration, free_port, host, start};

pub(super) fn telemetry(root: &Path) -> Result<()> {
    let release = super::programs()?;
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    let mut command = Command::new(release.join("fake-engine"));
    let engine = start("direct", command.args(["--bench", "--port"]), free_port()?, true)?;
    let traces = format!("[telemetry]\nendpoint = \"http://127.0.0.1:{}\"\n", collector()?);
    let mut hosts = Vec::new();
    for (name, has_access_log, traces) in
        [("plain", false, ""), ("access log", true, ""), ("access log, traces", true, &traces)]
    {
        let file = configuration(root, &folder, name, traces, engine.port)?;
        if has_access_log {
            let (text, logs) = (fs::read_to_string(&file)?, file.with_extension("logs"));
            let log = format!("level = \"warn\"\ndir = {logs:?}\n");
            fs::write(&file, text.replacen("level = \"warn\"\n", &log, 1))?;
        }
        hosts.push((name, file));
    }
    let loads = [
        ("whole answers", &["--connections", "4", "--seconds", "3"][..]),
        ("streams of 10 chunks", &["--connections", "4", "--seconds", "3", "--stream"]),
    ];
    instructions(&release, &folder, &hosts, &loads)?;
    let mut servers = vec![engine];
    for (name, file) in &hosts {
        servers.push(host(&release, name, file)?);
    }
    for (title, arguments) in [
        ("32 connections, whole answers", &["--connections", "32", "--seconds", "5"][..]),
        ("32 connections, streams of 10 chunks", &["--connections", "32", "--stream"]),
    ] {
        let medians = table(&release, title, arguments, &servers)?;
        compare(&servers[1..], &medians[1..]);
    }
    Ok(())
}

/// Starts a collector that accepts everything, until this program ends. Returns its port.
pub(super) fn collector() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // Errors mean that the host has closed the connection.
            std::thread::spawn(|| accept_all(connection).ok());
        }
    });
    Ok(port)
}

fn accept_all(connection: TcpStream) -> std::io::Result<()> {
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    let mut length = 0;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let header = line.trim_end().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        } else if header.is_empty() {
            std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
            writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            length = 0;
        }
        line.clear();
    }
    Ok(())
}
