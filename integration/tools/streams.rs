//! `sidekey encrypt`, `decrypt` and `rewrap` on streams, pipes and files of lines.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    process::{Command, Stdio},
};

use crate::support::harness::{World, binary, wait};

const MIB: usize = 1 << 20;

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn an_interrupted_stream_leaves_no_output_file() {
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    let (plain, sealed, out) = (world.path("plain"), world.path("sealed"), world.path("out"));
    fs::write(&plain, text(9 * MIB)).unwrap();
    let run = |operation: &str, from: &std::path::Path, more: &[&str], stdout: Stdio| {
        let arguments = [&[operation, "--keyring", "demo", "--socket", socket], more].concat();
        Command::new(binary())
            .args(arguments)
            .stdin(File::open(from).unwrap())
            .stdout(stdout)
            .output()
            .unwrap()
    };
    let to_out = ["--out", out.to_str().unwrap()];
    let ok = |output: std::process::Output| {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        )
    };

    ok(run(
        "encrypt",
        &plain,
        &["--out", sealed.to_str().unwrap()],
        Stdio::null(),
    ));
    ok(run("decrypt", &sealed, &to_out, Stdio::null()));
    assert!(fs::read(&out).unwrap() == text(9 * MIB));
    fs::remove_file(&out).unwrap();

    let mut bytes = fs::read(&sealed).unwrap();
    bytes[3 * MIB] ^= 1;
    fs::write(&sealed, &bytes).unwrap();
    let before = fs::read_dir(out.parent().unwrap()).unwrap().count();
    let output = run("decrypt", &sealed, &to_out, Stdio::null());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("incomplete body"),
        "{output:?}"
    );
    assert_eq!(
        fs::read_dir(out.parent().unwrap()).unwrap().count(),
        before,
        "no partial output is left"
    );

    // A file that the shell opened is truncated to its earlier content.
    assert_eq!(
        run("decrypt", &sealed, &[], File::create(&out).unwrap().into())
            .status
            .code(),
        Some(1)
    );
    assert_eq!(fs::read(&out).unwrap(), b"");
    fs::write(&out, "kept").unwrap();
    let appending = OpenOptions::new().append(true).open(&out).unwrap();
    assert_eq!(
        run("decrypt", &sealed, &[], appending.into()).status.code(),
        Some(1)
    );
    assert_eq!(fs::read(&out).unwrap(), b"kept");
}

#[test]
fn commands_write_to_their_output_and_read_all_input() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    let at = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let encrypt = |input: &str, out: &str| {
        world.succeed(&[
            "encrypt",
            "--keyring",
            "demo",
            "--socket",
            socket,
            "--out",
            out,
            input,
        ])
    };
    fs::write(at("plain"), text(3 * MIB)).unwrap();
    // The output replaces another file and keeps its mode, or replaces a symlink's target.
    fs::write(at("private"), "").unwrap();
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(at("private"), at("link")).unwrap();
    encrypt(&at("plain"), &at("link"));
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    let private = fs::metadata(at("private")).unwrap();
    assert_eq!(
        (
            private.permissions().mode() & 0o777,
            private.len() > 3 << 20
        ),
        (0o600, true)
    );
    // A pipe stays a pipe.
    assert!(
        Command::new("mkfifo")
            .arg(at("pipe"))
            .status()
            .unwrap()
            .success()
    );
    let mut reader = Command::new("cat")
        .arg(at("pipe"))
        .stdout(File::create(at("came")).unwrap())
        .spawn()
        .unwrap();
    encrypt(&at("plain"), &at("pipe"));
    reader.wait().unwrap();
    let came = fs::read(at("came")).unwrap();
    assert!(
        came[0] == sidekey::crypto::SUITE_STREAM
            && fs::metadata(at("pipe")).unwrap().file_type().is_fifo()
    );
    // A file whose reported size is zero.
    encrypt("/proc/self/maps", &at("maps.sk"));
    let opened = world.succeed(&[
        "decrypt",
        "--keyring",
        "demo",
        "--socket",
        socket,
        &at("maps.sk"),
    ]);
    assert!(opened.contains("sidekey"), "{opened}");
}

