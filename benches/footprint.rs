//! The footprint of an idle sidecar: memory with 100 keyrings of 5 versions, time from exec to
//! ready, and binary size.

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{Goal, Spread, is_test, report};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sidekey::{
    admin::{Admin, Signing, Takeover},
    backend::{self, local::LocalKek},
    clock::Clock,
    keyring::Policy,
    model::Location,
};
use tokio::net::UnixStream;

/// A config file, and the address of its ops listener.
type Configured = (PathBuf, SocketAddr);

fn main() {
    let (keyrings, versions, starts) = if is_test() { (3, 2, 1) } else { (100, 5, 11) };
    let folder = tempfile::tempdir().expect("folder");
    create_keyrings(folder.path(), keyrings, versions);
    let (many, one) = (
        config(folder.path(), "many", keyrings),
        config(folder.path(), "one", 1),
    );
    measure_starts(&many, &one, starts);
    measure_secrets(folder.path(), starts);
    measure_listeners(&one);
    measure_binary();
}

fn create_keyrings(folder: &Path, keyrings: usize, versions: usize) {
    LocalKek::create(&folder.join("kek")).expect("KEK");
    let kek: sidekey::model::KekUri = format!("local:{}", folder.join("kek").display())
        .parse()
        .expect("URI");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        for index in 0..keyrings {
            let location = Location::File(folder.join(format!("ring-{index}.json")));
            let admin = Admin::new(
                location,
                Signing::NoKey,
                &backend::configured(&Default::default()),
                Clock::system(),
            )
            .expect("admin");
            let name = format!("ring-{index}").parse().expect("name");
            admin
                .init(name, std::slice::from_ref(&kek), Policy::default())
                .await
                .expect("init");
            for _ in 1..versions {
                admin.rotate(&[], Takeover::Now).await.expect("rotate");
            }
        }
    });
}

fn measure_starts(many: &Configured, one: &Configured, starts: usize) {
    let (mut ready_many, mut ready_one, mut memory) = (vec![], vec![], vec![]);
    for _ in 0..starts {
        let (time, resident) = start(&many.0, many.1);
        ready_many.push(time);
        memory.push(resident);
        ready_one.push(start(&one.0, one.1).0);
    }
    report(
        "footprint/rss/100-keyrings-x-5-versions",
        " MiB",
        Spread::of(memory),
        &Goal::AtMost(20.0),
    );
    report(
        "footprint/ready/1-keyring",
        " ms",
        Spread::of(ready_one),
        &Goal::AtMost(50.0),
    );
    report(
        "footprint/ready/100-keyrings-x-5-versions",
        " ms",
        Spread::of(ready_many),
        &Goal::AtMost(50.0),
    );
}

fn measure_secrets(folder: &Path, starts: usize) {
    let secrets = if is_test() { 10 } else { 1000 };
    let kept = secret_config(folder, secrets);
    let memory = (0..starts).map(|_| start(&kept.0, kept.1).1).collect();
    // The budget of a sidecar plus the size of the secrets.
    let goal = Goal::AtMost(20.0 + secrets as f64 / 1024.0);
    report(
        "footprint/rss/1000-secrets-of-1KiB",
        " MiB",
        Spread::of(memory),
        &goal,
    );
}

fn measure_listeners(one: &Configured) {
    let listeners = if is_test() {
        100
    } else {
        raise_open_files();
        10_000
    };
    for (name, streams, goal) in [("http2", 64, Goal::AtMost(100.0)), ("http1", 1, Goal::None)] {
        let memory = listening(&one.0, one.1, listeners, streams);
        report(
            &format!("footprint/rss/10000-listeners/{name}"),
            " MiB",
            Spread::of(vec![memory]),
            &goal,
        );
    }
}

fn measure_binary() {
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_sidekey"))
        .expect("binary")
        .len() as f64
        / f64::from(1 << 20);
    report(
        "footprint/binary/stripped",
        " MiB",
        Spread {
            min: size,
            median: size,
            max: size,
        },
        &Goal::None,
    );
}

/// Raises the limit of open files to its maximum; the sidecars inherit it.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .expect("more open files");
}

