//! `sidekey exec`: a program with secrets, from start to exit.

use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::exec::{
    IDLE, Running, err, exec, finished, is_over, next, out, process, put, started, world,
};
use crate::support::harness::{binary, uid, wait};

#[test]
fn a_program_gets_its_secrets_and_its_exit_code_is_returned() {
    let (world, sidecar) = started(&[
        ("db", r#"{"user":"anna","pass word":"p1","port":5432}"#),
        ("token", "t1"),
    ]);
    put(&world, "token", b"t\0\xff\n");
    sidecar.signal("HUP");
    wait("the new token", || {
        finished(
            &sidecar.socket,
            &["--file", "t=secret:token"],
            "cat $SIDEKEY_FILES/t",
        )
        .stdout
            == b"t\0\xff\n"
    });
    let options = [
        "--env",
        "U=secret:db#user",
        "--env",
        "P=secret:db#pass word",
        "--env",
        "PORT=secret:db#port",
    ];
    let files = [
        "--file",
        "tls.key=secret:token",
        "--file",
        "pw=secret:db#pass word",
        "--env",
        "KEY=file:tls.key",
    ];
    let script = "echo $U $P $PORT; stat -L -c '%a %s' $SIDEKEY_FILES $KEY; \
        cat $SIDEKEY_FILES/pw; echo; echo $SIDEKEY_FILES; exit 7";
    let output = finished(&sidecar.socket, &[&options[..], &files].concat(), script);
    assert_eq!(output.status.code(), Some(7), "{}", err(&output));
    let text = out(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        (lines[0], &lines[1][..4], lines[2], lines[3]),
        ("anna p1 5432", "700 ", "400 4", "p1")
    );
    assert!(lines[4].starts_with("/dev/shm/sidekey-exec-"), "{text}");
    assert!(!Path::new(lines[4]).exists(), "removed at the end");
    assert_eq!(err(&output), "");
}

#[test]
fn exit_codes_match_those_of_a_shell() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let run = |program: &[&str]| {
        exec(&sidecar.socket, &["--env", "T=secret:token"], program)
            .output()
            .unwrap()
    };
    assert_eq!(run(&["true"]).status.code(), Some(0));
    assert_eq!(
        run(&["sh", "-c", "kill -s USR1 $$"]).status.code(),
        Some(128 + 10)
    );
    assert_eq!(
        run(&["sh", "-c", "kill -s KILL $$"]).status.code(),
        Some(128 + 9)
    );
    let missing = run(&["no-such-program"]);
    assert_eq!(
        (
            missing.status.code(),
            err(&missing).contains("can't start no-such-program")
        ),
        (Some(127), true)
    );
    fs::write(world.path("plain"), "text").unwrap();
    assert_eq!(
        run(&[world.path("plain").to_str().unwrap()]).status.code(),
        Some(126)
    );
}

#[test]
fn unavailable_and_oversized_values_are_errors_that_name_them() {
    let (world, config) = world(&[
        ("token", "t1"),
        ("binary", "a\0b"),
        ("long", &"x".repeat(200_000)),
        ("hidden", "h"),
    ]);
    let rule = format!(
        "[[policy]]\nsecrets = [\"token\", \"binary\", \"long\"]\nuids = [{}]\n",
        uid()
    );
    let sidecar = world.start_with("one", &format!("{config}{rule}"), &["demo"]);
    for (binding, expected) in [
        ("V=secret:nothing", "secret nothing: "),
        ("V=secret:token#field", "secret token: "),
        ("V=secret:hidden", "(forbidden)"),
        (
            "V=secret:binary",
            "secret binary contains a NUL byte, which the variable V can't hold; use --file",
        ),
        (
            "V=secret:long",
            "secret long is too long for the variable V; use --file",
        ),
    ] {
        let options = ["--env", binding, "--wait", "1s"];
        let output = finished(&sidecar.socket, &options, "echo started");
        assert_eq!(
            (output.status.code(), out(&output).as_str()),
            (Some(1), ""),
            "{binding}"
        );
        assert!(
            err(&output).contains(expected),
            "{binding}: {}",
            err(&output)
        );
    }
    for options in [
        &["--env", "V=secret:"][..],
        &["--env", "V=file:x"],
        &["--on-change", "signal:KILL", "--env", "V=secret:token"],
        &["--env-from", "secret:token#field"],
        &["--file", "f=secret:token", "--file-mode", "0200"],
        &["--file", "f=secret:token", "--file-owner", "no-such-user"],
        &["--env", "V=secret:token", "--file-group", "0"],
        &["--env", "V=secret:token", "--socket", &"x".repeat(108)],
        &[],
    ] {
        assert_eq!(
            finished(&sidecar.socket, options, "echo started")
                .status
                .code(),
            Some(2),
            "{options:?}"
        );
    }
}

