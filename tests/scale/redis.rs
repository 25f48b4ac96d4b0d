//! Real Redis servers, Sentinels and clusters on loopback.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pointsman_tests::host::send_signal;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use tempfile::TempDir;

/// A server without persistence: what a restart keeps is nothing.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) port: u16,
    arguments: Vec<String>,
    dir: TempDir,
    child: Option<Child>,
}

/// Returns a port on which nothing listens now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Redis {
    /// Prepares a server, which [`Redis::start`] starts.
    pub(crate) fn prepare(arguments: &[&str]) -> Self {
        // A cluster has a second port, 10,000 above the first one.
        let fits = |port: &u16| *port < 55_000;
        let port = std::iter::repeat_with(free_port).find(fits).unwrap();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self { port, arguments, dir: tempfile::tempdir().unwrap(), child: None }
    }

    /// Starts a server and waits until it replies.
    pub(crate) fn run(arguments: &[&str]) -> Self {
        let mut server = Self::prepare(arguments);
        server.start();
        server
    }

    pub(crate) fn start(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(self.dir.path());
        self.spawn(command.args(&self.arguments));
    }

    /// Starts a Sentinel for this master, which fails over after half a second.
    pub(crate) fn sentinel(master: &Self) -> Self {
        let mut server = Self::prepare(&[]);
        let file = server.dir.path().join("sentinel.conf");
        let text = format!(
            "port {}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
            server.port, master.port
        );
        fs::write(&file, text).unwrap();
        server.spawn(Command::new("redis-sentinel").arg(&file));
        server
    }

    fn spawn(&mut self, command: &mut Command) {
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).spawn();
        self.child = Some(child.unwrap());
        wait_until("the store replies", || self.try_command(&["PING"]).is_some());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs a command and returns the first line of the reply.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap()
    }

    pub(crate) fn try_command(&self, words: &[&str]) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut text = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| text.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        stream.write_all(text.as_bytes()).ok()?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some(length) = line.trim().strip_prefix('$').and_then(|length| length.parse().ok())
        else {
            return Some(line.trim().to_owned()).filter(|line| !line.is_empty());
        };
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.child.as_ref().unwrap().id(), signal);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Returns three masters that are a cluster.
pub(crate) fn cluster() -> Vec<Redis> {
    let settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let nodes: Vec<Redis> = (0..3).map(|_| Redis::run(&settings)).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]);
    create.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
    let output = create.args(["--cluster-replicas", "0", "--cluster-yes"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    wait_until("all nodes know all slots", || {
        let is_ok = |node: &Redis| node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        nodes.iter().all(is_ok)
    });
    nodes
}
