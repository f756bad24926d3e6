//! The overhead of reading a secret over a hyper response of the same size, with the same client
//! and in interleaved slices.

mod common;
#[path = "common/load.rs"]
mod load;
#[path = "common/servers.rs"]
mod servers;

use std::{path::Path, time::Duration};

use common::{Goal, Spread, is_test, report};
use load::load;
use servers::{Setup, is_echo};

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
    let request = |headers: &str| {
        format!("GET /v1/secrets/demo HTTP/1.1\r\nHost: sidekey\r\n{headers}\r\n").into_bytes()
    };
    for (name, request) in [
        ("octets", request("Accept: application/octet-stream\r\n")),
        ("json", request("")),
    ] {
        let measure = |socket: &Path, connections| {
            let load = runtime.block_on(load(socket, &request, connections, slice));
            assert_eq!(load.errors, 0, "every response is a success");
            load
        };
        let (mut throughput, mut median, mut rate) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            let (baseline, sidekey) = (measure(&setup.echo, 16), measure(&setup.sidekey, 16));
            throughput.push(sidekey.rate / baseline.rate);
            rate.push(sidekey.rate);
            let (baseline, sidekey) = (measure(&setup.echo, 1), measure(&setup.sidekey, 1));
            median.push(sidekey.quantile(0.5) / baseline.quantile(0.5));
        }
        report(
            &format!("secrets/get/1KiB/{name}/16/throughput-vs-hyper"),
            "x",
            Spread::of(throughput),
            &Goal::AtLeast(0.85),
        );
        println!("  {:.0} requests per second", Spread::of(rate).median);
        report(
            &format!("secrets/get/1KiB/{name}/1/p50-vs-hyper"),
            "x",
            Spread::of(median),
            &Goal::None,
        );
    }
}
