//! Files that contain ciphertexts, and commands with restricted rights.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::harness::{Client, JSON, binary};

/// Replaces a file atomically. The new one is old enough to be complete, so a sidecar reads it at
/// once (docs/secrets.md).
pub fn put(path: &Path, content: impl AsRef<[u8]>) {
    let mut name = path.file_name().unwrap().to_owned();
    name.push(".next");
    let next = path.with_file_name(name);
    fs::write(&next, content).unwrap();
    let written = fs::File::options().append(true).open(&next).unwrap();
    let complete = SystemTime::now() - Duration::from_secs(10);
    written.set_modified(complete).unwrap();
    fs::rename(&next, path).unwrap();
}

/// Returns the text forms of some plaintexts.
pub async fn texts(
    client: &mut Client,
    keyring: &str,
    plaintexts: &[String],
    aad: &str,
) -> Vec<String> {
    let mut texts = Vec::new();
    for part in plaintexts.chunks(100) {
        let item = |plaintext: &String| {
            json!({
                "plaintext": STANDARD.encode(plaintext),
                "aad": STANDARD.encode(aad),
            })
        };
        let batch = json!({ "batch": part.iter().map(item).collect::<Vec<_>>() });
        let path = format!("/v1/keyrings/{keyring}/encrypt");
        let answer = client
            .post(&path, &[JSON], batch.to_string())
            .await
            .ok()
            .json();
        let results = answer["batch"].as_array().unwrap();
        texts.extend(
            results
                .iter()
                .map(|result| result["ciphertext"].as_str().unwrap().to_owned()),
        );
    }
    texts
}

/// Removes root's rights to read and change any file from the command. Without root it has none.
pub fn without(capabilities: &str) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(binary());
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--bounding-set",
        capabilities,
        "--inh-caps",
        capabilities,
        binary(),
    ]);
    command
}

/// Runs a command with at most 64 MiB of private memory: the kernel denies larger allocations.
pub fn run_in_bounded_memory(arguments: &[&str]) -> Output {
    Command::new("/bin/sh")
        .args(["-c", "ulimit -d 65536 && exec \"$0\" \"$@\"", binary()])
        .args(arguments)
        .output()
        .unwrap()
}

/// The length of a line that is longer than [`run_in_bounded_memory`] allows, in MiB.
pub const LONG_LINE: usize = 96;

/// Writes one line of [`LONG_LINE`] with a ciphertext in every MiB.
pub fn write_long_line(path: &Path, tokens: &[String]) {
    let mut file = fs::File::create(path).unwrap();
    let filler = vec![b'.'; 1 << 20];
    for at in 0..LONG_LINE {
        file.write_all(&filler).unwrap();
        file.write_all(tokens[at % tokens.len()].as_bytes())
            .unwrap();
    }
    file.flush().unwrap();
}
