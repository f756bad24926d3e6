//! Files rendered from secrets: a real sidecar, with secrets in files.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use crate::support::{
    exec::Running,
    files,
    harness::{Sidecar, World, binary, uid, wait},
};

/// Writes a secret's file atomically: a new file is renamed over it.
fn put(world: &World, name: &str, text: impl AsRef<[u8]>) {
    files::put(&world.path(name), text);
}

fn secret(name: &str) -> String {
    format!("[[secret]]\nname = {name:?}\nsource = \"file:{name}\"\nrefresh = \"500ms\"\n")
}

fn read(world: &World, name: &str) -> String {
    fs::read_to_string(world.path(name)).unwrap_or_default()
}

fn wait_for(world: &World, name: &str, text: &str) {
    wait(&format!("{text:?} in {name}"), || read(world, name) == text);
}

fn render(sidecar: &Sidecar, file: &str) -> Value {
    let status = sidecar.status();
    let is_it = |render: &&Value| render["file"].as_str().unwrap().ends_with(file);
    status["renders"]
        .as_array()
        .unwrap()
        .iter()
        .find(is_it)
        .unwrap()
        .clone()
}

/// Returns the value of a file's metric, or 0 if there is no such series.
fn metric(sidecar: &Sidecar, name: &str, file: &str, label: &str) -> f64 {
    let (_, metrics) = sidecar.ops("/metrics");
    let of_file = format!("/{file}\"");
    let mut series = metrics.lines().filter(|line| {
        line.starts_with(&format!("{name}{{")) && line.contains(&of_file) && line.contains(label)
    });
    series.next().map_or(0.0, |line| {
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    })
}

