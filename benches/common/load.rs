//! Load generation: a prebuilt request over persistent connections.

#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    reason = "each benchmark uses a part"
)]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// The measurements of a slice.
pub struct Load {
    /// Successful requests per second.
    pub rate: f64,
    pub errors: u64,
    /// Nanoseconds per successful request.
    pub latency: Histogram<u64>,
}

impl Load {
    /// Returns a latency quantile in microseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Sends `request` repeatedly on each connection, one at a time, for the length of `slice`.
pub async fn load(socket: &Path, request: &[u8], connections: usize, slice: Duration) -> Load {
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
                    Ok(true) => latency
                        .record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
                        .expect("in range"),
                    Ok(false) | Err(_) => errors += 1,
                }
            }
            (latency, errors)
        });
    }
    let mut all = Load {
        rate: 0.0,
        errors: 0,
        latency: Histogram::new(3).expect("histogram"),
    };
    while let Some(result) = tasks.join_next().await {
        let (latency, errors) = result.expect("client");
        all.latency.add(latency).expect("same bounds");
        all.errors += errors;
    }
    all.rate = all.latency.len() as f64 / start.elapsed().as_secs_f64();
    all
}

/// Sends a request and reads the response. Returns whether its status was 200.
async fn exchange(
    stream: &mut UnixStream,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> std::io::Result<bool> {
    stream.write_all(request).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = response.parse(buffer) else {
            continue;
        };
        let length = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length: usize = length
            .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
            .unwrap_or(0);
        let ok = response.code == Some(200);
        while buffer.len() < head + length {
            if stream.read_buf(buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        return Ok(ok);
    }
}
