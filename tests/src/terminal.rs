//! A program on a pseudo terminal, as a user sees it.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::pty::openpty;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::wait_until;

/// Asks the terminal where the cursor is (ECMA-48, device status report). All terminals answer.
const CURSOR_QUERY: &[u8] = b"\x1b[6n";

/// A program that runs on a terminal of its own. Dropping it kills the program.
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Held open, so that the settings of the terminal can be read after the program.
    settings: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts a program on a terminal with this number of columns and rows.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn start(program: &Path, arguments: &[&str], (columns, rows): (u16, u16)) -> Self {
        let pty = openpty(None, None).unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        set_size(&pty.slave, (columns, rows));
        // The program gets a session with this terminal, so that a new size is signalled to it.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(program)
            .args(arguments)
            .env("TERM", "xterm-256color")
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        let (keyboard, mut output) =
            (File::from(pty.master.try_clone().unwrap()), File::from(pty.master));
        let shown = Arc::clone(&screen);
        let mut answers = keyboard.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut buffer, mut begun) = ([0; 4096], 0);
            // Fails once the terminal is closed.
            while let Ok(count @ 1..) = output.read(&mut buffer[begun..]) {
                let read = &buffer[..begun + count];
                let mut screen = shown.lock().unwrap_or_else(PoisonError::into_inner);
                screen.process(&read[begun..]);
                let (row, column) = screen.screen().cursor_position();
                drop(screen);
                if read.windows(CURSOR_QUERY.len()).any(|part| part == CURSOR_QUERY) {
                    // Fails once the terminal is closed.
                    write!(answers, "\x1b[{};{}R", row + 1, column + 1).ok();
                    begun = 0;
                } else {
                    // The beginning of a query may be at the end.
                    let kept = read.len().min(CURSOR_QUERY.len() - 1);
                    buffer.copy_within(begun + count - kept..begun + count, 0);
                    begun = kept;
                }
            }
        });
        Self { child, keyboard, settings: pty.slave, screen, reader: Some(reader) }
    }

    /// Returns what is seen of the screen.
    pub fn see<T>(&self, what: impl FnOnce(&vt100::Screen) -> T) -> T {
        what(self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen())
    }

    /// Returns the text on the screen.
    pub fn text(&self) -> String {
        self.see(vt100::Screen::contents)
    }

    /// Waits until the text on the screen meets a condition.
    ///
    /// # Panics
    /// If it does not, with the text.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(what, || condition(&self.text()));
        }));
        assert!(waited.is_ok(), "{what}:\n{}", self.text());
    }

    /// Changes the number of columns and rows, which the program is told.
    pub fn resize(&self, size @ (columns, rows): (u16, u16)) {
        let mut screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        screen.screen_mut().set_size(rows, columns);
        drop(screen);
        set_size(&self.settings, size);
    }

    /// Types keys, as the bytes that a terminal sends.
    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Returns true if keys are passed on as they are typed and are not shown: raw mode.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.settings).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Returns true if the terminal is as it was before the program: its modes, the first screen,
    /// and a cursor.
    pub fn is_restored(&self) -> bool {
        let modes = tcgetattr(&self.settings).unwrap().local_modes;
        let (is_alternate, hides_cursor) =
            self.see(|screen| (screen.alternate_screen(), screen.hide_cursor()));
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
            && !is_alternate
            && !hides_cursor
    }

    /// Sends a signal to the program.
    ///
    /// # Panics
    /// If the program has ended.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.program()).unwrap(), signal).unwrap();
    }

    /// Returns the process id of the program.
    fn program(&self) -> i32 {
        let setsid = self.child.id();
        let path = format!("/proc/{setsid}/task/{setsid}/children");
        let children = std::fs::read_to_string(path).unwrap();
        // `setsid` starts a child only if it leads a group of processes.
        let program = children.split_whitespace().next().and_then(|child| child.parse().ok());
        program.unwrap_or_else(|| i32::try_from(setsid).unwrap())
    }

    /// Returns true if the main thread of the program is in a read of its standard input.
    ///
    /// # Panics
    /// If the program has ended.
    pub fn is_reading(&self) -> bool {
        // The number and the arguments of the call; `running` outside of calls.
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", self.program())).unwrap();
        let mut call = call.split_whitespace();
        call.next() == Some(&nix::libc::SYS_read.to_string()) && call.next() == Some("0x0")
    }

    /// Types keys that end the program until it has ended: what arrives together with the signal of
    /// another size is only read with the next key (crossterm 0.29 waits for edges).
    ///
    /// # Panics
    /// If it does not end.
    pub fn end_with(&mut self, keys: &str) -> ExitStatus {
        let mut status = None;
        wait_until("the program has ended", || {
            self.type_keys(keys);
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits until the program has ended.
    ///
    /// # Panics
    /// If it does not end, with the text on the screen.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the program has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("child", &self.child).finish_non_exhaustive()
    }
}

fn set_size(terminal: &OwnedFd, (columns, rows): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok(); // Fails if the program has ended.
        self.child.wait().ok();
        // The reader ends with the last descriptor of the terminal's other side, which is a field.
        drop(self.reader.take());
    }
}