/// Sends SIGHUP and waits until the file has been checked again.
fn look_again(sidecar: &Sidecar, file: &str) {
    let before = render(sidecar, file)["confirmed_at"].clone();
    // Timestamps have millisecond resolution at best.
    sidecar.signal("HUP");
    wait("a look at the file", || {
        render(sidecar, file)["confirmed_at"] != before
    });
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn is_alive(pid: &str) -> bool {
    // A zombie isn't alive.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

#[test]
fn a_secret_is_written_with_mode_and_owner_and_recorded() {
    let world = World::new();
    let json = r#"{"user":"ann","password":"it's \"s3cret\""}"#;
    put(&world, "db", json);
    put(&world, "tls", [0x30, 0x82, 0xff, 0x00]);
    // Only root can change a file's owner.
    let (owner, group) = (uid(), rustix::process::getegid().as_raw());
    let config = format!(
        "audit.file = \"audit.log\"\n{}{}\
         [[render]]\nfile = \"db.json\"\nsecret = \"db\"\nmode = \"0440\"\nowner = {owner}\n\
         group = {group}\n\
         [[render]]\nfile = \"password\"\nsecret = \"db\"\nfield = \"password\"\n\
         [[render]]\nfile = \"key.der\"\nsecret = \"tls\"\n\
         [[render]]\nfile = \"app.env\"\ntemplate = \"app.env.j2\"\nmode = \"0640\"\n",
        secret("db"),
        secret("tls")
    );
    let template = "USER={{ secret(\"db\").user }}\nPASSWORD={{ secret('db').password|quote }}\n\
        CERT={{ secret(\"tls\").base64 }}\n";
    fs::write(world.path("app.env.j2"), template).unwrap();
    let mut sidecar = world.start_with("one", &config, &[]);

    assert_eq!(read(&world, "db.json"), json);
    let metadata = fs::metadata(world.path("db.json")).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o440, owner, group)
    );
    assert_eq!(read(&world, "password"), "it's \"s3cret\"");
    assert_eq!(mode(&world.path("password")), 0o600);
    assert_eq!(
        fs::read(world.path("key.der")).unwrap(),
        [0x30, 0x82, 0xff, 0x00]
    );
    assert_eq!(
        read(&world, "app.env"),
        "USER=ann\nPASSWORD='it'\\''s \"s3cret\"'\nCERT=MIL/AA==\n"
    );
    assert_eq!(mode(&world.path("app.env")), 0o640);

    let status = sidecar.status();
    let versions: Vec<_> = status["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|secret| secret["version"].clone())
        .collect();
    let env = render(&sidecar, "app.env");
    assert_eq!(
        env["secrets"],
        json!([
            { "secret": "db", "version": versions[0] },
            { "secret": "tls", "version": versions[1] },
        ])
    );
    assert!(
        env["written_at"].is_string()
            && env["last_error"].is_null()
            && env["last_notice"].is_null()
    );
    // A version in a rendered file counts as used.
    assert!(status["secrets"][0]["versions"][0]["last_used"].is_string());
    assert_eq!(
        metric(&sidecar, "sidekey_render_writes_total", "app.env", ""),
        1.0
    );
    assert_eq!(
        metric(&sidecar, "sidekey_render_failing", "app.env", ""),
        0.0
    );
    assert!(
        metric(
            &sidecar,
            "sidekey_render_last_success_timestamp_seconds",
            "app.env",
            ""
        ) > 1e9
    );

    sidecar.signal("TERM");
    sidecar.ended();
    let log = read(&world, "audit.log");
    let records: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let written: Vec<_> = records
        .iter()
        .filter(|record| record["event"] == "render.written")
        .collect();
    assert_eq!(written.len(), 4);
    let of_env = written
        .iter()
        .find(|record| {
            record["details"]["file"]
                .as_str()
                .unwrap()
                .ends_with("/app.env")
        })
        .unwrap();
    assert_eq!(of_env["details"]["secrets"], env["secrets"]);
    for text in [&log, &sidecar.log(), &status.to_string()] {
        assert!(
            !text.contains("s3cret\\\"") && !text.contains("s3cret\""),
            "{text}"
        );
    }
}

#[test]
fn readers_only_see_complete_files_with_their_mode() {
    let world = World::new();
    let value = |n: u32| format!("{n:03}").repeat(20_000);
    put(&world, "a", value(0));
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\nmode = \"0640\"\ndebounce = \"0s\"\n",
        secret("a")
    );
    let _sidecar = world.start_with("one", &config, &[]);
    let (path, over) = (world.path("out"), Arc::new(AtomicBool::new(false)));
    let reader = std::thread::spawn({
        let (path, over) = (path.clone(), Arc::clone(&over));
        move || {
            let mut seen = std::collections::BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                let mut file = fs::File::open(&path).unwrap();
                assert_eq!(
                    file.metadata().unwrap().permissions().mode() & 0o7777,
                    0o640
                );
                let mut text = String::new();
                std::io::Read::read_to_string(&mut file, &mut text).unwrap();
                assert_eq!(text.len(), 60_000);
                assert!(
                    text.as_bytes()
                        .chunks(3)
                        .all(|chunk| chunk == &text.as_bytes()[..3]),
                    "one value alone"
                );
                seen.insert(text[..3].to_owned());
            }
            seen.len()
        }
    });
    for n in 1..=30 {
        put(&world, "a", value(n));
        wait("the new value", || {
            fs::read(&path)
                .unwrap()
                .starts_with(format!("{n:03}").as_bytes())
        });
    }
    over.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 1);
    assert_eq!(
        fs::read_dir(world.path(""))
            .unwrap()
            .filter(|entry| entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with(".out"))
            .count(),
        0
    );
}