#[test]
fn a_terminated_command_removes_its_partial_output() {
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    let out = world.path("out");
    let before = fs::read_dir(out.parent().unwrap()).unwrap().count();
    let mut child = Command::new(binary())
        .args([
            "encrypt",
            "--keyring",
            "demo",
            "--socket",
            socket,
            "--out",
            out.to_str().unwrap(),
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Enough input to produce output, but no end.
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &text(3 * MIB)).unwrap();
    wait("partial output", || {
        fs::read_dir(out.parent().unwrap()).unwrap().count() > before
    });
    assert!(
        Command::new("kill")
            .args(["-s", "TERM", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(
        fs::read_dir(out.parent().unwrap()).unwrap().count(),
        before,
        "no partial output is left"
    );
}

#[test]
fn text_forms_over_a_mebibyte_are_read_back_from_files_and_pipes() {
    let world = World::with_demo();
    let sidecar = world.start();
    let (plain, sealed) = (world.path("plain"), world.path("sealed"));
    let run = |operation: &str, input: &std::path::Path, by: &str, more: &[&str]| {
        let mut command = Command::new(binary());
        command
            .args([
                operation,
                "--keyring",
                "demo",
                "--socket",
                sidecar.socket.to_str().unwrap(),
            ])
            .args(more);
        match by {
            "argument" => command.arg(input),
            "redirection" => command.stdin(File::open(input).unwrap()),
            _ => command.stdin(
                Command::new("cat")
                    .arg(input)
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
                    .stdout
                    .unwrap(),
            ),
        };
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{operation} by {by}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    // A message whose text is longer than a message may be, the longest message, and a stream.
    for length in [900 << 10, MIB, MIB + 1] {
        fs::write(&plain, text(length)).unwrap();
        fs::write(&sealed, run("encrypt", &plain, "argument", &["--text"])).unwrap();
        for by in ["argument", "redirection", "pipe"] {
            assert!(
                run("decrypt", &sealed, by, &[]) == text(length),
                "{length} by {by}"
            );
            let again = world.path("again");
            fs::write(&again, run("rewrap", &sealed, by, &["--text"])).unwrap();
            assert!(fs::read(&again).unwrap().starts_with(b"sk1."));
            assert!(
                run("decrypt", &again, by, &[]) == text(length),
                "{length} rewrapped by {by}"
            );
        }
    }
}

#[test]
fn a_long_stream_takes_no_more_memory_than_a_short_one() {
    let world = World::with_demo();
    let sidecar = world.start();
    let socket = sidecar.socket.to_str().unwrap();
    // A sparse file of zeros.
    let (plain, sealed) = (world.path("plain"), world.path("sealed"));
    let length = 64 << 20;
    File::create(&plain).unwrap().set_len(length).unwrap();
    let memory = |field: &str| {
        let status = fs::read_to_string(format!("/proc/{}/status", sidecar.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with(field))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let run = |operation: &str, from: &std::path::Path, to: &std::path::Path| {
        world.succeed(&[
            operation,
            "--keyring",
            "demo",
            "--socket",
            socket,
            "--out",
            to.to_str().unwrap(),
            from.to_str().unwrap(),
        ]);
    };
    // The first request's allocations don't count towards a stream's.
    let short = world.path("short");
    fs::write(&short, text(2 * MIB)).unwrap();
    run("encrypt", &short, &sealed);
    let idle = memory("VmRSS");
    run("encrypt", &plain, &sealed);
    run("rewrap", &sealed, &world.path("again"));
    run("decrypt", &world.path("again"), &world.path("opened"));
    assert_eq!(fs::metadata(world.path("opened")).unwrap().len(), length);
    let peak = memory("VmHWM");
    assert!(
        peak <= idle + (8 << 10),
        "{idle} KiB before, at most {peak} KiB"
    );
}

#[test]
fn line_files_round_trip() {
    let world = World::with_demo();
    let sidecar = world.start();
    let run = |operation: &str, input: &[u8]| {
        let socket = sidecar.socket.to_str().unwrap();
        let mut child = Command::new(binary())
            .args([
                operation,
                "--lines",
                "--keyring",
                "demo",
                "--aad",
                "table",
                "--socket",
                socket,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feed = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        feed.join().unwrap().unwrap();
        output
    };
    let plain: String = (0..5000)
        .map(|line| format!("line {line} {}\n", "x".repeat(line % 200)))
        .collect();
    let sealed = run("encrypt", plain.as_bytes());
    assert!(
        sealed.status.success(),
        "{}",
        String::from_utf8_lossy(&sealed.stderr)
    );
    let text = String::from_utf8(sealed.stdout).unwrap();
    assert!(text.lines().count() == 5000 && text.lines().all(|line| line.starts_with("sk1.")));
    let opened = run("decrypt", text.as_bytes());
    assert!(opened.status.success() && opened.stdout == plain.as_bytes());
    let again = run("rewrap", text.trim_end().as_bytes());
    assert!(run("decrypt", &again.stdout).stdout == plain.as_bytes());

    let lines: Vec<&str> = text.lines().collect();
    let bad = run(
        "decrypt",
        format!("{}\nsk1.nonsense\n{}\n", lines[0], lines[2]).as_bytes(),
    );
    assert_eq!(bad.status.code(), Some(1));
    let (out, err) = (
        String::from_utf8(bad.stdout).unwrap(),
        String::from_utf8(bad.stderr).unwrap(),
    );
    let expected: Vec<&str> = plain.lines().collect();
    assert_eq!(out, format!("{}\n\n{}\n", expected[0], expected[2]));
    assert!(
        err.contains("line 2: ")
            && err.contains("malformed_ciphertext")
            && err.contains("1 of 3 lines"),
        "{err}"
    );
}
