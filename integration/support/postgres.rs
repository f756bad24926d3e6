//! Starts a PostgreSQL server, which Debian's package `postgresql` installs.

use std::{
    fs::{self, File},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{harness::wait, servers::free_port};

/// The user of tests, who may do everything.
const USER: &str = "hub";
/// Has what a URL would have to escape.
const PASSWORD: &str = "p@ss/w:rd";

/// A PostgreSQL server, killed when dropped.
pub struct Postgres {
    folder: tempfile::TempDir,
    child: Option<Child>,
    port: u16,
}

impl Postgres {
    pub fn start() -> Self {
        let mut postgres = Self {
            folder: tempfile::tempdir().unwrap(),
            child: None,
            port: free_port(),
        };
        let folder = postgres.folder.path();
        // It doesn't run as root.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join("password"), PASSWORD).unwrap();
        fs::set_permissions(folder.join("password"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::create_dir(folder.join("data")).unwrap();
        if is_root() {
            for path in ["data", "password"] {
                let mut give = Command::new("chown");
                let given = give.args(["postgres", path]).current_dir(folder).status();
                assert!(given.unwrap().success());
            }
        }
        let created = as_user("initdb")
            .args(["--auth", "scram-sha-256", "--username", USER, "--pwfile"])
            .arg(folder.join("password"))
            .args(["--no-sync", "--pgdata"])
            .arg(folder.join("data"))
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(created.status.success(), "{created:?}");
        postgres.resume();
        postgres
    }

    /// Starts it again with what it had.
    pub fn resume(&mut self) {
        let folder = self.folder.path();
        let log = File::create(folder.join("log")).unwrap();
        let child = as_user("postgres")
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .args(["-c", "unix_socket_directories="])
            .args(["-p", &self.port.to_string(), "-D"])
            .arg(folder.join("data"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait("PostgreSQL", || {
            let log = fs::read_to_string(folder.join("log")).unwrap();
            log.contains("ready to accept connections")
                && TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            // An immediate shutdown, which ends all of its processes.
            rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
            child.wait().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    pub fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One of its programs, which refuse to run as root.
fn as_user(program: &str) -> Command {
    let program = newest().join(program);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(program);
    command
}

/// Debian has a folder for each major version.
fn newest() -> PathBuf {
    let all = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(all).expect("integration/install-backends installs it");
    let versions = versions.map(|entry| entry.unwrap().path());
    let number = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    versions.max_by_key(number).unwrap().join("bin")
}
