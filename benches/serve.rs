//! What a request costs over a bare hyper echo on a Unix socket: same client, same machine, same run, slices interleaved.
//!
//! Both servers are processes of their own with as many worker threads. The client writes requests that were made beforehand.

mod common;

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Goal, Spread, is_test, report};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use sidekey::{
    admin::{Admin, Signing, Takeover},
    backend::{Backends, local::LocalKek},
    clock::Clock,
    config::Location,
    keyring::Policy,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

const WORKERS: usize = 2;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--echo") {
        let socket = arguments.next().expect("a socket");
        echo(Path::new(&socket));
        return;
    }
    let (rounds, slice) = if is_test() { (1, Duration::from_millis(100)) } else { (11, Duration::from_millis(600)) };
    let folder = tempfile::tempdir().expect("folder");
    let setup = Setup::new(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    for (size, name) in [(256, "256B"), (64 << 10, "64KiB")] {
        let request = request(size);
        let measure = |socket: &Path, connections| runtime.block_on(load(socket, &request, connections, slice));
        let (mut throughput, mut median, mut ours_rate, mut ours_p50) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rounds {
            let (floor, ours) = (measure(&setup.echo, 16), measure(&setup.sidekey, 16));
            throughput.push(ours.rate / floor.rate);
            ours_rate.push(ours.rate);
            let (floor, ours) = (measure(&setup.echo, 1), measure(&setup.sidekey, 1));
            median.push(ours.quantile(0.5) / floor.quantile(0.5));
            ours_p50.push(ours.quantile(0.5));
        }
        report(&format!("serve/encrypt/{name}/16/throughput-vs-echo"), "x", Spread::of(throughput), &Goal::AtLeast(0.85));
        println!("  {:.0} requests a second", Spread::of(ours_rate).median);
        report(&format!("serve/encrypt/{name}/1/p50-vs-echo"), "x", Spread::of(median), &Goal::AtMost(1.3));
        println!("  {:.1} us", Spread::of(ours_p50).median);
    }
    rotation(&setup, &runtime, rounds, slice * 2);
}

/// The tail with a rotation every 100 ms against the tail without.
fn rotation(setup: &Setup, runtime: &tokio::runtime::Runtime, rounds: usize, slice: Duration) {
    let request = request(256);
    let measure = || runtime.block_on(load(&setup.sidekey, &request, 16, slice));
    let (mut tail, mut errors, mut rotations) = (vec![], 0, 0);
    for _ in 0..rounds {
        let quiet = measure();
        let done = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let operator = {
            let (done, count, manifest) = (Arc::clone(&done), Arc::clone(&count), setup.manifest.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                let admin =
                    Admin::new(Location::File(manifest), Signing::Unless, &Backends::new(&Default::default()), Clock::system())
                        .expect("admin");
                while !done.load(Ordering::Relaxed) {
                    let next = Instant::now() + Duration::from_millis(100);
                    runtime.block_on(admin.rotate(&[], Takeover::Now)).expect("rotate");
                    count.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            })
        };
        let rotating = measure();
        done.store(true, Ordering::Relaxed);
        operator.join().expect("operator");
        tail.push(rotating.quantile(0.999) / quiet.quantile(0.999));
        errors += quiet.errors + rotating.errors;
        rotations += count.load(Ordering::Relaxed);
    }
    report("serve/encrypt/256B/16/p99.9-rotating-vs-quiet", "x", Spread::of(tail), &Goal::AtMost(1.5));
    let errors = errors as f64;
    report(
        "serve/encrypt/256B/16/errors-while-rotating",
        "",
        Spread { least: errors, median: errors, most: errors },
        &Goal::AtMost(0.0),
    );
    println!("  {rotations} rotations");
}

struct Setup {
    echo: PathBuf,
    sidekey: PathBuf,
    manifest: PathBuf,
    children: Vec<Child>,
}

