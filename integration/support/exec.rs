//! Runs `sidekey exec` and reads the output of the program under it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
};

use super::{
    files,
    harness::{PATIENCE, Sidecar, World, binary, uid, wait},
};

/// Waits for a signal, for longer than any test takes, with a single child process that doesn't
/// hold our pipes open.
pub const IDLE: &str = "idle() { sleep 600 >/dev/null 2>&1 & s=$!; \
    while kill -0 $s 2>/dev/null; do wait $s; done; }; trap 'kill $s; exit 143' TERM; ";

/// Returns a world whose secrets are files in it.
pub fn world(secrets: &[(&str, &str)]) -> (World, String) {
    let world = World::with_demo();
    let mut config = String::new();
    for (name, value) in secrets {
        put(&world, name, value);
        config.push_str(&format!(
            "[[secret]]\nname = {name:?}\nsource = \"file:{name}\"\n"
        ));
    }
    (world, config)
}

pub fn started(secrets: &[(&str, &str)]) -> (World, Sidecar) {
    let (world, config) = world(secrets);
    let sidecar = world.start_with("one", &config, &["demo"]);
    (world, sidecar)
}

/// Replaces a secret's file atomically.
pub fn put(world: &World, name: &str, value: impl AsRef<[u8]>) {
    files::put(&world.path(name), value);
}

/// Returns the command that runs `sidekey exec` with the given program.
pub fn exec(socket: &Path, options: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("exec")
        .arg("--socket")
        .arg(socket)
        .args(options);
    if !options.contains(&"--settle") {
        command.args(["--settle", "100ms"]);
    }
    command.arg("--").args(program);
    command.stdin(Stdio::null()).env_remove("XDG_RUNTIME_DIR");
    command
}

/// Runs a shell script under `sidekey exec` and returns its whole output.
pub fn finished(socket: &Path, options: &[&str], script: &str) -> Output {
    exec(socket, options, &["sh", "-c", script])
        .output()
        .unwrap()
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns a command in its own namespaces, after a setup script that ends with `exec "$@"`.
pub fn unshared(kinds: &[&str], before: &str, command: &Command) -> Command {
    let mut unshare = Command::new("unshare");
    // Without root, a user namespace provides root's rights.
    unshare
        .args(kinds)
        .args((uid() != 0).then_some("--map-root-user"));
    unshare
        .args(["sh", "-c", before, "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    unshare.stdin(Stdio::null()).env_remove("XDG_RUNTIME_DIR");
    unshare
}

/// A running `sidekey exec` and its output.
pub struct Running {
    pub child: Child,
    pub lines: Receiver<String>,
    pub said: Receiver<String>,
    pub heard: String,
}

impl Running {
    pub fn start(socket: &Path, options: &[&str], script: &str) -> Self {
        Self::of(exec(
            socket,
            options,
            &["sh", "-c", &format!("{IDLE}{script}")],
        ))
    }

    /// Like `start`, but after a setup script that ends with `exec "$@"`, in a mount namespace.
    pub fn start_among(mounts: &str, socket: &Path, options: &[&str], script: &str) -> Self {
        let command = exec(socket, options, &["sh", "-c", &format!("{IDLE}{script}")]);
        Self::of(unshared(&["--mount"], mounts, &command))
    }

    pub fn of(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines(child.stdout.take().unwrap());
        let said = lines_of(BufReader::new(child.stderr.take().unwrap()));
        Self {
            child,
            lines,
            said,
            heard: String::new(),
        }
    }

    /// Returns the program's next line.
    pub fn line(&self) -> String {
        next(&self.lines).expect("the program exited")
    }

    /// Waits until the command's output contains the text; keeps all output.
    pub fn hear(&mut self, what: &str) {
        loop {
            let line = next(&self.said).unwrap_or_else(|| panic!("{what}: only {}", self.heard));
            self.heard.push_str(&line);
            self.heard.push('\n');
            if line.contains(what) {
                return;
            }
        }
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait("the command's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Ends the command and returns all of its output.
    pub fn end(mut self) -> String {
        self.signal("TERM");
        assert_eq!(self.ended().code(), Some(143));
        while let Some(line) = next(&self.said) {
            self.heard.push_str(&line);
        }
        std::mem::take(&mut self.heard)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn lines(stdout: ChildStdout) -> Receiver<String> {
    lines_of(BufReader::new(stdout))
}

pub fn lines_of(source: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        source
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    receiver
}

pub fn next(lines: &Receiver<String>) -> Option<String> {
    match lines.recv_timeout(PATIENCE) {
        Ok(line) => Some(line),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("waited {PATIENCE:?} for a line"),
    }
}

pub fn signal(pid: impl std::fmt::Display, name: &str) {
    assert!(
        Command::new("kill")
            .args(["-s", name, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Returns the state and parent of a process (proc_pid_stat(5)), or `None` once it is reaped.
pub fn process(pid: &str) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

pub fn is_over(pid: &str) -> bool {
    process(pid).is_none_or(|(state, _)| state == "Z")
}
