//! `sidekey exec` in its own namespaces and on a terminal, with unshare, python3 and bash.

use std::{fs, process::Command};

use crate::support::{
    exec::{Running, err, exec, finished, out, put, started, unshared},
    harness::{World, binary, wait},
};

#[test]
fn writing_to_a_full_file_system_is_retried_while_the_program_runs() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let memory = tempfile::tempdir().unwrap();
    let place = memory.path().to_str().unwrap();
    let mounts = format!("mount -t tmpfs -o size=64k none {place} && exec \"$@\"");
    let filler = format!("{place}/filler");
    let show = "show() { echo $1 $(cat $SIDEKEY_FILES/t) $$; }; trap 'show hup' HUP; \
        trap 'show usr1' USR1;";
    let script = format!(
        "{show} trap 'rm {filler}' USR2; show start; [ -e {place}/once ] \
         || cat /dev/zero >{filler} 2>/dev/null; : >{place}/once; echo full; idle"
    );
    for (change, told) in [("restart", "start"), ("signal:HUP", "hup")] {
        put(&world, "token", "t1");
        let options = [
            "--file",
            "t=secret:token",
            "--dir",
            place,
            "--on-change",
            change,
        ];
        wait("the token", || {
            finished(&sidecar.socket, &options[..2], "cat $SIDEKEY_FILES/t").stdout == b"t1"
        });
        let mut running = Running::start_among(&mounts, &sidecar.socket, &options, &script);
        let first = running.line();
        assert_eq!(running.line(), "full", "{first}");
        put(&world, "token", "t2");
        running.hear("No space left on device");
        assert!(
            running
                .heard
                .contains("token changed: can't write files to ")
                && running.heard.contains("; retrying")
        );
        running.signal("USR1");
        assert_eq!(
            running.line(),
            first.replace("start", "usr1"),
            "with what it had"
        );
        running.signal("USR2");
        let second = running.line();
        assert!(second.starts_with(&format!("{told} t2 ")), "{second}");
        running.end();
    }
}

#[test]
fn exec_works_as_pid_1() {
    let (_world, sidecar) = started(&[("token", "t1")]);
    let command = exec(
        &sidecar.socket,
        &["--env", "T=secret:token"],
        &["sh", "-c", "echo $T $PPID; exit 3"],
    );
    let kinds = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let output = unshared(&kinds, "exec \"$@\"", &command).output().unwrap();
    assert_eq!(
        (output.status.code(), out(&output).as_str()),
        (Some(3), "t1 1\n"),
        "{}",
        err(&output)
    );
}

/// Types at a command on a terminal and reads its output. `{shell}` is a shell with job control.
const TYPIST: &str = r#"
import os, pty, sys, select, time
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
seen = ""
def expect(text):
    global seen
    until = time.time() + 60
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, until - time.time()))
        if not ready:
            sys.exit("waited for %r, saw %r" % (text, seen))
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            piece = b""
        if not piece:
            sys.exit("%r never came, saw %r" % (text, seen))
        seen += piece.decode(errors="replace")
    seen = seen[seen.index(text) + len(text):]
def type(keys):
    os.write(terminal, keys)
exec(open(sys.argv[1]).read())
"#;

fn on_a_terminal(world: &World, script: &str, command: &[&str]) {
    let (typist, steps) = (world.path("typist.py"), world.path("steps.py"));
    fs::write(&typist, TYPIST).unwrap();
    fs::write(&steps, script).unwrap();
    let output = Command::new("python3")
        .args([&typist, &steps])
        .args(command)
        .env("TERM", "dumb")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
}