#[test]
fn a_file_is_written_only_if_it_differs() {
    let world = World::new();
    put(&world, "a", "one");
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\n\
         command = [\"sh\", \"-c\", \"echo run >> runs\"]\n",
        secret("a")
    );
    let path = world.path("out");
    let inode = || fs::metadata(&path).unwrap().ino();
    let first = {
        let mut sidecar = world.start_with(
            "one",
            &config
                .replace("\"sh\"", "\"./run\"")
                .replace(", \"-c\", \"echo run >> runs\"", ""),
            &[],
        );
        // A command with a slash is relative to the config's directory. This one doesn't exist, and
        // the file is written anyway.
        wait("the notice", || {
            render(&sidecar, "out")["last_notice"]["result"] == "failed"
        });
        assert!(
            render(&sidecar, "out")["last_notice"]["message"]
                .as_str()
                .unwrap()
                .contains("/run")
        );
        sidecar.signal("TERM");
        sidecar.ended();
        inode()
    };
    // A new process finds the file up to date.
    let config = config.replace("runs", world.path("runs").to_str().unwrap());
    let sidecar = world.start_with("one", &config, &[]);
    assert!(
        render(&sidecar, "out")["written_at"].is_null()
            && render(&sidecar, "out")["confirmed_at"].is_string()
    );
    put(&world, "a", "one");
    look_again(&sidecar, "out");
    assert_eq!((inode(), read(&world, "runs").as_str()), (first, ""));
    // The file was changed by others: its mode, its contents, or removed.
    // A command that is due while another one runs covers both, so each one is waited for.
    let wait_for_command = |count| {
        wait("the command", || {
            read(&world, "runs").lines().count() == count
        });
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    sidecar.signal("HUP");
    wait("the mode", || mode(&path) == 0o600);
    wait_for_command(1);
    fs::write(&path, "two").unwrap();
    sidecar.signal("HUP");
    wait_for(&world, "out", "one");
    wait_for_command(2);
    fs::remove_file(&path).unwrap();
    sidecar.signal("HUP");
    wait_for(&world, "out", "one");
    wait_for_command(3);
    assert_eq!(
        metric(&sidecar, "sidekey_render_writes_total", "out", ""),
        3.0
    );
}

#[test]
fn secrets_that_rotate_together_cause_one_write_and_one_command() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        put(&world, name, "1");
    }
    let text = "{{ secret('a').value }}{{ secret('b').value }}";
    let runs = world.path("runs");
    let config = format!(
        "{0}{1}{2}[[render]]\nfile = \"out\"\ntemplate_text = \"{text}\"\ndebounce = \"2s\"\n\
         command = [\"sh\", \"-c\", 'cat \"$SIDEKEY_RENDERED\" >> {3}; echo >> {3}']\n",
        secret("a"),
        secret("b"),
        secret("c"),
        runs.display(),
    );
    let sidecar = world.start_with("one", &config, &[]);
    wait_for(&world, "runs", "11\n");
    put(&world, "a", "2");
    put(&world, "b", "2");
    wait_for(&world, "runs", "11\n22\n");
    assert_eq!(
        metric(&sidecar, "sidekey_render_writes_total", "out", ""),
        2.0
    );
    // A change to a secret that the file doesn't use has no effect.
    put(&world, "c", "2");
    look_again(&sidecar, "out");
    assert_eq!(
        metric(&sidecar, "sidekey_render_writes_total", "out", ""),
        2.0
    );
    assert_eq!(
        metric(
            &sidecar,
            "sidekey_render_notices_total",
            "out",
            "result=\"ok\""
        ),
        2.0
    );
    assert_eq!(read(&world, "runs"), "11\n22\n");
}

#[test]
fn a_change_during_a_command_runs_it_once_more() {
    let world = World::new();
    put(&world, "a", "1");
    let (runs, go) = (world.path("runs"), world.path("go"));
    let script = format!(
        "echo run >> {}; while ! [ -e {} ]; do sleep 0.02; done",
        runs.display(),
        go.display()
    );
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\ndebounce = \"0s\"\ntimeout = \"50s\"\n\
         command = [\"sh\", \"-c\", {script:?}]\n",
        secret("a")
    );
    let sidecar = world.start_with("one", &config, &[]);
    wait_for(&world, "runs", "run\n");
    for value in ["2", "3", "4"] {
        put(&world, "a", value);
        wait_for(&world, "out", value);
    }
    wait("four writes", || {
        metric(&sidecar, "sidekey_render_writes_total", "out", "") == 4.0
    });
    assert_eq!(read(&world, "runs"), "run\n");
    fs::write(&go, "").unwrap();
    wait("two runs", || {
        metric(
            &sidecar,
            "sidekey_render_notices_total",
            "out",
            "result=\"ok\"",
        ) == 2.0
    });
    look_again(&sidecar, "out");
    assert_eq!(read(&world, "runs"), "run\nrun\n");
}

#[test]
fn a_command_may_open_as_many_files_as_the_sidecar_when_it_was_started() {
    let world = World::new();
    put(&world, "a", "1");
    // The limit is set a moment after the command has started.
    let script = format!(
        "until [ $(ulimit -Sn) = 512 ]; do sleep 0.02; done; echo ok > {}",
        world.path("restored").display()
    );
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\ntimeout = \"50s\"\n\
         command = [\"sh\", \"-c\", {script:?}]\n",
        secret("a")
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 512; exec \"$@\"", "sh"])
        .args([binary(), "serve", "--config"])
        .arg(world.configure("one", &config, &[]))
        .envs(world.env.iter().cloned());
    let sidecar = Running::of(command);
    wait_for(&world, "restored", "ok\n");
    let own = soft_limit_of_files(sidecar.child.id());
    assert!(own > Some(512), "the sidecar's own limit: {own:?}");
}

