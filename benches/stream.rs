//! The overhead of streams: 1 GiB through the socket over a hyper echo server, and the core over
//! raw AES-GCM.

mod common;
#[path = "common/servers.rs"]
mod servers;

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use common::{Goal, Spread, is_test, report};
use servers::{Setup, is_echo};
use sidekey::crypto::{CHUNK_LEN, Dek, KeyringId, SEALED_CHUNK_LEN, StreamSealer, VersionKeys};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

const BLOCK: usize = 256 << 10;

fn main() {
    if is_echo() {
        return;
    }
    core();
    let (rounds, length) = if is_test() {
        (1, 8 << 20)
    } else {
        (7, 1 << 30)
    };
    let folder = tempfile::tempdir().expect("folder");
    let setup = Setup::new(folder.path());
    // Two threads, so that the client sends and receives concurrently.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let (mut ratios, mut rates) = (vec![], vec![]);
    for _ in 0..rounds {
        let baseline = runtime.block_on(transfer(&setup.echo, length));
        let sidekey = runtime.block_on(transfer(&setup.sidekey, length));
        ratios.push(baseline / sidekey);
        rates.push(length as f64 / sidekey / f64::from(1 << 20));
    }
    report(
        "stream/encrypt/1GiB/throughput-vs-echo",
        "x",
        Spread::of(ratios),
        &Goal::AtLeast(0.7),
    );
    println!("  {:.0} MiB per second", Spread::of(rates).median);
}

/// Returns the seconds to send `length` bytes and to receive the response.
async fn transfer(socket: &Path, length: usize) -> f64 {
    let (mut read, mut write) = UnixStream::connect(socket)
        .await
        .expect("connect")
        .into_split();
    let start = Instant::now();
    let sender = tokio::spawn(async move {
        let head = format!(
            "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        write.write_all(head.as_bytes()).await.expect("head");
        let block = vec![7; BLOCK];
        for _ in 0..length / BLOCK {
            write.write_all(&block).await.expect("body");
        }
        write
    });
    let (mut received, mut buffer) = (0, vec![0; BLOCK]);
    loop {
        let read = read.read(&mut buffer).await.expect("response");
        if received == 0 {
            assert!(buffer.starts_with(b"HTTP/1.1 200"));
        }
        received += read;
        if read == 0 {
            break;
        }
    }
    assert!(received > length, "received {received} bytes");
    let took = start.elapsed().as_secs_f64();
    drop(sender.await.expect("sender"));
    took
}

fn core() {
    let (rounds, slice) = if is_test() {
        (1, Duration::from_millis(5))
    } else {
        (15, Duration::from_millis(60))
    };
    let keys = VersionKeys::derive(&Dek::generate().expect("random")).expect("memory");
    let raw = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).expect("key"));
    let chunk = vec![3u8; CHUNK_LEN];
    let (mut sealer, _) = StreamSealer::new(&keys, &KeyringId([7; 16]), 1, b"").expect("random");
    let mut sidekey = || {
        let mut buffer = Vec::with_capacity(SEALED_CHUNK_LEN);
        buffer.extend_from_slice(&chunk);
        sealer.seal(false, &mut buffer, 0);
        black_box(buffer);
    };
    let mut number = 0u64;
    let mut baseline = || {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        number += 1;
        let mut buffer = Vec::with_capacity(SEALED_CHUNK_LEN);
        buffer.extend_from_slice(&chunk);
        let tag = raw
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &mut buffer,
            )
            .expect("seal");
        buffer.extend_from_slice(tag.as_ref());
        black_box(buffer);
    };
    let ratios = (0..rounds)
        .map(|_| rate(&mut sidekey, slice) / rate(&mut baseline, slice))
        .collect();
    report(
        "stream/core/64KiB/throughput-vs-aes-gcm",
        "x",
        Spread::of(ratios),
        &Goal::AtLeast(0.9),
    );
}

/// Returns calls per second.
fn rate(work: &mut impl FnMut(), slice: Duration) -> f64 {
    let (start, mut calls) = (Instant::now(), 0u32);
    while start.elapsed() < slice {
        work();
        calls += 1;
    }
    f64::from(calls) / start.elapsed().as_secs_f64()
}
