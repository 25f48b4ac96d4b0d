//! Machines in network namespaces of their own, whose links are cut in silence: nothing of this
//! machine changes, and all of it disappears with the test.
//!
//! ```text
//!   machine 1: 10.77.0.1 ──┐
//!   machine 2: 10.77.0.2 ──┼── bridge
//!   …                    ──┘
//! ```

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};

/// The address of hardware that no machine has: packets to it are lost.
const NOWHERE: &str = "02:00:00:00:00:ff";

/// A network namespace, which ends with this handle and the processes in it.
#[derive(Debug)]
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let made: nix::Result<File> = made.join().unwrap();
        Self(made.expect("a network namespace; run as root, or with `unshare --map-root-user`"))
    }

    /// Runs `work` in a thread in the namespace, in which the processes that it starts are as well.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Returns a path by which other processes find the namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs the program `ip`.
    fn ip(&self, arguments: &str) {
        let words = arguments.split(' ');
        let output = self.run(|| Command::new("ip").args(words).output());
        let output = output.expect("the program `ip` of the package iproute2");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {error}");
    }
}

/// Machines, numbered from 1.
#[derive(Debug)]
pub(crate) struct Network {
    bridge: Namespace,
    machines: Vec<Namespace>,
}

impl Network {
    /// Creates a network of machines that reach each other.
    ///
    /// # Panics
    /// If namespaces cannot be made: that needs root, or a user namespace.
    pub(crate) fn new(machines: usize) -> Self {
        let bridge = Namespace::new();
        bridge.ip("link add bridge type bridge");
        bridge.ip("link set bridge up");
        let machine = |number: usize| {
            let machine = Namespace::new();
            let (path, hardware) = (machine.path(), hardware(number));
            bridge.ip(&format!(
                "link add port{number} type veth peer name eth0 address {hardware} netns {path}"
            ));
            bridge.ip(&format!("link set port{number} master bridge up"));
            machine.ip("link set lo up");
            machine.ip(&format!("address add {}/24 dev eth0", address(number)));
            machine.ip("link set eth0 up");
            machine
        };
        let machines = (1..=machines).map(machine).collect();
        Self { bridge, machines }
    }

    /// Runs `work` on a machine, with all processes that it starts.
    pub(crate) fn on<T: Send>(&self, machine: usize, work: impl FnOnce() -> T + Send) -> T {
        self.machines[machine - 1].run(work)
    }

    /// Starts something on a machine in a thread, which keeps it until the result is dropped: Envoy
    /// ends with the thread that has started it. Returns what `start` returns beside it.
    pub(crate) fn keep<T, R: Send + 'static>(
        &self,
        machine: usize,
        start: impl FnOnce() -> (T, R) + Send + 'static,
    ) -> Kept<R> {
        let namespace = self.machines[machine - 1].0.try_clone().unwrap();
        let (started, value) = mpsc::channel();
        let (end, is_over) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let (_kept, value) = start();
            started.send(value).unwrap();
            // Fails when the other side is dropped.
            is_over.recv().ok();
        });
        let value = value.recv().expect("the thread has started it");
        Kept { value, end: Some(end), thread: Some(thread) }
    }

    /// Loses all packets from one machine to another one.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.set_neighbour(from, to, NOWHERE);
    }

    /// Ends [`Network::cut`].
    pub(crate) fn heal(&self, from: usize, to: usize) {
        self.set_neighbour(from, to, &hardware(to));
    }

    fn set_neighbour(&self, from: usize, to: usize, hardware: &str) {
        let address = address(to);
        self.machines[from - 1]
            .ip(&format!("neigh replace {address} lladdr {hardware} dev eth0 nud permanent"));
    }

    /// Takes the link of a machine down, or up again.
    pub(crate) fn set_link(&self, machine: usize, is_up: bool) {
        let state = if is_up { "up" } else { "down" };
        self.bridge.ip(&format!("link set port{machine} {state}"));
    }
}

/// What a thread keeps, until this is dropped.
#[derive(Debug)]
pub(crate) struct Kept<R> {
    pub(crate) value: R,
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<R> Drop for Kept<R> {
    fn drop(&mut self) {
        self.end = None;
        // A panic of the thread has been printed.
        self.thread.take().map(JoinHandle::join);
    }
}

/// Returns the address of a machine.
pub(crate) fn address(machine: usize) -> String {
    format!("10.77.0.{machine}")
}

fn hardware(machine: usize) -> String {
    format!("02:00:00:00:00:{machine:02x}")
}