#[test]
fn every_field_of_a_secret_is_a_variable() {
    let db = r#"{"user-name":"ann","port":5432,"tls":{"on":true}}"#;
    let (world, sidecar) = started(&[("db", db), ("clash", r#"{"a-b":1,"a.b":2}"#)]);
    let options = [
        "--env-from",
        "DB_=secret:db",
        "--env",
        "DB_TLS=secret:db#user-name",
    ];
    let script = "echo \"$DB_USER_NAME $DB_PORT $DB_TLS $DB_HOST\"; idle";
    let running = Running::start(&sidecar.socket, &options, script);
    assert_eq!(running.line(), "ann 5432 ann ");
    put(&world, "db", r#"{"user-name":"bob","host":"h"}"#);
    assert_eq!(running.line(), "bob  bob h");
    running.end();
    let clash = finished(
        &sidecar.socket,
        &["--env-from", "secret:clash"],
        "echo started",
    );
    assert_eq!((clash.status.code(), out(&clash).as_str()), (Some(1), ""));
    let reason = "field \"a.b\" of secret clash can't be the variable \"A_B\"";
    assert!(err(&clash).contains(reason), "{}", err(&clash));
}

#[test]
fn files_have_the_mode_and_owner_that_were_asked_for() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let user = uid().to_string();
    let options = [
        "--file",
        "t=secret:token",
        "--file-mode",
        "0440",
        "--file-owner",
        &user,
        "--on-change",
        "signal:HUP",
    ];
    // Before and after a change.
    let script = "show() { stat -L -c %a:%u $SIDEKEY_FILES/t; }; trap show HUP; show; idle";
    let running = Running::start(&sidecar.socket, &options, script);
    let expected = format!("440:{user}");
    assert_eq!(running.line(), expected);
    put(&world, "token", "t2");
    assert_eq!(running.line(), expected);
    running.end();
}

#[test]
fn files_are_kept_off_the_disk() {
    let (_world, sidecar) = started(&[("token", "t1")]);
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = [
        "--file",
        "t=secret:token",
        "--dir",
        disk.path().to_str().unwrap(),
    ];
    let output = finished(&sidecar.socket, &options, "echo started");
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(2), ""));
    assert!(
        err(&output).contains("not a tmpfs; secrets are never written to disk"),
        "{}",
        err(&output)
    );
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    // The default directory is skipped if it is on a disk.
    let mut command = exec(
        &sidecar.socket,
        &options[..2],
        &["sh", "-c", "echo $SIDEKEY_FILES"],
    );
    let output = command
        .env("XDG_RUNTIME_DIR", disk.path())
        .output()
        .unwrap();
    assert!(
        out(&output).starts_with("/dev/shm/sidekey-exec-"),
        "{}",
        err(&output)
    );
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let output = command
        .env("XDG_RUNTIME_DIR", memory.path())
        .output()
        .unwrap();
    assert!(
        out(&output).starts_with(memory.path().to_str().unwrap()),
        "{}",
        err(&output)
    );
}

#[test]
fn a_burst_of_changes_causes_one_restart_and_logs_no_value() {
    let (world, sidecar) = started(&[("one", "first-value"), ("two", "first-value")]);
    let options = [
        "--env",
        "A=secret:one",
        "--file",
        "b=secret:two",
        "--settle",
        "2s",
    ];
    let mut running = Running::start(
        &sidecar.socket,
        &options,
        "echo $A $(cat $SIDEKEY_FILES/b) $$; idle",
    );
    let first = running.line();
    assert!(first.starts_with("first-value first-value "), "{first}");
    put(&world, "one", "second-value");
    put(&world, "two", "second-value");
    let second = running.line();
    assert!(second.starts_with("second-value second-value "), "{second}");
    assert_ne!(
        first.rsplit_once(' '),
        second.rsplit_once(' '),
        "another process"
    );
    running.hear("one, two changed; restarting sh");
    let command_line = fs::read_to_string(format!("/proc/{}/cmdline", running.child.id())).unwrap();
    let said = running.end();
    assert!(
        !said.contains("-value") && !command_line.contains("-value"),
        "{said}"
    );
}

#[test]
fn an_unrelated_change_restarts_nothing() {
    let (world, sidecar) = started(&[("db", r#"{"user":"anna","password":"p1"}"#)]);
    let running = Running::start(
        &sidecar.socket,
        &["--env", "P=secret:db#password"],
        "echo $P; idle",
    );
    assert_eq!(running.line(), "p1");
    let version = || sidecar.status()["secrets"][0]["version"].clone();
    let before = version();
    put(&world, "db", r#"{"user":"berta","password":"p1"}"#);
    wait("the change", || version() != before);
    // The new version was read and compared.
    wait("a read of the new version", || {
        let status = sidecar.status();
        let secret = &status["secrets"][0];
        let mut versions = secret["versions"].as_array().unwrap().iter();
        versions
            .any(|entry| entry["version"] == secret["version"] && entry["uses"].as_u64() > Some(0))
    });
    put(&world, "db", r#"{"user":"berta","password":"p2"}"#);
    assert_eq!(running.line(), "p2", "the first restart");
    running.end();
}

#[test]
fn files_are_written_before_the_signal_is_sent() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let options = ["--file", "t=secret:token", "--on-change", "signal:HUP"];
    let show = "show() { echo $1 $(cat $SIDEKEY_FILES/t) $$; }; trap 'show hup' HUP; \
        trap 'show usr1' USR1; ";
    let mut running = Running::start(
        &sidecar.socket,
        &options,
        &format!("{show} show start; idle"),
    );
    let first = running.line();
    let pid = first.rsplit_once(' ').unwrap().1.to_owned();
    assert_eq!(first, format!("start t1 {pid}"));
    put(&world, "token", "t2");
    assert_eq!(running.line(), format!("hup t2 {pid}"));
    running.hear("token changed; sending SIGHUP to sh");
    running.end();

    // The program gets no signal, but the files are still updated.
    let options = ["--file", "t=secret:token", "--on-change", "ignore"];
    let running = Running::start(
        &sidecar.socket,
        &options,
        &format!("{show} show start; echo $SIDEKEY_FILES; idle"),
    );
    assert!(running.line().starts_with("start t2"));
    let file = PathBuf::from(running.line()).join("t");
    put(&world, "token", "t3");
    wait("the file", || {
        fs::read(&file).is_ok_and(|value| value == b"t3")
    });
    running.signal("USR1");
    assert!(running.line().starts_with("usr1 t3"), "no signal before");
    running.end();
    assert!(!file.exists(), "removed after a signal, too");
}

#[test]
fn every_signal_is_forwarded() {
    const NAMES: [&str; 9] = [
        "HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "URG", "WINCH", "TERM",
    ];
    let (_world, sidecar) = started(&[("token", "t1")]);
    let traps: String = NAMES
        .iter()
        .map(|name| format!("trap 'echo {name}' {name}; "))
        .collect();
    let script = format!("{traps} trap 'kill $s; exit 5' PWR; echo ready; idle");
    let mut running = Running::start(&sidecar.socket, &["--env", "T=secret:token"], &script);
    assert_eq!(running.line(), "ready");
    for name in NAMES {
        running.signal(name);
        assert_eq!(running.line(), name);
    }
    running.signal("PWR");
    assert_eq!(running.ended().code(), Some(5));
}

#[test]
fn orphans_are_reaped() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let fifo = world.path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let script = format!("(sh -c 'echo $$; read line < {}' &) ; idle", fifo.display());
    let running = Running::start(&sidecar.socket, &["--env", "T=secret:token"], &script);
    let orphan = running.line();
    wait("the adoption", || {
        process(&orphan).is_some_and(|(_, parent)| parent == running.child.id())
    });
    fs::write(&fifo, "go\n").unwrap();
    wait("the orphan's end", || process(&orphan).is_none());
    running.end();
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_with_its_children() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let options = ["--env", "T=secret:token", "--grace", "1s"];
    let mut running = Running::start(
        &sidecar.socket,
        &options,
        "trap '' TERM; sleep 60 & echo $T $!; idle",
    );
    let first = running.line();
    put(&world, "token", "t2");
    running.hear("did not exit within 1s; killing it");
    assert!(running.line().starts_with("t2 "));
    wait("the end of its child processes", || {
        is_over(first.strip_prefix("t1 ").unwrap())
    });
}

#[test]
fn a_program_told_to_stop_is_not_restarted() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let script = "trap 'echo ending' TERM; trap 'kill $s; exit 9' USR1; echo $T; idle";
    let mut running = Running::start(&sidecar.socket, &["--env", "T=secret:token"], script);
    assert_eq!(running.line(), "t1");
    running.signal("TERM");
    assert_eq!(running.line(), "ending");
    put(&world, "token", "t2");
    running.hear("token changed; ignored, because the program is stopping");
    running.signal("USR1");
    assert_eq!(running.ended().code(), Some(9));
    assert!(next(&running.lines).is_none(), "no second start");
}

#[test]
fn unusable_values_do_not_stop_the_program() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let mut running = Running::start(
        &sidecar.socket,
        &["--env", "T=secret:token"],
        "echo $T; idle",
    );
    assert_eq!(running.line(), "t1");
    put(&world, "token", "a\0b");
    running.hear(
        "contains a NUL byte, which the variable T can't hold; use --file; the program keeps",
    );
    put(&world, "token", "t3");
    assert_eq!(running.line(), "t3");
    running.end();
}

/// Takes its time to stop: runs until USR1. On USR2, it prints its value.
const SLOW: &str = "trap 'echo ending' TERM; trap 'kill $s; exit 0' USR1; \
    trap 'echo still $T' USR2; echo $T $$; idle";

#[test]
fn changes_during_a_restart_are_applied() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let mut running = Running::start(
        &sidecar.socket,
        &["--env", "T=secret:token", "--grace", "60s"],
        SLOW,
    );
    assert!(running.line().starts_with("t1 "));
    put(&world, "token", "t2");
    running.hear("token changed; restarting sh");
    assert_eq!(running.line(), "ending");
    put(&world, "token", "a\0b");
    running.hear("use --file; the program will start with the previous values");
    running.signal("USR1");
    assert!(
        running.line().starts_with("t2 "),
        "the newest value that fits an environment variable"
    );
    put(&world, "token", "t3");
    assert_eq!(running.line(), "ending");
    put(&world, "token", "t4");
    wait("a read of the newest", || {
        let status = sidecar.status();
        let secret = &status["secrets"][0];
        let mut versions = secret["versions"].as_array().unwrap().iter();
        versions
            .any(|entry| entry["version"] == secret["version"] && entry["uses"].as_u64() > Some(0))
    });
    running.signal("USR1");
    let line = running.line();
    assert!(line.starts_with("t3 ") || line.starts_with("t4 "), "{line}");
}

#[test]
fn an_oversized_environment_does_not_stop_the_program() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let options = ["A", "B", "C"].map(|name| format!("--env={name}=secret:token"));
    let script = format!("{IDLE}trap 'echo still $A' USR2; echo $A; idle");
    let command = exec(
        &sidecar.socket,
        &options.each_ref().map(String::as_str),
        &["sh", "-c", &script],
    );
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -s 1024; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    let mut running = Running::of(limited);
    assert_eq!(running.line(), "t1");
    put(&world, "token", "x".repeat(100_000));
    running.hear("token changed: environment and arguments take 3");
    running.signal("USR2");
    assert_eq!(running.line(), "still t1");
    put(&world, "token", "t3");
    assert_eq!(running.line(), "t3");
    running.end();
}

