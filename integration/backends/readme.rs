//! The README's commands run as documented. They need bash and curl.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::support::{
    docs::{README, blocks},
    harness::{binary, wait},
};

/// The two set-up commands, which are not run. Every other `sh` block of the README is.
const SET_UP: [&str; 2] = ["cargo run --release -- dev\n", "integration/run\n"];

/// `sidekey dev` in a folder; killed when dropped.
struct Dev {
    child: Child,
    ops: SocketAddr,
}

impl Dev {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(binary())
            .args(["dev", "--ops", "127.0.0.1:0"])
            .current_dir(folder)
            .env("SIDEKEY_STATE_DIR", folder.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let ops = loop {
            let start = seen.len();
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "dev ended: {seen}");
            let address = |rest: &str| rest.split_whitespace().next()?.parse().ok();
            if let Some(ops) = seen[start..]
                .split_once("ops=")
                .and_then(|(_, rest)| address(rest))
            {
                break ops;
            }
        };
        // A full pipe would block the sidecar.
        std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
        let dev = Self { child, ops };
        let ready = format!("http://{ops}/readyz");
        wait("readiness", || {
            Command::new("curl")
                .args(["-sfo", "/dev/null", &ready])
                .status()
                .unwrap()
                .success()
        });
        dev
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn readme_commands_run_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("target/release")).unwrap();
    symlink(binary(), path("target/release/sidekey")).unwrap();
    fs::write(path("README.md"), README).unwrap();
    let dev = Dev::start(folder.path());

    let all = blocks(README, "sh");
    assert!(SET_UP.iter().all(|command| all.contains(command)));
    let mut script = String::from(
        "set -uE -o pipefail\ntrap 'echo \"exit code $?: $BASH_COMMAND\" >> failed' ERR\n",
    );
    script.extend(all.into_iter().filter(|block| !SET_UP.contains(block)));
    let script = script.replace("127.0.0.1:9464", &dev.ops.to_string());
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder.path())
        .env("LC_ALL", "C")
        .env("SIDEKEY_STATE_DIR", path("state"))
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );

    // The only failing command is the one documented to fail, with the documented exit code.
    let failed = fs::read_to_string(path("failed")).unwrap();
    assert_eq!(failed.lines().count(), 1, "{failed}\n{out}\n{err}");
    assert!(
        failed.starts_with("exit code 3: sidekey keyring disable"),
        "{failed}"
    );
    for expected in [
        "same\n",
        "loop done\n",
        "\"value\":\"another\"",
        "\"stage\":\"previous\"",
        "sidekey_version_operations_total",
    ] {
        assert!(out.contains(expected), "{expected}\n{out}\n{err}");
    }
    assert_eq!(out.matches("\"ciphertext\":\"sk1.").count(), 2, "{out}");
    assert!(!out.contains("FAILED"), "{out}");
    let sealed = fs::read(path(".sidekey/README.sk")).unwrap();
    assert_eq!(sealed.len(), README.len() + 49);
    assert_eq!(sealed[0], 1, "a message");
}
