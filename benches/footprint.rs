//! What a sidecar costs while it does nothing: memory with a hundred keyrings of five versions, time from exec to ready, size.

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Goal, Spread, is_test, report};
use sidekey::{
    admin::{Admin, Signing, Takeover},
    backend::{Backends, local::LocalKek},
    clock::Clock,
    config::Location,
    keyring::Policy,
};

fn main() {
    let (keyrings, versions, starts) = if is_test() { (3, 2, 1) } else { (100, 5, 11) };
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    LocalKek::create(&at("kek")).expect("KEK");
    let kek: sidekey::config::KekUri = format!("local:{}", at("kek").display()).parse().expect("URI");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        for index in 0..keyrings {
            let location = Location::File(at(&format!("ring-{index}.json")));
            let admin =
                Admin::new(location, Signing::Unless, &Backends::new(&Default::default()), Clock::system()).expect("admin");
            let name = format!("ring-{index}").parse().expect("name");
            admin.init(name, std::slice::from_ref(&kek), Policy::default()).await.expect("init");
            for _ in 1..versions {
                admin.rotate(&[], Takeover::Now).await.expect("rotate");
            }
        }
    });
    let (many, one) = (config(folder.path(), "many", keyrings), config(folder.path(), "one", 1));
    let (mut ready_many, mut ready_one, mut memory) = (vec![], vec![], vec![]);
    for _ in 0..starts {
        let (time, resident) = start(&many.0, many.1);
        ready_many.push(time);
        memory.push(resident);
        ready_one.push(start(&one.0, one.1).0);
    }
    report("footprint/rss/100-keyrings-x-5-versions", " MiB", Spread::of(memory), &Goal::AtMost(20.0));
    report("footprint/ready/1-keyring", " ms", Spread::of(ready_one), &Goal::AtMost(50.0));
    report("footprint/ready/100-keyrings-x-5-versions", " ms", Spread::of(ready_many), &Goal::AtMost(50.0));
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_sidekey")).expect("binary").len() as f64 / f64::from(1 << 20);
    report("footprint/binary/stripped", " MiB", Spread { least: size, median: size, most: size }, &Goal::None);
}

fn config(folder: &Path, name: &str, keyrings: usize) -> (std::path::PathBuf, SocketAddr) {
    // A port that was free a moment ago: the sidecar's log, where a port of its own choice would stand, is off.
    let ops = TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address");
    let entries: String = (0..keyrings)
        .map(|index| format!("[[keyring]]\nname = \"ring-{index}\"\nlocation = \"ring-{index}.json\"\nkeks = [\"local:kek\"]\n"))
        .collect();
    let text = format!("[listen]\nsocket = \"{name}.sock\"\n[ops]\nlisten = \"{ops}\"\n[log]\nlevel = \"error\"\n{entries}");
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, text).expect("config");
    (file, ops)
}

/// Milliseconds from exec until /readyz says yes, and the resident memory (VmRSS, MiB) then.
fn start(config: &Path, ops: SocketAddr) -> (f64, f64) {
    let begun = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidekey"))
        .args(["serve", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .spawn()
        .expect("sidecar");
    while !is_ready(ops) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the sidecar gets ready");
        std::thread::sleep(Duration::from_micros(200));
    }
    let ready = begun.elapsed().as_secs_f64() * 1000.0;
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: f64 = resident.trim().trim_end_matches("kB").trim().parse().expect("a number");
    child.kill().expect("kill");
    child.wait().expect("wait");
    (ready, kib / 1024.0)
}

fn is_ready(ops: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(ops) else { return false };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}
