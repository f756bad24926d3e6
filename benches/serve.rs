//! The overhead of a request over a hyper echo server on a Unix socket, with the same client and in
//! interleaved slices.
//! The servers are separate processes with the same number of workers. Requests are prebuilt.

mod common;
#[path = "common/load.rs"]
mod load;
#[path = "common/servers.rs"]
mod servers;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Goal, Spread, is_test, report};
use load::load;
use servers::{Setup, is_echo};
use sidekey::{
    admin::{Admin, Bases, Signing, Takeover},
    backend,
    clock::Clock,
    model::Location,
};

fn main() {
    if is_echo() {
        return;
    }
    let (rounds, slice) = if is_test() {
        (1, Duration::from_millis(100))
    } else {
        (11, Duration::from_millis(600))
    };
    let folder = tempfile::tempdir().expect("folder");
    let setup = Setup::new(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    for (size, name) in [(256, "256B"), (64 << 10, "64KiB")] {
        let request = request(size);
        let measure = |socket: &Path, connections| {
            runtime.block_on(load(socket, &request, connections, slice))
        };
        let (mut throughput, mut median, mut sidekey_rate, mut sidekey_p50) =
            (vec![], vec![], vec![], vec![]);
        for _ in 0..rounds {
            let (baseline, sidekey) = (measure(&setup.echo, 16), measure(&setup.sidekey, 16));
            throughput.push(sidekey.rate / baseline.rate);
            sidekey_rate.push(sidekey.rate);
            let (baseline, sidekey) = (measure(&setup.echo, 1), measure(&setup.sidekey, 1));
            median.push(sidekey.quantile(0.5) / baseline.quantile(0.5));
            sidekey_p50.push(sidekey.quantile(0.5));
        }
        report(
            &format!("serve/encrypt/{name}/16/throughput-vs-echo"),
            "x",
            Spread::of(throughput),
            &Goal::AtLeast(0.85),
        );
        println!(
            "  {:.0} requests per second",
            Spread::of(sidekey_rate).median
        );
        report(
            &format!("serve/encrypt/{name}/1/p50-vs-echo"),
            "x",
            Spread::of(median),
            &Goal::AtMost(1.3),
        );
        println!("  {:.1} us", Spread::of(sidekey_p50).median);
    }
    rotation(&setup, &runtime, rounds, slice * 2);
}

/// Tail latency with a rotation every 100 ms, relative to the latency without.
fn rotation(setup: &Setup, runtime: &tokio::runtime::Runtime, rounds: usize, slice: Duration) {
    let request = request(256);
    let measure = || runtime.block_on(load(&setup.sidekey, &request, 16, slice));
    let (mut tail, mut errors, mut rotations) = (vec![], 0, 0);
    for _ in 0..rounds {
        let quiet = measure();
        let done = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let operator = {
            let (done, count, manifest) = (
                Arc::clone(&done),
                Arc::clone(&count),
                setup.manifest.clone(),
            );
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("runtime");
                let base = manifest.clone();
                let admin = Admin::new(
                    Location::File(manifest),
                    Signing::NoKey,
                    &backend::configured(&Default::default()),
                    Clock::system(),
                )
                .expect("admin")
                .with_bases(Bases {
                    files: vec![base],
                    ..Bases::default()
                });
                while !done.load(Ordering::Relaxed) {
                    let next = Instant::now() + Duration::from_millis(100);
                    runtime
                        .block_on(admin.rotate(&[], Takeover::Now))
                        .expect("rotate");
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
    report(
        "serve/encrypt/256B/16/p99.9-rotating-vs-quiet",
        "x",
        Spread::of(tail),
        &Goal::AtMost(1.5),
    );
    let errors = errors as f64;
    report(
        "serve/encrypt/256B/16/errors-while-rotating",
        "",
        Spread {
            min: errors,
            median: errors,
            max: errors,
        },
        &Goal::AtMost(0.0),
    );
    println!("  {rotations} rotations");
}

fn request(size: usize) -> Vec<u8> {
    let head = format!(
        "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: sidekey\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
    );
    [head.as_bytes(), &vec![b'x'; size]].concat()
}
