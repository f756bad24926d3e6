//! A process keeps serving and ends in order, whether its output is read, read slowly or not read.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::support::{
    exec::{lines_of, next},
    harness::{World, binary, wait},
};

/// A sidecar that the harness doesn't read the log of.
struct Unread {
    child: Child,
    socket: PathBuf,
}

impl Unread {
    fn start(world: &World, config: &str, stdout: Stdio, stderr: Stdio) -> Self {
        let config = world.configure("one", config, &["demo"]);
        let child = Command::new(binary())
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let socket = world.path("one.sock");
        wait("the socket", || UnixStream::connect(&socket).is_ok());
        let sidecar = Self { child, socket };
        sidecar.wait_primary(1);
        sidecar
    }

    fn get(&self) -> String {
        exchange(
            &self.socket,
            b"GET /v1/keyrings/demo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
    }

    fn wait_primary(&self, version: u32) {
        let expected = format!("\"primary\":{version}");
        wait("a primary", || self.get().contains(&expected));
    }

    fn terminate(&mut self) -> ExitStatus {
        terminate(&self.child);
        ended(&mut self.child)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exchange(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut answer = Vec::new();
    // The sidecar may close early.
    let _ = stream.write_all(request);
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn terminate(child: &Child) {
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
}

fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait("the end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn a_log_that_nobody_reads_stops_nobody_and_says_what_it_lacks() {
    let world = World::with_demo();
    let config = "[log]\nlevel = \"debug\"\n";
    let mut sidecar = Unread::start(&world, config, Stdio::null(), Stdio::piped());
    // Each is a line of the log; a pipe holds 64 KiB.
    for _ in 0..5000 {
        exchange(&sidecar.socket, b"no HTTP\r\n\r\n");
    }
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_primary(2);
    let stderr = sidecar.child.stderr.take().unwrap();
    let log = lines_of(BufReader::new(stderr));
    let report = "log lines were lost, because standard error failed or was read too slowly";
    while !next(&log).expect("the report").contains(report) {}
    assert!(sidecar.terminate().success());
    while !next(&log).expect("the last line").contains("drained") {}
}

#[test]
fn a_full_log_delays_no_end() {
    let world = World::with_demo();
    let config = "[log]\nlevel = \"debug\"\n";
    let mut sidecar = Unread::start(&world, config, Stdio::null(), Stdio::piped());
    for _ in 0..5000 {
        exchange(&sidecar.socket, b"no HTTP\r\n\r\n");
    }
    assert!(sidecar.terminate().success());
}

#[test]
fn a_sidecar_survives_its_log() {
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    for stderr in [Stdio::from(full()), Stdio::from(closed())] {
        let world = World::with_demo();
        let config = "[audit]\nstdout = true\n[log]\nlevel = \"debug\"\n";
        let mut sidecar = Unread::start(&world, config, Stdio::from(closed()), stderr);
        world.keyring("rotate", "demo", &["--activate", "now"]);
        sidecar.wait_primary(2);
        assert!(sidecar.terminate().success());
    }
}

#[test]
fn an_error_that_nobody_can_read_is_still_an_exit_code() {
    for stderr in ["/dev/full", "/dev/null"] {
        let stderr = OpenOptions::new().write(true).open(stderr).unwrap();
        let mut command = Command::new(binary());
        let status = command
            .args(["serve", "--config", "/nowhere"])
            .stderr(stderr)
            .status();
        assert_eq!(status.unwrap().code(), Some(1));
    }
}

/// Runs a command whose output is closed after the first byte, as by `head -c 1`.
fn first_byte(arguments: &[&str]) -> (ExitStatus, String) {
    let mut child = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status, stderr)
}

#[test]
fn commands_end_quietly_when_their_output_is_closed() {
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    let (plain, sealed) = (world.path("plain"), world.path("sealed"));
    fs::write(&plain, vec![b'x'; 8 << 20]).unwrap();
    let (plain, sealed) = (plain.to_str().unwrap(), sealed.to_str().unwrap());
    let to = ["--socket", socket, "--keyring", "demo"];
    world.succeed(&[&["encrypt"], &to[..], &["--out", sealed, plain]].concat());
    // Output that was cut off: as if SIGPIPE had killed the command.
    for (operation, file) in [("encrypt", plain), ("decrypt", sealed), ("rewrap", sealed)] {
        let (status, stderr) = first_byte(&[&[operation], &to[..], &[file]].concat());
        assert_eq!((status.code(), stderr.as_str()), (Some(141), ""));
    }
    // A result counts although it is not read.
    let manifest = world.manifest("demo");
    let manifest = manifest.to_str().unwrap();
    for arguments in [
        &["keyring", "status", manifest][..],
        &["keyring", "rotate", manifest],
        &["status", "--socket", socket],
        &["completions", "bash"],
        &["--help"],
    ] {
        let (_, closed) = std::io::pipe().unwrap();
        let output = Command::new(binary())
            .args(arguments)
            .envs(world.env.iter().cloned())
            .stdout(closed)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_watch_ends_with_its_reader() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut watch = Command::new(binary())
        .args(["watch", "--socket", sidecar.socket.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(watch.stdout.take());
    // Without any event.
    assert_eq!(ended(&mut watch).code(), Some(141));
}

#[test]
fn a_command_stuck_in_its_output_heeds_signals() {
    let world = World::with_demo();
    let sidecar = world.start();
    let plain = world.path("plain");
    fs::write(&plain, vec![b'x'; 8 << 20]).unwrap();
    let mut stuck = Command::new(binary())
        .args(["encrypt", "--keyring", "demo", "--socket"])
        .arg(&sidecar.socket)
        .stdin(File::open(&plain).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = stuck.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    terminate(&stuck);
    assert_eq!(ended(&mut stuck).code(), Some(143));
}