/// Returns the soft limit of open files of a process.
fn soft_limit_of_files(process: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[test]
fn check_reports_render_problems_with_their_line() {
    let world = World::new();
    put(&world, "a", "1");
    fs::write(
        world.path("bad.j2"),
        "{{ secret('a').value }}\n{{ secret('nobody').value }}\n",
    )
    .unwrap();
    fs::write(world.path("broken.j2"), "ok\n{% if %}\n").unwrap();
    let lines = [
        "[listen]",
        "socket = \"s\"",
        "[[secret]]",
        "name = \"a\"",
        "source = \"file:a\"",
        "[[secret]]",
        "name = \"team-*\"",
        "source = \"file:teams/*\"",
        "allow = [\"team-x\"]",
        "[[render]]",
        "file = \"one\"",
        "template = \"bad.j2\"",
        "[[render]]",
        "file = \"./one\"",
        "template = \"broken.j2\"",
        "[[render]]",
        "file = \"a\"",
        "secret = \"team-y\"",
        "[[render]]",
        "file = \"two\"",
        "secret = \"team-x\"",
        "template_text = \"x\"",
        "command = [\"true\"]",
        "signal = \"HUP\"",
        "[[render]]",
        "file = \"three\"",
        "secret = \"team-x\"",
        "signal = \"SIGNAL\"",
        "pid_file = \"pid\"",
        "[[render]]",
        "file = \"four\"",
        "signal = \"HUP\"",
        "mode = \"0999\"",
        "owner = \"nobody-of-that-name\"",
        "[[render]]",
        "file = \"five\"",
        "template_text = '''",
        "{{ secret('team-y').value|rot13 }}",
        "{{ nothing }}'''",
        "command = []",
        "[[render]]",
        "file = \"x/../teams/team\"",
        "secret = \"a\"",
        "[[render]]",
        "file = \"link/inner\"",
        "secret = \"a\"",
        "[[render]]",
        "file = \"tls/../.one.new\"",
        "secret = \"a\"",
        "[[secret]]",
        "name = \"tls\"",
        "source = \"file:tls\"",
    ];
    fs::create_dir(world.path("tls")).unwrap();
    symlink("tls", world.path("link")).unwrap();
    fs::write(world.path("c.toml"), lines.join("\n")).unwrap();
    let output = world.run(&["check", "--config", world.path("c.toml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let folder = format!(
        "{}/",
        world.path("").display().to_string().trim_end_matches('/')
    );
    let told = String::from_utf8(output.stderr)
        .unwrap()
        .replace(&folder, "");
    let problems: Vec<&str> = told.lines().skip(1).collect();
    assert_eq!(
        problems,
        [
            "c.toml:12: render[0].template: bad.j2:2: unknown secret \"nobody\"; \
             no [[secret]] matches it",
            "c.toml:14: render[1].file: one is already written by the [[render]] on line 11",
            "c.toml:15: render[1].template: broken.j2:2: unexpected end of block",
            "c.toml:17: render[2].file: a is the source of the secret a",
            "c.toml:18: render[2].secret: unknown secret \"team-y\"; no [[secret]] matches it",
            "c.toml:19: render[3]: secret, template and template_text are mutually exclusive",
            "c.toml:23: render[3].command: command and signal are mutually exclusive",
            "c.toml:28: render[4].signal: unsupported signal \"SIGNAL\"; expected one of: \
             HUP, INT, QUIT, TERM, USR1, USR2, WINCH, CONT",
            "c.toml:30: render[5].secret: is required, unless template or template_text is set",
            "c.toml:30: render[5].pid_file: is required with signal; it is the file \
             that holds the process id",
            "c.toml:33: render[5].mode: expected octal digits such as \"0660\", found \"0999\"",
            "c.toml:34: render[5].owner: no such user: \"nobody-of-that-name\"",
            "c.toml:37: render[6].template_text: template_text:1: unknown filter \"rot13\"",
            "c.toml:37: render[6].template_text: template_text:2: nothing is not defined; \
             write secret(\"NAME\") for a secret",
            "c.toml:40: render[6].command: must begin with a program",
            "c.toml:42: render[7].file: x/../teams/team is the source of the secret team-*",
            "c.toml:45: render[8].file: link/inner is the source of the secret tls",
            "c.toml:48: render[9].file: tls/../.one.new is already written by the [[render]] \
             on line 11",
        ]
    );
}

#[test]
fn a_failing_template_keeps_the_file_and_is_reported() {
    let world = World::new();
    put(&world, "db", r#"{"password":"s3cret-1"}"#);
    let config = format!(
        "{}[[render]]\nfile = \"out\"\ndebounce = \"0s\"\n\
         template_text = \"{{{{ secret('db').password }}}}\"\n",
        secret("db")
    );
    let sidecar = world.start_with("one", &config, &[]);
    assert_eq!(read(&world, "out"), "s3cret-1");
    let before = render(&sidecar, "out");
    put(&world, "db", r#"{"passwort":"s3cret-2"}"#);
    wait("the failure", || {
        render(&sidecar, "out")["last_error"]["code"] == "render_template"
    });
    // Failures are retried automatically and logged once.
    wait("several tries", || {
        metric(
            &sidecar,
            "sidekey_render_failures_total",
            "out",
            "reason=\"template\"",
        ) >= 3.0
    });
    let failed = render(&sidecar, "out");
    assert_eq!(
        failed["last_error"]["message"],
        "template_text:1: undefined value: the secret db has no member \"password\""
    );
    assert_eq!(failed["secrets"], before["secrets"]);
    assert_eq!(read(&world, "out"), "s3cret-1");
    assert_eq!(metric(&sidecar, "sidekey_render_failing", "out", ""), 1.0);
    sidecar.wait_log("the file is left as it is");
    assert_eq!(
        sidecar.log().matches("the file is left as it is").count(),
        1,
        "{}",
        sidecar.log()
    );
    assert_eq!(sidecar.ops("/readyz").0, 200);
    put(&world, "db", r#"{"password":"s3cret-3"}"#);
    wait_for(&world, "out", "s3cret-3");
    wait("the end of the failure", || {
        render(&sidecar, "out")["last_error"].is_null()
    });
    assert_eq!(metric(&sidecar, "sidekey_render_failing", "out", ""), 0.0);
    assert!(!sidecar.log().contains("s3cret"));
}

#[test]
fn a_hanging_command_is_killed_with_its_children_and_blocks_nothing() {
    let world = World::new();
    put(&world, "a", "1");
    let pids = world.path("pids");
    let script = format!(
        "echo $$ >> {0}; sleep 120 & echo $! >> {0}; wait",
        pids.display()
    );
    let config = format!(
        "{}[[render]]\nfile = \"hangs\"\nsecret = \"a\"\ndebounce = \"0s\"\ntimeout = \"1s\"\n\
         retries = 1\ncommand = [\"sh\", \"-c\", {script:?}]\n\
         [[render]]\nfile = \"other\"\nsecret = \"a\"\ndebounce = \"0s\"\n",
        secret("a")
    );
    let sidecar = world.start_with("one", &config, &[]);
    wait("the command", || read(&world, "pids").lines().count() >= 2);
    put(&world, "a", "2");
    wait_for(&world, "other", "2");
    wait_for(&world, "hangs", "2");
    let timeouts = || {
        metric(
            &sidecar,
            "sidekey_render_notices_total",
            "hangs",
            "result=\"timeout\"",
        )
    };
    wait("two tries", || timeouts() >= 2.0);
    wait("the end of all processes", || {
        read(&world, "pids").lines().all(|pid| !is_alive(pid))
    });
    let told = render(&sidecar, "hangs")["last_notice"].clone();
    assert_eq!(told["result"], "timeout");
    assert!(told["message"].as_str().unwrap().contains("longer than 1s"));
    assert_eq!(
        metric(&sidecar, "sidekey_render_notice_failing", "hangs", ""),
        1.0
    );
    assert_eq!(sidecar.ops("/readyz").0, 200);
    // Retries are limited, and SIGHUP starts them again.
    wait("the last try", || sidecar.log().contains("retries_left=0"));
    let before = timeouts();
    sidecar.signal("HUP");
    wait("another try", || timeouts() > before);
}

#[test]
fn a_failing_command_is_retried_and_its_output_logged_without_secrets() {
    let world = World::new();
    put(&world, "a", "top-s3cret\n");
    let marker = world.path("marker");
    let script = format!(
        "echo \"in: $(cat $SIDEKEY_RENDERED)\"; echo to stderr >&2; test -e {0} || \
         {{ touch {0}; exit 7; }}; echo done; env | grep -c NOTIFY_SOCKET",
        marker.display()
    );
    let mut world = world;
    let supervisor = std::os::unix::net::UnixDatagram::bind(world.path("notify")).unwrap();
    world.env.push((
        "NOTIFY_SOCKET",
        world.path("notify").to_str().unwrap().into(),
    ));
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\ncommand = [\"sh\", \"-c\", {:?}]\n",
        secret("a"),
        format!("{script} || true")
    );
    let sidecar = world.start_with("one", &config, &[]);
    let notices = |result: &str| metric(&sidecar, "sidekey_render_notices_total", "out", result);
    wait("success", || notices("result=\"ok\"") == 1.0);
    assert_eq!(notices("result=\"failed\""), 1.0);
    assert_eq!(render(&sidecar, "out")["last_notice"]["result"], "ok");
    for text in ["to stderr", "done", "0"] {
        sidecar.wait_log(&format!("command output: {text}"));
    }
    let log = sidecar.log();
    assert!(log.contains("exit status: 7"), "{log}");
    assert!(
        log.contains("(redacted: the line contains a secret)") && !log.contains("top-s3cret"),
        "{log}"
    );
    drop(supervisor);
}

#[test]
fn command_output_with_the_previous_value_is_not_logged() {
    let world = World::new();
    put(&world, "a", r#"{"pin":9876543210,"key":"old-s3cret"}"#);
    let former = world.path("former");
    let script = format!(
        "cat {0}; echo; cat $SIDEKEY_RENDERED | tee {0}; echo; echo 9876543210; echo end",
        former.display()
    );
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\ndebounce = \"0s\"\n\
         command = [\"sh\", \"-c\", {script:?}]\n",
        secret("a")
    );
    let sidecar = world.start_with("one", &config, &[]);
    let ends = |count| sidecar.log().matches("command output: end").count() == count;
    wait("the first command", || ends(1));
    put(&world, "a", r#"{"key":"new-s3cret"}"#);
    wait("the second command", || ends(2));
    let log = sidecar.log();
    assert!(
        !log.contains("s3cret") && !log.contains("9876543210"),
        "{log}"
    );
    // The value is redacted twice, and the number inside it on each of its lines.
    assert_eq!(
        log.matches("(redacted: the line contains a secret)")
            .count(),
        5,
        "{log}"
    );
}

/// The template uses the value as a secret's name, and no such secret exists.
#[test]
fn a_value_used_as_a_name_is_not_logged() {
    let world = World::new();
    put(&world, "a", "top-s3cret");
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nrequired = false\n\
         template_text = \"{{{{ secret(secret('a').value).value }}}}\"\n",
        secret("a")
    );
    let sidecar = world.start_with("one", &config, &[]);
    wait("the refusal", || {
        render(&sidecar, "out")["last_error"]["code"] == "render_secret"
    });
    assert!(!sidecar.status().to_string().contains("top-s3cret"));
    sidecar.wait_log("the file is left as it is: a secret whose name the template computes");
    assert!(!sidecar.log().contains("top-s3cret"), "{}", sidecar.log());
}

#[test]
fn a_value_in_a_stale_file_counts_as_in_use() {
    let world = World::new();
    put(&world, "a", r#"{"key":"old"}"#);
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\nfield = \"key\"\ndebounce = \"0s\"\n",
        secret("a")
    );
    let sidecar = world.start_with("one", &config, &[]);
    let version = render(&sidecar, "out")["secrets"][0]["version"].clone();
    let last_used = || {
        let status = sidecar.status();
        let versions = status["secrets"][0]["versions"].as_array().unwrap().clone();
        versions
            .into_iter()
            .find(|of| of["version"] == version)
            .unwrap()["last_used"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    put(&world, "a", r#"{"no":"key"}"#);
    wait("the failure", || {
        render(&sidecar, "out")["last_error"].is_object()
    });
    let before = last_used();
    wait("another use of the rendered version", || {
        last_used() > before
    });
}

#[test]
fn the_process_in_the_pid_file_is_signaled() {
    let world = World::new();
    put(&world, "a", "1");
    let (pid, got) = (world.path("pid"), world.path("got"));
    let script = format!(
        "trap 'echo hup >> {}' HUP; echo $$ > {}; while :; do sleep 0.02; done",
        got.display(),
        pid.display()
    );
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\ndebounce = \"0s\"\nsignal = \"SIGHUP\"\n\
         pid_file = \"pid\"\n",
        secret("a")
    );
    let sidecar = world.start_with("one", &config, &[]);
    // The reading process hasn't started yet.
    wait("a failure", || {
        render(&sidecar, "out")["last_notice"]["result"] == "failed"
    });
    assert!(
        render(&sidecar, "out")["last_notice"]["message"]
            .as_str()
            .unwrap()
            .contains("pid_file")
    );
    let mut reader = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    wait("the reader", || !read(&world, "pid").is_empty());
    put(&world, "a", "2");
    wait("the signal", || read(&world, "got").contains("hup"));
    wait("the notice", || {
        render(&sidecar, "out")["last_notice"]["result"] == "ok"
    });
    reader.kill().unwrap();
    reader.wait().unwrap();
    put(&world, "a", "3");
    wait("no such process", || {
        render(&sidecar, "out")["last_notice"]["message"]
            .as_str()
            .is_some_and(|message| message.contains("No such process"))
    });
}

#[test]
fn a_deleted_secret_disappears_from_the_file() {
    let world = World::new();
    put(&world, "a", "1");
    let config = format!(
        "{}[[render]]\nfile = \"out\"\nsecret = \"a\"\ndebounce = \"0s\"\n",
        secret("a")
    );
    let sidecar = world.start_with("one", &config, &[]);
    fs::remove_file(world.path("a")).unwrap();
    wait("the failure", || {
        render(&sidecar, "out")["last_error"]["code"] == "render_secret"
    });
    assert!(sidecar.status()["secrets"][0]["version"].is_null());
    assert_eq!(read(&world, "out"), "1");
    put(&world, "a", "2");
    wait_for(&world, "out", "2");
}

#[test]
fn readiness_waits_for_required_files() {
    let world = World::new();
    put(&world, "a", "1");
    let config = format!(
        "{}[[render]]\nfile = \"there/out\"\nsecret = \"a\"\n\
         [[render]]\nfile = \"nowhere/out\"\nsecret = \"a\"\nrequired = false\n",
        secret("a")
    );
    let sidecar = world.launch("one", &config, &[]);
    wait("the failure", || {
        render(&sidecar, "there/out")["last_error"]["code"] == "render_write"
    });
    let (code, pending) = sidecar.ops("/readyz");
    assert_eq!(code, 503);
    assert!(
        pending.contains("there/out")
            && pending.contains("is missing; create it")
            && !pending.contains("nowhere"),
        "{pending}"
    );
    fs::create_dir(world.path("there")).unwrap();
    sidecar.wait_ready();
    assert_eq!(read(&world, "there/out"), "1");
    sidecar.wait_log("rendering works again");
}

#[test]
fn symlinks_and_special_files_are_not_replaced() {
    let world = World::new();
    put(&world, "a", "1");
    fs::write(world.path("victim"), "untouched").unwrap();
    symlink("victim", world.path("link")).unwrap();
    fs::create_dir(world.path("folder")).unwrap();
    let renders: String = ["link", "folder"]
        .iter()
        .map(|file| format!("[[render]]\nfile = {file:?}\nsecret = \"a\"\nrequired = false\n"))
        .collect();
    let sidecar = world.start_with("one", &format!("{}{renders}", secret("a")), &[]);
    for (file, why) in [("link", "symbolic link"), ("folder", "not a regular file")] {
        wait("the failure", || {
            render(&sidecar, file)["last_error"]["message"]
                .as_str()
                .is_some_and(|message| message.contains(why))
        });
    }
    assert_eq!(read(&world, "victim"), "untouched");
    assert!(
        fs::symlink_metadata(world.path("link"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn shutdown_waits_briefly_for_a_command_and_then_kills_it() {
    let world = World::new();
    put(&world, "a", "1");
    let (pids, done) = (world.path("pids"), world.path("done"));
    let hangs = format!(
        "echo $$ >> {0}; sleep 120 & echo $! >> {0}; wait",
        pids.display()
    );
    // This command needs a moment after the signal.
    let ends = format!(
        "echo $$ >> {0}; while kill -0 $PPID && ! [ -e {1}.go ]; do sleep 0.02; done; \
         echo done > {1}",
        pids.display(),
        done.display()
    );
    let config = format!(
        "{}[[render]]\nfile = \"one\"\nsecret = \"a\"\ncommand = [\"sh\", \"-c\", {hangs:?}]\n\
         [[render]]\nfile = \"two\"\nsecret = \"a\"\ncommand = [\"sh\", \"-c\", {ends:?}]\n",
        secret("a")
    );
    let mut sidecar = world.start_with("one", &config, &[]);
    wait("both commands", || {
        read(&world, "pids").lines().count() == 3
    });
    sidecar.signal("TERM");
    wait("the stop", || sidecar.log().contains("stopping"));
    fs::write(world.path("done.go"), "").unwrap();
    wait_for(&world, "done", "done\n");
    assert!(sidecar.ended().success());
    assert!(
        sidecar
            .log()
            .contains("was killed because the sidecar stops")
    );
    wait("the end of what hung", || {
        read(&world, "pids").lines().all(|pid| !is_alive(pid))
    });
}

#[test]
fn a_second_signal_kills_a_command_at_once() {
    let world = World::new();
    put(&world, "a", "1");
    let pids = world.path("pids");
    let hangs = format!(
        "echo $$ >> {0}; sleep 120 & echo $! >> {0}; wait",
        pids.display()
    );
    let config = format!(
        "{}[[render]]\nfile = \"one\"\nsecret = \"a\"\ncommand = [\"sh\", \"-c\", {hangs:?}]\n",
        secret("a")
    );
    let mut sidecar = world.start_with("one", &config, &[]);
    wait("the command", || read(&world, "pids").lines().count() == 2);
    sidecar.signal("TERM");
    wait("the stop", || sidecar.log().contains("stopping"));
    sidecar.signal("TERM");
    assert!(sidecar.ended().success());
    wait("the end of what hung", || {
        read(&world, "pids").lines().all(|pid| !is_alive(pid))
    });
    assert!(
        !sidecar
            .log()
            .contains("was killed because the sidecar stops"),
        "{}",
        sidecar.log()
    );
}

#[test]
fn a_template_may_compute_the_name_of_a_mapped_secret() {
    let mut world = World::new();
    fs::create_dir(world.path("teams")).unwrap();
    put(&world, "teams/x", "of x");
    world.env.push(("TEAM", "x".into()));
    let config = "[[secret]]\nname = \"team-*\"\nsource = \"file:teams/*\"\nallow = [\"team-x\"]\n\
        refresh = \"500ms\"\n\
        [[render]]\nfile = \"out\"\ndebounce = \"0s\"\n\
        template_text = \"{{ secret('team-' ~ env('TEAM')).value }}\"\n\
        [[render]]\nfile = \"refused\"\nrequired = false\n\
        template_text = \"{{ secret('team-' ~ 'y').value }}\"\n";
    let sidecar = world.start_with("one", config, &[]);
    assert_eq!(read(&world, "out"), "of x");
    put(&world, "teams/x", "of x, later");
    wait_for(&world, "out", "of x, later");
    wait("the refusal", || {
        render(&sidecar, "refused")["last_error"]["message"]
            == "a secret whose name the template computes: no such secret is configured"
    });
    assert!(!world.path("refused").exists());
}

/// The examples in docs/render.md are valid as written, except for their directories.
#[test]
fn the_documented_examples_are_valid() {
    let page = include_str!("../../docs/render.md");
    let blocks = |language: &str| -> Vec<&str> {
        let fence = format!("```{language}\n");
        page.split(&fence)
            .skip(1)
            .map(|rest| rest.split_once("```").unwrap().0)
            .collect()
    };
    let world = World::new();
    fs::write(world.path("app.env.j2"), blocks("jinja")[0]).unwrap();
    for (folder, file, value) in [
        ("tls", "tls.key", "key\n"),
        ("tls", "tls.crt", "certificate\n"),
    ] {
        fs::create_dir_all(world.path(folder)).unwrap();
        fs::write(world.path(folder).join(file), value).unwrap();
    }
    put(&world, "db", r#"{"user":"or/ders","password":"a\"b"}"#);
    put(&world, "mail", r#"{"value":"t$k"}"#);
    let [_, environment, nginx] = blocks("toml")[..] else {
        panic!("three examples")
    };
    let place = |text: &str, name: &str| {
        text.replace(
            name,
            world
                .path("")
                .join(name.rsplit('/').next().unwrap())
                .to_str()
                .unwrap(),
        )
    };
    let mut config = format!("{environment}\n{nginx}")
        .replace("vault-kv:secret/orders/db", "file:db")
        .replace("vault-kv:secret/mail", "file:mail");
    for name in [
        "/etc/sidekey/tls",
        "/run/orders/app.env",
        "/run/nginx/www.pem",
    ] {
        config = place(&config, name);
    }
    // The test can't reload anything, and only root can change a file's group.
    config = config.replace(
        "[\"systemctl\", \"reload\", \"orders.service\"]",
        "[\"true\"]",
    );
    config = config.replace(
        "group = 2000",
        &format!("group = {}", rustix::process::getegid().as_raw()),
    );
    let _sidecar = world.start_with("one", &config, &[]);
    let env = read(&world, "app.env");
    let lines: Vec<&str> = env.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "DB_USER=\"or/ders\"",
            "DB_PASSWORD=\"a\\\"b\"",
            "DB_URL=postgres://or%2Fders:a%22b@db/orders",
            "SMTP_TOKEN=\"t\\$k\""
        ]
    );
    assert_eq!(read(&world, "www.pem"), "key\n\ncertificate\n\n");
}
