//! Fields per second in binary batches through a sidecar, including the client; relative to a hyper
//! echo server of the same frames; and of the core without a socket.

mod common;
#[path = "common/servers.rs"]
mod servers;

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use common::{Goal, Spread, is_test, report};
use servers::{Setup, is_echo};
use sidekey::{
    crypto::{Dek, KeyringId, OVERHEAD, PREFIX_LEN, Sealer, VersionKeys},
    wire::{Frame, Frames},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

const FIELD: usize = 256;
/// Fields per write.
const GROUP: usize = 500;

fn main() {
    if is_echo() {
        return;
    }
    let (rounds, groups) = if is_test() { (1, 20) } else { (9, 4000) };
    let folder = tempfile::tempdir().expect("folder");
    let setup = Setup::new(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let measure = |socket: &Path, item| runtime.block_on(transfer(socket, groups, item));
    let (mut ratios, mut rates, mut core_rates) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        let baseline = measure(&setup.echo, FIELD);
        let sidekey = measure(&setup.sidekey, FIELD + OVERHEAD + 1);
        ratios.push(sidekey / baseline);
        rates.push(sidekey);
        core_rates.push(core(groups));
    }
    let million = |rates: Vec<f64>| Spread::of(rates.into_iter().map(|rate| rate / 1e6).collect());
    report(
        "batch/encrypt/256B/fields-per-second",
        "M",
        million(rates),
        &Goal::AtLeast(1.0),
    );
    report(
        "batch/encrypt/256B/fields-vs-echo",
        "x",
        Spread::of(ratios),
        &Goal::None,
    );
    report(
        "batch/core/256B/fields-per-second",
        "M",
        million(core_rates),
        &Goal::None,
    );
}

/// Returns fields per second. Every frame of the response must have `item` bytes.
async fn transfer(socket: &Path, groups: usize, item: usize) -> f64 {
    let fields = groups * GROUP;
    let length = 1 + fields * (4 + FIELD);
    let stream = UnixStream::connect(socket).await.expect("connect");
    let (mut read, mut write) = stream.into_split();
    let start = Instant::now();
    let send = async move {
        let head = format!(
            "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
             Content-Type: application/vnd.sidekey.batch\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n\0"
        );
        write.write_all(head.as_bytes()).await.expect("head");
        let mut group = Vec::new();
        for _ in 0..groups {
            // Rebuilt each time, as a real client copies its fields from elsewhere.
            group.clear();
            for _ in 0..GROUP {
                group.extend_from_slice(&(FIELD as u32).to_be_bytes());
                group.extend_from_slice(&[7; FIELD]);
            }
            write.write_all(&group).await.expect("body");
        }
        write
    };
    let receive = async {
        let mut response = ResponseParser::default();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = read.read(&mut buffer).await.expect("response");
            if read == 0 {
                break response.finish();
            }
            response.push(&buffer[..read], item);
        }
    };
    let (_write, seen) = tokio::join!(send, receive);
    assert_eq!(seen, fields);
    fields as f64 / start.elapsed().as_secs_f64()
}

/// Parses a response as a client would: head, chunks if chunked, frames.
#[derive(Default)]
struct ResponseParser {
    head: Vec<u8>,
    body: Option<BodyParser>,
}

struct BodyParser {
    frames: Frames,
    is_chunked: bool,
    /// Bytes left of the chunk's data.
    left: usize,
    line: Vec<u8>,
    /// Bytes to skip: the echo server returns the flags, too.
    skip: usize,
    seen: usize,
}

impl ResponseParser {
    fn push(&mut self, mut data: &[u8], item: usize) {
        if self.body.is_none() {
            self.head.extend_from_slice(data);
            let Some(end) = self
                .head
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            else {
                return;
            };
            let rest = self.head.split_off(end + 4);
            let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let is_chunked = head.contains("transfer-encoding: chunked");
            let left = if is_chunked { 0 } else { usize::MAX };
            let skip = usize::from(item == FIELD);
            let mut body = BodyParser {
                frames: Frames::new(1 << 20),
                is_chunked,
                left,
                line: Vec::new(),
                skip,
                seen: 0,
            };
            body.push(&rest, item);
            self.body = Some(body);
            data = &[];
        }
        if let Some(body) = &mut self.body {
            body.push(data, item);
        }
    }

    fn finish(self) -> usize {
        self.body.expect("a response").seen
    }
}

impl BodyParser {
    fn push(&mut self, mut data: &[u8], item: usize) {
        while !data.is_empty() {
            if self.is_chunked && self.left == 0 {
                let (byte, rest) = data.split_first().expect("not empty");
                data = rest;
                self.line.push(*byte);
                if self.line.ends_with(b"\r\n") {
                    let text = std::str::from_utf8(&self.line).expect("a line").trim();
                    self.left = if text.is_empty() {
                        0
                    } else {
                        usize::from_str_radix(text, 16).expect("a length")
                    };
                    self.line.clear();
                }
                continue;
            }
            let (mut now, rest) = data.split_at(self.left.min(data.len()));
            data = rest;
            self.left -= now.len();
            let skipped = self.skip.min(now.len());
            now = &now[skipped..];
            self.skip -= skipped;
            while let Some(frame) = self.frames.next(&mut now) {
                let Frame::Whole(frame) = frame else {
                    panic!("too long")
                };
                assert_eq!(frame.len(), item);
                self.seen += 1;
            }
        }
    }
}

fn core(groups: usize) -> f64 {
    let keys = VersionKeys::derive(&Dek::generate().expect("random")).expect("memory");
    let field = [7; FIELD];
    let mut sealer = Sealer::new(&keys, KeyringId([7; 16]), 1).expect("random");
    let (start, mut fields) = (Instant::now(), 0);
    let mut out = Vec::with_capacity(GROUP * (FIELD + OVERHEAD));
    for _ in 0..groups {
        out.clear();
        for _ in 0..GROUP {
            let from = out.len();
            out.extend_from_slice(&[0; PREFIX_LEN]);
            out.extend_from_slice(&field);
            sealer.seal(b"", &mut out, from);
        }
        black_box(&out);
        fields += GROUP;
    }
    fields as f64 / start.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}