impl Setup {
    fn new(folder: &Path) -> Self {
        let at = |name: &str| folder.join(name);
        LocalKek::create(&at("kek")).expect("KEK");
        let manifest = at("demo.json");
        let admin =
            Admin::new(Location::File(manifest.clone()), Signing::Unless, &Backends::new(&Default::default()), Clock::system())
                .expect("admin");
        let kek = format!("local:{}", at("kek").display()).parse().expect("URI");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(admin.init("demo".parse().expect("name"), &[kek], Policy::default())).expect("init");
        let (echo, sidekey) = (at("echo.sock"), at("sidekey.sock"));
        let config = format!(
            "[listen]\nsocket = {sidekey:?}\n[ops]\nlisten = \"127.0.0.1:0\"\n[log]\nlevel = \"error\"\n[runtime]\nworkers = {WORKERS}\n\
             [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"local:kek\"]\n"
        );
        std::fs::write(at("sidekey.toml"), config).expect("config");
        let this = std::env::current_exe().expect("this benchmark");
        let start = |command: &mut Command| command.stdin(Stdio::null()).spawn().expect("server");
        let children = vec![
            start(Command::new(this).arg("--echo").arg(&echo)),
            start(Command::new(env!("CARGO_BIN_EXE_sidekey")).args(["serve", "--config"]).arg(at("sidekey.toml"))),
        ];
        let setup = Self { echo, sidekey, manifest, children };
        let request = request(1);
        runtime.block_on(async {
            while one(&setup.echo, &request).await.is_none() || one(&setup.sidekey, &request).await != Some(true) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        setup
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn echo(socket: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).expect("bind");
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| async {
                    let body = request.into_body().collect().await.expect("body").to_bytes();
                    Ok::<_, Infallible>(Response::new(Full::new(body)))
                });
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            });
        }
    });
}

fn request(size: usize) -> Vec<u8> {
    let head = format!(
        "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: sidekey\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
    );
    [head.as_bytes(), &vec![b'x'; size]].concat()
}

async fn one(socket: &Path, request: &[u8]) -> Option<bool> {
    let mut stream = UnixStream::connect(socket).await.ok()?;
    let mut buffer = Vec::new();
    exchange(&mut stream, request, &mut buffer).await.ok()
}

struct Load {
    rate: f64,
    errors: u64,
    latency: Histogram<u64>,
}

impl Load {
    /// In microseconds.
    fn quantile(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

async fn load(socket: &Path, request: &[u8], connections: usize, slice: Duration) -> Load {
    let mut tasks = tokio::task::JoinSet::new();
    let start = Instant::now();
    for _ in 0..connections {
        let mut stream = UnixStream::connect(socket).await.expect("connect");
        let request = request.to_vec();
        tasks.spawn(async move {
            let mut latency = Histogram::<u64>::new(3).expect("histogram");
            let (mut buffer, mut errors) = (Vec::with_capacity(128 << 10), 0);
            while start.elapsed() < slice {
                let begun = Instant::now();
                match exchange(&mut stream, &request, &mut buffer).await {
                    Ok(true) => latency.record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)).expect("in range"),
                    Ok(false) | Err(_) => errors += 1,
                }
            }
            (latency, errors)
        });
    }
    let mut all = Load { rate: 0.0, errors: 0, latency: Histogram::new(3).expect("histogram") };
    while let Some(result) = tasks.join_next().await {
        let (latency, errors) = result.expect("client");
        all.latency.add(latency).expect("same bounds");
        all.errors += errors;
    }
    all.rate = all.latency.len() as f64 / start.elapsed().as_secs_f64();
    all
}

/// Sends a request and reads the whole answer; whether it was a success.
async fn exchange(stream: &mut UnixStream, request: &[u8], buffer: &mut Vec<u8>) -> std::io::Result<bool> {
    stream.write_all(request).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = response.parse(buffer) else { continue };
        let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or(0);
        let ok = response.code == Some(200);
        while buffer.len() < head + length {
            if stream.read_buf(buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        return Ok(ok);
    }
}