#[test]
fn starting_a_process_is_retried() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let fifo = world.path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    // The script hides /proc, which is needed to start a process, and leaves a background process
    // that restores it.
    let script = format!(
        "trap 'mount -t tmpfs none /proc; kill $s; exit 0' TERM; \
         [ $T = t2 ] || setsid sh -c 'read line <{}; umount /proc' >/dev/null 2>&1 & echo $T; idle",
        fifo.display()
    );
    let options = ["--env", "T=secret:token"];
    let mut running = Running::start_among("exec \"$@\"", &sidecar.socket, &options, &script);
    assert_eq!(running.line(), "t1");
    put(&world, "token", "t2");
    running.hear(
        "can't start a process from /proc/self/exe: No such file or directory \
         (os error 2); retrying for up to 30s",
    );
    fs::write(&fifo, "go\n").unwrap();
    assert_eq!(running.line(), "t2");
    // A termination signal still works meanwhile.
    put(&world, "token", "t3");
    running.hear("can't start a process from /proc/self/exe");
    running.end();
    // After the wait, it is an error.
    put(&world, "token", "t2");
    let options = [&options[..], &["--wait", "1s"]].concat();
    wait("the token", || {
        finished(&sidecar.socket, &options, "echo $T").stdout == b"t2\n"
    });
    let mut running = Running::start_among("exec \"$@\"", &sidecar.socket, &options, &script);
    assert_eq!(running.line(), "t2");
    put(&world, "token", "t4");
    assert_eq!(running.ended().code(), Some(126));
}

