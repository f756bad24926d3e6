//! Copies of audit records, with rsyslog as the collector.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::support::{
    certificates::Authority,
    harness::{Sidecar, World, wait},
    servers::free_port,
};

/// rsyslog with one TLS listener, which requires a client certificate of the same authority.
struct Rsyslog {
    child: Child,
}

/// Where a server listens, and the files that it reads and writes.
struct Stage {
    world: World,
    authority: Authority,
    port: u16,
}

impl Stage {
    fn new() -> Self {
        let world = World::with_demo();
        let authority = Authority::new(world.path("authority"));
        authority.issue("server", Some("IP:127.0.0.1"));
        authority.issue("sidecar", None);
        fs::write(world.path("audit.key"), [7; 32]).unwrap();
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(world.path("audit.key"), private).unwrap();
        Self {
            world,
            authority,
            port: free_port(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    /// Starts the server; again, if it was ended before.
    fn rsyslog(&self) -> Rsyslog {
        let file = |name: &str| self.path(name).display().to_string();
        let config = format!(
            "global(workDirectory={folder:?} maxMessageSize=\"128k\"\n\
             defaultNetstreamDriver=\"ossl\" defaultNetstreamDriverCAFile={ca:?}\n\
             defaultNetstreamDriverCertFile={certificate:?}\n\
             defaultNetstreamDriverKeyFile={key:?})\n\
             module(load=\"imtcp\" streamDriver.name=\"ossl\" streamDriver.mode=\"1\"\n\
             streamDriver.authMode=\"x509/certvalid\")\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n\
             template(name=\"message\" type=\"string\" string=\"%msg%\\n\")\n\
             template(name=\"head\" type=\"string\" string=\"%pri% %timereported:::date-rfc3339% \
             %hostname% %app-name% %procid% %msgid% %structured-data%\\n\")\n\
             if $app-name == \"sidekey\" then {{\n\
             action(type=\"omfile\" file={messages:?} template=\"message\")\n\
             action(type=\"omfile\" file={heads:?} template=\"head\")\n}}\n",
            folder = file("").trim_end_matches('/'),
            ca = file("authority/ca.pem"),
            certificate = file("authority/server.pem"),
            key = file("authority/server.key"),
            port = self.port,
            messages = file("messages"),
            heads = file("heads"),
        );
        fs::write(self.path("rsyslog.conf"), config).unwrap();
        let said = File::create(self.path("rsyslog.out")).unwrap();
        let child = Command::new("rsyslogd")
            .arg("-n")
            .arg("-f")
            .arg(self.path("rsyslog.conf"))
            .arg("-i")
            .arg(self.path("rsyslog.pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .expect("rsyslogd, which integration/install-backends installs");
        wait("rsyslog", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        Rsyslog { child }
    }

    fn sidecar(&self, ca: &Path) -> Sidecar {
        let config = format!(
            "[audit]\nfile = \"audit.log\"\nkey_file = \"audit.key\"\n\
             [[audit.forward]]\nto = \"syslog+tls://127.0.0.1:{}\"\nca_file = {ca:?}\n\
             certificate_file = \"authority/sidecar.pem\"\nkey_file = \"authority/sidecar.key\"\n",
            self.port
        );
        self.world.start_with("one", &config, &["demo"])
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Rsyslog {
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(sidecar: &Sidecar) -> Value {
    sidecar.status()["audit"]["forwards"][0].clone()
}

#[test]
fn rsyslog_gets_every_record_over_tls_until_the_last() {
    let stage = Stage::new();
    let _rsyslog = stage.rsyslog();
    let mut sidecar = stage.sidecar(&stage.authority.ca());
    stage
        .world
        .keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    sidecar.signal("TERM");
    assert!(sidecar.ended().success());
    let log = stage.text("audit.log");
    assert!(log.contains("sidecar.stopped"), "{log}");
    wait("the last record", || {
        stage.text("messages").contains("sidecar.stopped")
    });
    assert_eq!(stage.text("messages"), log, "byte for byte");
    let (copy, key) = (stage.path("messages"), stage.path("audit.key"));
    let verify = [
        "audit",
        "verify",
        copy.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ];
    stage.world.succeed(&verify);

    wait("the heads", || {
        stage.text("heads").lines().count() == log.lines().count()
    });
    for (head, line) in stage.text("heads").lines().zip(log.lines()) {
        let record: Value = serde_json::from_str(line).unwrap();
        let words: Vec<&str> = head.split(' ').collect();
        let [priority, at, host, app, pid, event, data] = words[..] else {
            panic!("{head}")
        };
        assert_eq!((priority, app, data), ("109", "sidekey", "-"), "{head}");
        assert_eq!(
            (host, event),
            (&*string(&record["by"]["host"]), &*string(&record["event"]))
        );
        assert_eq!(pid, record["by"]["pid"].to_string());
        let second = |text: &str| text[..19].to_owned();
        assert_eq!(second(at), second(&string(&record["at"])));
    }
    // It would say so of a connection that ended without close_notify, other than in a handshake.
    let said = stage.text("rsyslog.out");
    assert!(!said.contains("osslRecordRecv"), "{said}");
}

fn string(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[test]
fn nothing_is_lost_while_rsyslog_is_down() {
    let stage = Stage::new();
    let rsyslog = stage.rsyslog();
    let sidecar = stage.sidecar(&stage.authority.ca());
    wait("a record", || !stage.text("messages").is_empty());
    rsyslog.kill();
    stage
        .world
        .keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    wait("a failure", || !forward(&sidecar)["last_error"].is_null());
    assert_eq!(sidecar.ops("/readyz").0, 200);
    let _rsyslog = stage.rsyslog();
    wait("the end of the failure", || {
        let forward = forward(&sidecar);
        forward["waiting"] == 0 && forward["last_error"].is_null()
    });
    // Some may have arrived twice.
    let distinct =
        |name: &str| -> BTreeSet<String> { stage.text(name).lines().map(str::to_owned).collect() };
    wait("all records", || {
        distinct("messages") == distinct("audit.log")
    });
    assert_eq!(forward(&sidecar)["lost"], 0);
}

#[test]
fn nothing_is_sent_to_a_collector_that_another_authority_vouches_for() {
    let stage = Stage::new();
    let _rsyslog = stage.rsyslog();
    let other = Authority::new(stage.path("other"));
    let sidecar = stage.sidecar(&other.ca());
    wait("a failure", || !forward(&sidecar)["last_error"].is_null());
    let reason = forward(&sidecar)["last_error"]["message"].to_string();
    assert!(reason.contains("certificate"), "{reason}");
    assert_eq!(stage.text("messages"), "");
    assert!(stage.text("audit.log").contains("sidecar.started"));
}
