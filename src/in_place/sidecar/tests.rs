//! The client against a fake, for what a real sidecar does only when something fails.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::*;

const ACTIVE: ActiveKeyring = ActiveKeyring {
    tag: [7; 4],
    primary: 2,
};
/// The fake's result for one item, and its text form.
const NEW: [u8; 9] = [1, 7, 7, 7, 7, 0, 0, 0, 2];
const END: &str = "0\r\n\r\n";
const NEW_TEXT: &str = "sk1.AQcHBwcAAAAC";

/// A chunked response. `end` is its last chunk, or nothing if it is aborted.
fn batch(results: usize, end: &str) -> Vec<u8> {
    let frame = [&10u32.to_be_bytes()[..], &[DONE], &NEW].concat();
    let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..results {
        answer.extend(format!("{:x}\r\n", frame.len()).into_bytes());
        answer.extend([&frame[..], b"\r\n"].concat());
    }
    answer.extend(end.bytes());
    answer
}

/// A fake sidecar that sends one response per connection, and closes it.
async fn fake(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, Sidecar) {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("fake.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            while !is_complete(&request) {
                let read = stream.read(&mut buffer).await.expect("read");
                request.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(&answer).await.expect("write");
        }
    });
    (folder, Sidecar::new(socket, "demo".into(), ""))
}

fn is_complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .to_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn problem(status: &str, retry_after: u32, code: &str) -> Vec<u8> {
    let body = format!("{{\"code\":\"{code}\",\"title\":\"Title\",\"detail\":\"detail\"}}");
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nRetry-After: {retry_after}\r\n");
    format!("{head}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn source() -> Source {
    let mut file = tempfile::tempfile().expect("file");
    io::Write::write_all(&mut file, &[1; 60]).expect("write");
    Source {
        file: Arc::new(file),
        from: 0,
        to: 60,
        is_text: false,
    }
}

#[tokio::test]
async fn a_closed_connection_is_replaced() {
    let (_folder, mut sidecar) = fake(vec![batch(1, END); 3]).await;
    for _ in 0..3 {
        assert_eq!(
            sidecar
                .rewrap_texts(&["sk1.olds"])
                .await
                .expect("an answer"),
            [Ok(NEW_TEXT.to_owned())]
        );
    }
}

#[tokio::test]
async fn an_overloaded_sidecar_is_retried_unless_the_wait_is_long() {
    let busy = problem("503 Service Unavailable", 0, "overloaded");
    let (_folder, mut sidecar) = fake(vec![busy.clone(), busy, batch(1, END)]).await;
    assert_eq!(
        sidecar
            .rewrap_texts(&["sk1.olds"])
            .await
            .expect("an answer"),
        [Ok(NEW_TEXT.to_owned())]
    );
    let (_folder, mut sidecar) = fake(vec![problem(
        "503 Service Unavailable",
        60,
        "lease_expired",
    )])
    .await;
    let refused = sidecar
        .rewrap_texts(&["sk1.olds"])
        .await
        .expect_err("no lease");
    assert_eq!(refused.to_string(), "Title: detail (lease_expired)");
}

#[tokio::test]
async fn an_aborted_batch_is_resumed_or_returns_the_reason() {
    let (_folder, mut sidecar) = fake(vec![batch(2, ""), batch(1, ""), batch(1, END)]).await;
    // The second text is never sent.
    let answers = sidecar
        .rewrap_texts(&["sk1.olds", "sk1.x", "sk1.olds", "sk1.olds", "sk1.olds"])
        .await
        .expect("answers");
    let good: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_deref().ok())
        .collect();
    assert_eq!(
        good,
        [
            Some(NEW_TEXT),
            None,
            Some(NEW_TEXT),
            Some(NEW_TEXT),
            Some(NEW_TEXT)
        ]
    );
    assert_eq!(
        answers[1].as_ref().expect_err("no base64url").code,
        "malformed_ciphertext"
    );
    let (_folder, mut sidecar) = fake(vec![
        batch(1, ""),
        problem("503 Service Unavailable", 60, "lease_expired"),
    ])
    .await;
    let refused = sidecar
        .rewrap_texts(&["sk1.olds"; 2])
        .await
        .expect_err("no lease");
    assert_eq!(refused.to_string(), "Title: detail (lease_expired)");
    let (_folder, mut sidecar) = fake(vec![batch(0, "")]).await;
    assert!(matches!(
        sidecar.rewrap_texts(&["sk1.olds"]).await,
        Err(SidecarError::Unexpected(_))
    ));
}

#[tokio::test]
async fn an_aborted_response_is_an_error_of_the_ciphertext() {
    let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n".to_vec();
    answer.extend([1, 7, 7, 7, 7, 0, 0, 0, 2]);
    answer.extend(b"\r\n");
    let (_folder, mut sidecar) =
        fake(vec![answer.clone(), [&answer[..], b"0\r\n\r\n"].concat()]).await;
    let mut out = Vec::new();
    let result = sidecar
        .rewrap_single(&source(), ACTIVE, &mut Sink::new(&mut out, false), |_| ())
        .await;
    let Err(SingleError::Item(error)) = result else {
        panic!("not an error of the ciphertext")
    };
    assert_eq!(error.code, "answer_broke_off");
    let result = sidecar
        .rewrap_single(&source(), ACTIVE, &mut Sink::new(&mut out, false), |_| ())
        .await;
    assert!(result.is_ok(), "the complete response");
}

#[tokio::test]
async fn the_response_must_be_a_ciphertext_of_the_keyring() {
    let strange =
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\x01\x08\x08\x08\x08\0\0\0\x02".to_vec();
    let (_folder, mut sidecar) = fake(vec![
        strange,
        batch(0, END),
        batch(2, END),
        batch(1, "2\r\n\0\0\r\n0\r\n\r\n"),
    ])
    .await;
    let mut out = Vec::new();
    let result = sidecar
        .rewrap_single(&source(), ACTIVE, &mut Sink::new(&mut out, false), |_| ())
        .await;
    assert!(matches!(
        result,
        Err(SingleError::Sidecar(SidecarError::Unexpected(_)))
    ));
    for what in ["too few", "too many", "with trailing bytes"] {
        assert!(
            matches!(
                sidecar.rewrap_texts(&["sk1.olds"]).await,
                Err(SidecarError::Unexpected(_))
            ),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_truncated_file_is_an_error_of_the_file() {
    let (_folder, mut sidecar) = fake(vec![Vec::new()]).await;
    let source = Source { to: 90, ..source() };
    let result = sidecar
        .rewrap_single(&source, ACTIVE, &mut Sink::new(Vec::new(), false), |_| ())
        .await;
    assert!(matches!(result, Err(SingleError::File(_))));
}
