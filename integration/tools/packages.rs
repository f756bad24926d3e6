//! Files packaged with the binary: the systemd unit, completions and manual pages.

use std::{fs, os::unix::net::UnixDatagram, path::Path};

use crate::support::harness::{PATIENCE, World, run};

/// Returns the next message to the service manager.
fn heard(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}

#[test]
fn the_service_manager_is_notified_of_start_and_stop() {
    let mut world = World::with_demo();
    let socket = world.path("notify.sock");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    world
        .env
        .push(("NOTIFY_SOCKET", socket.display().to_string()));
    // Its keyring can't be loaded, so it isn't ready. But it listens, so units that wait for it may
    // start.
    let mut sidecar = world.launch("one", "", &["none"]);
    assert_eq!(heard(&manager), "READY=1");
    assert_eq!(sidecar.ops("/readyz").0, 503);
    sidecar.signal("TERM");
    assert_eq!(heard(&manager), "STOPPING=1");
    assert!(sidecar.ended().success());
}

#[test]
fn the_systemd_unit_uses_existing_commands() {
    let unit = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/systemd/sidekey.service"),
    )
    .unwrap();
    let commands: Vec<&str> = unit
        .lines()
        .filter_map(|line| {
            line.strip_prefix("ExecStart=")
                .or(line.strip_prefix("ExecStartPre="))
        })
        .collect();
    assert_eq!(commands.len(), 2);
    for command in commands {
        // The config doesn't exist, so an error about it shows that the command was understood.
        let command = command.replace("/etc/sidekey/sidekey.toml", "/nowhere/sidekey.toml");
        let arguments: Vec<&str> = command
            .strip_prefix("/usr/local/bin/sidekey ")
            .unwrap()
            .split(' ')
            .collect();
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("can't read /nowhere/sidekey.toml"),
            "{output:?}"
        );
    }
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{shell}");
        for word in ["rewrap-kek", "sidecar-ca"] {
            assert!(
                script.contains(word),
                "{word} is not in the script for {shell}"
            );
        }
    }
    let pages = folder.path().join("man/man1");
    let output = run(&["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    for (page, words) in [
        ("sidekey.1", "keyring"),
        ("sidekey-serve.1", "config"),
        ("sidekey-keyring-disable.1", "Ops listener"),
    ] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(
            text.contains(".TH ") && text.contains(words),
            "{page}: {text}"
        );
    }
}
