//! Limits of size, time and memory, over in-memory connections with paused time.

use tokio::{io::AsyncWriteExt, time::sleep};

use super::{
    testing::{request, request_with},
    *,
};
use crate::http::account::testing::{account, accounts};

const SIZE: BodySize = BodySize {
    max_len: 3000,
    memory_factor: 2,
};

fn limits() -> Arc<BodyLimits> {
    let timeouts = Timeouts {
        body: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        ..Timeouts::default()
    };
    Arc::new(BodyLimits::new(&timeouts))
}

async fn stream(account: &Arc<Account>, body: RequestBody, first: &'static [u8]) -> BodyStream {
    let start = BodyStart {
        bytes: Bytes::from_static(first),
        ..BodyStart::default()
    };
    let stream = limits().stream(account, body, start).await;
    stream.expect("memory")
}

async fn read(account: &Arc<Account>, body: RequestBody) -> Result<BufferedBody, Problem> {
    limits()
        .read(account, body, BodyStart::default(), SIZE, |length| {
            let mut buffer = Vec::with_capacity(3 + length);
            buffer.extend_from_slice(b"...");
            buffer
        })
        .await
}

fn code<T>(result: Result<T, Problem>) -> Code {
    result.err().expect("fails").code
}

#[tokio::test(start_paused = true)]
async fn a_buffered_body_follows_what_the_buffer_holds() {
    let (body, _client) = request_with(b"hello").await;
    assert_eq!(body.remaining(), Some(5));
    let body = read(&account(0), body).await.expect("small");
    assert_eq!((&body.bytes[..], body.length), (&b"...hello"[..], 5));
    assert!(body.share.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_has_no_first_bytes() {
    let (mut body, _client) = request("Content-Length: 0").await;
    let first = limits().first(&account(Limits::FLOW_COST), &mut body).await;
    assert!(first.expect("read").bytes.is_empty() && body.remaining() == Some(0));
}

#[tokio::test(start_paused = true)]
async fn an_announced_body_beyond_the_limit_is_rejected_at_once() {
    let (body, _client) = request("Content-Length: 3001").await;
    let start = Instant::now();
    assert_eq!(
        code(read(&account(1 << 20), body).await),
        Code::BodyTooLarge
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_body_of_unknown_length_is_limited_as_it_arrives() {
    let (body, mut client) = request("Transfer-Encoding: chunked").await;
    assert_eq!(body.remaining(), None);
    let chunk = format!("bb9\r\n{}\r\n0\r\n\r\n", "x".repeat(3001));
    client.write_all(chunk.as_bytes()).await.expect("written");
    assert_eq!(
        code(read(&account(1 << 20), body).await),
        Code::BodyTooLarge
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_times_out() {
    let (body, mut client) = request("Content-Length: 10").await;
    client.write_all(b"hello").await.expect("written");
    let start = Instant::now();
    assert_eq!(code(read(&account(0), body).await), Code::RequestTimeout);
    assert_eq!(start.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_cut_off_is_invalid() {
    let (body, mut client) = request("Content-Length: 10").await;
    client.write_all(b"hello").await.expect("written");
    client.shutdown().await.expect("shut down");
    assert_eq!(code(read(&account(0), body).await), Code::InvalidRequest);
}

#[tokio::test(start_paused = true)]
async fn a_body_without_memory_is_rejected_before_its_time_is_over() {
    let account = account(5000);
    let _held = account.reserve(2000).await.expect("free");
    let (body, _client) = request_with(&[7; 2000]).await;
    let start = Instant::now();
    assert_eq!(code(read(&account, body).await), Code::Overloaded);
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_read_by_bytes_and_chunks_and_counted() {
    let (body, _client) = request_with(b"0123456789").await;
    let mut body = stream(&account(1 << 20), body, b"ab").await;
    let received = body.received();
    assert_eq!(body.remaining(), Some(12));
    assert_eq!(body.byte().await, Ok(Some(b'a')));
    assert_eq!(received.load(Ordering::Relaxed), 1);
    let mut chunk = Vec::new();
    body.fill(&mut chunk, 8).await.expect("read");
    assert_eq!(chunk, b"b0123456");
    assert_eq!(received.load(Ordering::Relaxed), 9);
    assert_eq!(body.is_over().await, Ok(false));
    body.fill(&mut chunk, 100).await.expect("read");
    assert_eq!(chunk, b"b0123456789");
    assert_eq!(body.is_over().await, Ok(true));
    assert_eq!((body.byte().await, body.next().await), (Ok(None), Ok(None)));
    assert_eq!(received.load(Ordering::Relaxed), 12);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stalls_fails_after_the_idle_limit() {
    let (body, _client) = request("Content-Length: 10").await;
    let mut body = stream(&account(1 << 20), body, b"").await;
    let start = Instant::now();
    assert_eq!(code(body.next().await), Code::RequestTimeout);
    assert_eq!(start.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_slow_stream_fails_once_other_requests_wait_for_memory() {
    let (body, mut client) = request("Content-Length: 1000000").await;
    let accounts = accounts(Limits::FLOW_COST, Duration::from_secs(5));
    let mut body = stream(&accounts.of_user(1), body, b"").await;
    let trickle = async {
        loop {
            client.write_all(b"x").await.expect("written");
            sleep(Duration::from_millis(100)).await;
        }
    };
    let read = async {
        let quiet = timeout(Duration::from_secs(30), async {
            while body.next().await.is_ok() {}
        });
        quiet.await.expect_err("slow, but no other request waits");
        let start = Instant::now();
        let result = loop {
            if let Err(problem) = body.next().await {
                break problem;
            }
        };
        assert_eq!(result.code, Code::RequestTimeout);
        assert!(start.elapsed() <= 2 * GROWTH_INTERVAL);
        drop(body);
    };
    let wait = async {
        sleep(Duration::from_secs(30)).await;
        accounts.of_user(2).reserve(2000).await.expect("given back");
    };
    tokio::select! {
        () = trickle => {}
        ((), ()) = async { tokio::join!(read, wait) } => {}
    }
}