#[test]
fn the_program_survives_its_sidecar_and_catches_up_on_changes() {
    let (world, config) = world(&[("token", "t1")]);
    let mut sidecar = world.start_with("one", &config, &["demo"]);
    let script = "trap 'echo alive $T' USR1; echo $T; idle";
    let mut running = Running::start(&sidecar.socket, &["--env", "T=secret:token"], script);
    assert_eq!(running.line(), "t1");
    // The stream must be connected before the sidecar stops.
    wait("a read by the listener", || {
        sidecar.status()["secrets"][0]["versions"][0]["uses"].as_u64() > Some(1)
    });
    sidecar.signal("TERM");
    sidecar.ended();
    running.hear("the program keeps running, reconnecting to the sidecar");
    running.signal("USR1");
    assert_eq!(running.line(), "alive t1");
    put(&world, "token", "t2");
    let _sidecar = world.start_with("one", &config, &["demo"]);
    assert_eq!(running.line(), "t2");
    running.end();
}

#[test]
fn exec_waits_for_the_sidecar_and_the_secrets() {
    let (world, config) = world(&[("token", "")]);
    let socket = world.path("one.sock");
    let options = ["--env", "T=secret:token", "--wait", "60s"];
    let mut running = Running::start(&socket, &options, "echo $T; idle");
    running.hear("waiting for up to 1m");
    let sidecar = world.start_with("one", &config, &["demo"]);
    // An empty file is still being written.
    let output = finished(
        &socket,
        &["--env", "T=secret:token", "--wait", "1s"],
        "echo started",
    );
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""));
    assert!(
        err(&output).contains("gave up after 1s: secret token: ")
            && err(&output).contains("(provider_unavailable)"),
        "{}",
        err(&output)
    );
    put(&world, "token", "t1");
    assert_eq!(running.line(), "t1");
    running.end();
    drop(sidecar);
    let _ = fs::remove_file(&socket);
    let output = finished(
        &socket,
        &["--env", "T=secret:token", "--wait", "1s"],
        "echo started",
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("is the sidecar running, and is this its socket"),
        "{}",
        err(&output)
    );
    // A missing secret may still appear.
    fs::remove_file(world.path("token")).unwrap();
    let sidecar = world.launch("one", &config, &["demo"]);
    wait("the sidecar", || socket.exists());
    let mut running = Running::start(&socket, &options, "echo $T; idle");
    running.hear("(secret_not_found); waiting for up to 1m");
    put(&world, "token", "t2");
    assert_eq!(running.line(), "t2");
    running.end();
    // And so may a field.
    put(&world, "token", r#"{"user":"ann"}"#);
    let fields = ["--env", "T=secret:token#password", "--wait", "60s"];
    let mut running = Running::start(&socket, &fields, "echo $T; idle");
    running.hear("(secret_field_not_found); waiting for up to 1m");
    put(&world, "token", r#"{"user":"ann","password":"p1"}"#);
    assert_eq!(running.line(), "p1");
    running.end();
    drop(sidecar);
    let _ = fs::remove_file(&socket);
    // A signal ends the wait.
    let mut running = Running::start(&socket, &["--file", "t=secret:token"], "echo started");
    running.hear("waiting for up to 30s");
    running.signal("INT");
    assert_eq!(running.ended().code(), Some(130));
}

#[test]
fn the_program_dies_with_exec_and_the_next_exec_cleans_up() {
    let (_world, sidecar) = started(&[("token", "t1")]);
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = [
        "--file",
        "t=secret:token",
        "--dir",
        memory.path().to_str().unwrap(),
    ];
    let mut running = Running::start(
        &sidecar.socket,
        &options,
        "echo $$; echo $SIDEKEY_FILES; exec sleep 60",
    );
    let (pid, folder) = (running.line(), PathBuf::from(running.line()));
    running.child.kill().unwrap();
    running.ended();
    wait("the program's end", || is_over(&pid));
    assert!(folder.exists(), "no process was left to remove it");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::open(&folder)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    assert!(finished(&sidecar.socket, &options, "true").status.success());
    assert!(!folder.exists());
}

#[test]
fn the_program_inherits_the_same_as_from_a_shell() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let options = ["--env", "T=secret:token"];
    let socket = sidecar.socket.display();
    let script = "ulimit -c; pwd; echo $OTHER; grep -E '^Sig(Blk|Ign)' /proc/self/status; \
        ls /proc/self/fd | wc -l";
    let plain = |around: &str| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", around])
            .current_dir(world.path(""))
            .env("OTHER", "o")
            .env("SCRIPT", script)
            .stdin(Stdio::null());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{}", err(&output));
        out(&output)
    };
    let inside = format!(
        "{} exec --socket {socket} {} -- sh -c \"$SCRIPT\"",
        binary(),
        options.join(" ")
    );
    assert_eq!(
        plain(&format!("ulimit -S -c 0; {inside}")),
        plain("ulimit -S -c 0; sh -c \"$SCRIPT\"")
    );
    assert_eq!(plain(&inside), plain("sh -c \"$SCRIPT\""));
    assert_eq!(
        plain(&format!("trap '' HUP; {inside}")),
        plain("trap '' HUP; sh -c \"$SCRIPT\""),
        "as nohup starts it"
    );
    // The files of a non-dumpable process belong to root, whatever its user, and no other user can
    // read them.
    let running = Running::start(&sidecar.socket, &options, "echo ready; idle");
    assert_eq!(running.line(), "ready");
    assert_eq!(
        fs::metadata(format!("/proc/{}/mem", running.child.id()))
            .unwrap()
            .uid(),
        0
    );
    assert_eq!(
        fs::metadata(format!("/proc/{}/environ", running.child.id()))
            .unwrap()
            .permissions()
            .mode()
            & 0o077,
        0
    );
    running.end();
}

#[test]
fn the_help_shows_an_example() {
    let output = Command::new(binary())
        .args(["exec", "--help"])
        .output()
        .unwrap();
    let mut text = String::new();
    (&output.stdout[..]).read_to_string(&mut text).unwrap();
    for expected in [
        "NAME=secret:SECRET[?OPTIONS][#FIELD]",
        "restart|ignore|signal:NAME",
        "SIDEKEY_FILES",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(!text.contains("launch"));
}