#[test]
fn the_program_owns_the_terminal() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let program = world.path("program.sh");
    // Counts the signals it gets, and echoes typed lines.
    let text = "trap 'n=$((n+1))' INT; n=0; echo ready $T; while :; do if read line; \
        then echo got $line after $n; [ \"$line\" = end ] && exit 3; fi; done";
    fs::write(&program, text).unwrap();
    let (socket, program) = (sidecar.socket.to_str().unwrap(), program.to_str().unwrap());
    let command = [
        binary(),
        "exec",
        "--socket",
        socket,
        "--settle",
        "100ms",
        "--env",
        "T=secret:token",
        "--",
        "bash",
        program,
    ];
    // Without a shell to resume it after ^Z, it continues at once.
    let steps = "expect('ready t1')\ntype(b'\\x03')\nexpect('^C')\ntype(b'one\\n')\n\
        expect('got one after 1')\n\
        type(b'\\x1a')\nexpect('^Z')\ntype(b'two\\n')\nexpect('got two after 1')\n\
        type(b'end\\n')\nexpect('got end')\n\
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3\n";
    on_a_terminal(&world, steps, &command);
    // In a shell, it is a normal job. After a restart the program gets the terminal back, and after
    // its exit the shell does.
    let line = command.join(" ");
    let token = world.path("token");
    let steps = format!(
        "expect('prompt> ')\ntype(b'{line}\\n')\nexpect('ready t1')\n\
         type(b'\\x1a')\nexpect('Stopped')\nexpect('prompt> ')\ntype(b'fg\\n')\nexpect('exec')\n\
         type(b'one\\n')\nexpect('got one after 0')\n\
         open({token:?} + '.next', 'w').write('t2'); os.rename({token:?} + '.next', {token:?})\n\
         expect('ready t2')\n\
         type(b'\\x03')\nexpect('^C')\ntype(b'two\\n')\nexpect('got two after 1')\n\
         type(b'end\\n')\nexpect('got end')\n\
         expect('prompt> ')\ntype(b'echo code $?\\n')\nexpect('code 3')\ntype(b'exit\\n')\n"
    );
    let settings = world.path("bashrc");
    fs::write(&settings, "PS1='prompt> '\n").unwrap();
    on_a_terminal(
        &world,
        &steps,
        &["bash", "--rcfile", settings.to_str().unwrap(), "-i"],
    );
}

#[test]
fn an_interrupt_during_a_restart_stops_exec() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let socket = sidecar.socket.to_str().unwrap();
    let program = "trap 'echo ending' TERM; echo ready $T; while :; do sleep 60 & wait $!; done";
    let options = [
        "--settle",
        "100ms",
        "--grace",
        "60s",
        "--env",
        "T=secret:token",
    ];
    let command = [
        &[binary(), "exec", "--socket", socket][..],
        &options,
        &["--", "bash", "-c", program],
    ]
    .concat();
    let token = world.path("token");
    let steps = format!(
        "expect('ready t1')\nopen({token:?} + '.next', 'w').write('t2'); \
         os.rename({token:?} + '.next', {token:?})\nexpect('ending')\n\
         type(b'\\x03')\ntry:\n    expect('ready t2')\n\
         except SystemExit as end:\n    assert 'never came' in str(end), end\n\
         else:\n    sys.exit('started anew')\n\
         assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130\n"
    );
    on_a_terminal(&world, &steps, &command);
}

#[test]
fn a_pipeline_shares_the_terminal_with_the_program() {
    let (world, sidecar) = started(&[("token", "t1")]);
    let settings = world.path("bashrc");
    fs::write(&settings, "PS1='prompt> '\n").unwrap();
    let inside = format!(
        "{} exec --socket {} --env T=secret:token -- bash -c",
        binary(),
        sidecar.socket.display()
    );
    // A pager reads the terminal while the program runs. The program can read it too, and gets ^C.
    let pager = "(read line; echo pager has $line; read key </dev/tty; echo pager got $key; cat)";
    let ask = "read line </dev/tty; echo answer $line";
    let steps = format!(
        "expect('prompt> ')\ntype(b\"{inside} 'echo $T; exec sleep 60' | {pager}\\n\")\n\
         expect('pager has t1')\n\
         type(b'one\\n')\nexpect('pager got one')\ntype(b'\\x03')\nexpect('prompt> ')\n\
         type(b\"echo the $({inside} '{ask}')\\n\")\nexpect('\\n')\ntype(b'two\\n')\n\
         expect('the answer two')\n\
         expect('prompt> ')\ntype(b'exit\\n')\n"
    );
    on_a_terminal(
        &world,
        &steps,
        &["bash", "--rcfile", settings.to_str().unwrap(), "-i"],
    );
}