fn config(folder: &Path, name: &str, keyrings: usize) -> Configured {
    // A port that was free a moment ago. Port 0 would require the sidecar's log, which is off.
    let ops = TcpListener::bind("127.0.0.1:0")
        .expect("port")
        .local_addr()
        .expect("address");
    let entries: String = (0..keyrings)
        .map(|index| {
            format!(
                "[[keyring]]\nname = \"ring-{index}\"\nlocation = \"ring-{index}.json\"\n\
                 keks = [\"local:kek\"]\n"
            )
        })
        .collect();
    let text = format!(
        "[listen]\nsocket = \"{name}.sock\"\n[ops]\nlisten = \"{ops}\"\n[log]\nlevel = \"error\"\n\
         [limits]\nconnections = 30000\n{entries}"
    );
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, text).expect("config");
    (file, ops)
}

/// A config with required secrets in files.
fn secret_config(folder: &Path, secrets: usize) -> Configured {
    let (file, ops) = config(folder, "secrets", 1);
    let mut text = std::fs::read_to_string(&file).expect("config");
    std::fs::create_dir(folder.join("secrets")).expect("folder");
    for index in 0..secrets {
        std::fs::write(folder.join(format!("secrets/{index}")), "x".repeat(1024)).expect("secret");
        text += &format!(
            "[[secret]]\nname = \"secret-{index}\"\nsource = \"file:secrets/{index}\"\n\
             required = true\n"
        );
    }
    std::fs::write(&file, text).expect("config");
    (file, ops)
}

/// Returns the milliseconds from exec until /readyz succeeds, and the resident memory in MiB.
fn start(config: &Path, ops: SocketAddr) -> (f64, f64) {
    let begun = Instant::now();
    let sidecar = Sidecar::start(config, ops);
    (begun.elapsed().as_secs_f64() * 1000.0, sidecar.resident())
}

/// Returns the MiB that idle event listeners use, with `streams` of them per connection: several
/// over HTTP/2, one over HTTP/1.1.
fn listening(config: &Path, ops: SocketAddr, listeners: usize, streams: usize) -> f64 {
    let sidecar = Sidecar::start(config, ops);
    let before = sidecar.resident();
    let socket = config.with_extension("sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let bodies = runtime.block_on(async {
        let mut bodies = Vec::new();
        while bodies.len() < listeners {
            let io = TokioIo::new(UnixStream::connect(&socket).await.expect("connect"));
            let request = || {
                Request::get("http://sidekey/v1/events")
                    .body(Empty::<Bytes>::new())
                    .expect("request")
            };
            if streams == 1 {
                let (mut sender, connection) = http1::handshake(io).await.expect("HTTP/1.1");
                tokio::spawn(connection);
                bodies.push(
                    first_event(sender.send_request(request()).await.expect("response")).await,
                );
            } else {
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
                    .await
                    .expect("HTTP/2");
                tokio::spawn(connection);
                for _ in 0..streams {
                    bodies.push(
                        first_event(sender.send_request(request()).await.expect("response")).await,
                    );
                }
            }
        }
        bodies
    });
    let after = sidecar.resident();
    drop(bodies);
    after - before
}

/// Reads a response up to its first event, the current state.
async fn first_event(response: Response<Incoming>) -> Incoming {
    let mut body = response.into_body();
    let mut text = Vec::new();
    while !text.windows(6).any(|window| window == b"data: ") {
        let frame = body.frame().await.expect("an event").expect("frame");
        text.extend_from_slice(&frame.into_data().expect("data"));
    }
    body
}

/// A running sidecar, killed on drop.
struct Sidecar(Child);

impl Sidecar {
    fn start(config: &Path, ops: SocketAddr) -> Self {
        let begun = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidekey"));
        let sidecar = Self(
            command
                .args(["serve", "--config"])
                .arg(config)
                .stdin(Stdio::null())
                .spawn()
                .expect("sidecar"),
        );
        while !is_ready(ops) {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the sidecar becomes ready"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        sidecar
    }

    /// Returns VmRSS in MiB.
    fn resident(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("status");
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        let kib: f64 = resident
            .trim()
            .trim_end_matches("kB")
            .trim()
            .parse()
            .expect("a number");
        kib / 1024.0
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

fn is_ready(ops: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(ops) else {
        return false;
    };
    let mut response = String::new();
    let sent = stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    sent.is_ok()
        && stream.read_to_string(&mut response).is_ok()
        && response.starts_with("HTTP/1.1 200")
}
