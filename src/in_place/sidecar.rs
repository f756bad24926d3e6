//! The sidecar that rewraps, through its socket.

use std::{io, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Method, Response, StatusCode,
    body::Incoming,
    client::conn::http1::SendRequest,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde::Deserialize;
use tokio::time::sleep;

use super::source::{Sink, Source};
use crate::{
    client::{
        MAX_RESPONSE, Problem, SidecarError, Socket, error_of, incomplete, read_body, request,
    },
    crypto::{KeyringId, MessageError, PEEK_LEN, Peek, from_text, peek, to_text},
    wire::{BATCH, DONE, Frame, Frames, ITEMS_HAVE_AAD, OCTETS},
};

/// How often a request is tried again that the sidecar can't take for the moment.
const ATTEMPTS: u32 = 5;
/// How long it is waited for that; a sidecar that asks for more has another trouble than too many requests.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Why one ciphertext was not rewrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ItemError {
    pub(super) code: String,
    pub(super) message: String,
}

/// What went wrong with a whole ciphertext.
pub(super) enum WholeError {
    Item(ItemError),
    Sidecar(SidecarError),
    File(io::Error),
}

/// What is in force for the sidecar's wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InForce {
    pub(super) tag: [u8; 4],
    pub(super) primary: u32,
}

type Payload = Either<Full<Bytes>, Source>;

/// A sidecar, one of its keyrings, and the AAD of everything that is rewrapped.
pub struct Sidecar {
    socket: Socket,
    keyring: String,
    aad: String,
    connection: Option<SendRequest<Payload>>,
}

#[derive(Deserialize)]
struct Status {
    id: KeyringId,
    primary: Option<u32>,
}

impl From<Problem> for ItemError {
    fn from(problem: Problem) -> Self {
        Self {
            message: problem.message(),
            code: problem.code,
        }
    }
}

impl Sidecar {
    /// The sidecar at `socket`. Nothing is sent yet.
    pub fn new(socket: PathBuf, keyring: String, aad: &str) -> Self {
        Self {
            socket: Socket::new(socket),
            keyring,
            aad: aad.into(),
            connection: None,
        }
    }

    /// Which version is the primary.
    pub(super) async fn in_force(&mut self) -> Result<InForce, SidecarError> {
        let path = format!("/v1/keyrings/{}", self.keyring);
        let response = self
            .send(Method::GET, &path, None, || Either::Left(Full::default()))
            .await?;
        if response.status() != StatusCode::OK {
            return Err(error_of(response).await);
        }
        let status: Status = parse(&read_body(response).await?)?;
        let no_primary = || SidecarError::Refused {
            code: "no_primary".into(),
            message: format!(
                "no version of {} encrypts for this sidecar's wave",
                self.keyring
            ),
        };
        Ok(InForce {
            tag: status.id.tag(),
            primary: status.primary.ok_or_else(no_primary)?,
        })
    }

    /// Rewraps text forms, each on its own, in order.
    pub(super) async fn items(
        &mut self,
        texts: &[&str],
    ) -> Result<Vec<Result<String, ItemError>>, SidecarError> {
        let malformed = |error: MessageError| ItemError {
            code: "malformed_ciphertext".into(),
            message: error.to_string(),
        };
        let messages: Vec<_> = texts
            .iter()
            .map(|text| from_text(text).map_err(malformed))
            .collect();
        let sent: Vec<&[u8]> = messages.iter().flatten().map(Vec::as_slice).collect();
        let mut answers = Vec::with_capacity(sent.len());
        while answers.len() < sent.len() {
            self.batch(&sent[answers.len()..], &mut answers).await?;
        }
        let mut answers = answers.into_iter();
        Ok(messages
            .into_iter()
            .filter_map(|message| message.map_or_else(|error| Some(Err(error)), |_| answers.next()))
            .collect())
    }

    /// Appends the answers to some messages, one at least; not to all of them if the sidecar broke off in between, as it does when it
    /// has no room for the next one. Whoever asks for the rest hears why, since that then stands at the beginning.
    async fn batch(
        &mut self,
        messages: &[&[u8]],
        answers: &mut Vec<Result<String, ItemError>>,
    ) -> Result<(), SidecarError> {
        let request = batch_of(messages, self.aad.as_bytes())?;
        let path = format!("/v1/keyrings/{}/rewrap", self.keyring);
        let response = self
            .send(Method::POST, &path, Some(BATCH), || {
                Either::Left(Full::new(request.clone()))
            })
            .await?;
        if response.status() != StatusCode::OK {
            return Err(error_of(response).await);
        }
        let (mut body, mut frames, before) = (
            response.into_body(),
            Frames::new(MAX_RESPONSE),
            answers.len(),
        );
        while let Some(piece) = body.frame().await {
            let piece = match piece {
                Ok(piece) => piece.into_data().unwrap_or_default(),
                Err(_) if answers.len() > before => {
                    // What is left of it has no place for another request.
                    self.connection = None;
                    return Ok(());
                }
                Err(error) => return Err(incomplete(&error)),
            };
            let mut data = &piece[..];
            while let Some(frame) = frames.next(&mut data) {
                if answers.len() - before == messages.len() {
                    return Err(SidecarError::Unexpected(format!(
                        "more than {} results",
                        messages.len()
                    )));
                }
                answers.push(answer(frame)?);
            }
        }
        match answers.len() - before {
            count if count == messages.len() && frames.is_between_frames() => Ok(()),
            count => Err(SidecarError::Unexpected(format!(
                "{count} results for {} items",
                messages.len()
            ))),
        }
    }

    /// Rewraps one ciphertext of any length, as bytes in and bytes out, into `sink`. If this fails, the sink may hold a part.
    pub(super) async fn whole<W: io::Write>(
        &mut self,
        source: &Source,
        in_force: InForce,
        sink: &mut Sink<W>,
        progress: impl Fn(u64),
    ) -> Result<(), WholeError> {
        let path = format!("/v1/keyrings/{}/rewrap", self.keyring);
        let payload = || Either::Right(source.clone());
        let response = self.send(Method::POST, &path, Some(OCTETS), payload).await;
        let response = response.map_err(|error| match error {
            SidecarError::Unreadable(reason) => WholeError::File(io::Error::other(reason)),
            error => WholeError::Sidecar(error),
        })?;
        if response.status() != StatusCode::OK {
            let problem = Problem::from_response(response)
                .await
                .map_err(WholeError::Sidecar)?;
            return Err(match problem.code.as_str() {
                "decryption_failed"
                | "malformed_ciphertext"
                | "wrong_keyring"
                | "body_too_large"
                | "headers_too_large"
                | "invalid_request"
                | "key_version_unavailable"
                | "key_version_disabled"
                | "key_version_destroyed"
                | "request_timeout" => WholeError::Item(problem.into()),
                _ => WholeError::Sidecar(problem.into()),
            });
        }
        let mut body = response.into_body();
        let mut first = Vec::new();
        while let Some(frame) = body.frame().await {
            // A stream's chunks are verified as they come, so a damaged one ends an answer that had begun well.
            let broke_off = |error: hyper::Error| {
                WholeError::Item(ItemError {
                    code: "answer_broke_off".into(),
                    message: format!(
                        "the answer broke off, as it does at a chunk that is damaged: {error}"
                    ),
                })
            };
            if let Ok(data) = frame.map_err(broke_off)?.into_data() {
                first.extend_from_slice(
                    &data[..data.len().min(PEEK_LEN.saturating_sub(first.len()))],
                );
                sink.write(&data).map_err(WholeError::File)?;
                progress(data.len() as u64);
            }
        }
        match peek(&first) {
            Some(Peek { tag, .. }) if tag == in_force.tag => Ok(()),
            _ => Err(WholeError::Sidecar(SidecarError::Unexpected(
                "no ciphertext of this keyring came back".into(),
            ))),
        }
    }

    /// Sends a request, anew over another connection if the one before was closed meanwhile, and later if the sidecar has no room.
    /// Rewrapping changes nothing at the sidecar, so trying again is safe.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        payload: impl Fn() -> Payload,
    ) -> Result<Response<Incoming>, SidecarError> {
        for attempt in 1.. {
            let (mut sender, is_reused) = self.connect().await?;
            let mut request = request(method.clone(), path);
            if let Some(content_type) = content_type {
                request = request.header(CONTENT_TYPE, content_type);
                if content_type == OCTETS && !self.aad.is_empty() {
                    request = request.header("Sidekey-Aad", STANDARD.encode(&self.aad));
                }
            }
            let request = request
                .body(payload())
                .map_err(|error| SidecarError::Unexpected(error.to_string()))?;
            match sender.send_request(request).await {
                Ok(response) => {
                    self.connection = Some(sender);
                    let wait = response
                        .headers()
                        .get(RETRY_AFTER)
                        .and_then(|value| value.to_str().ok()?.parse().ok());
                    match wait.map(Duration::from_secs) {
                        Some(wait)
                            if response.status() == StatusCode::SERVICE_UNAVAILABLE
                                && attempt < ATTEMPTS
                                && wait <= LONGEST_WAIT =>
                        {
                            sleep(wait).await;
                        }
                        _ => return Ok(response),
                    }
                }
                Err(error) if is_reused && !error.is_user() => drop(error),
                Err(error) => return Err(self.socket.send_error(&error)),
            }
        }
        unreachable!("attempts end by returning")
    }

    /// A connection that takes a request now, and whether it took one before.
    async fn connect(&mut self) -> Result<(SendRequest<Payload>, bool), SidecarError> {
        if let Some(mut sender) = self.connection.take()
            && sender.ready().await.is_ok()
        {
            return Ok((sender, true));
        }
        Ok((self.socket.connect().await?, false))
    }
}

/// The body that asks for some messages' rewrap.
fn batch_of(messages: &[&[u8]], aad: &[u8]) -> Result<Bytes, SidecarError> {
    let length = |length: usize| {
        let length = u32::try_from(length)
            .map_err(|_| SidecarError::Unreadable("an AAD has less than 4 GiB".into()))?;
        Ok::<_, SidecarError>(length.to_be_bytes())
    };
    let mut body = vec![ITEMS_HAVE_AAD];
    for message in messages {
        body.extend(length(size_of::<u32>() + aad.len() + message.len())?);
        body.extend(length(aad.len())?);
        body.extend_from_slice(aad);
        body.extend_from_slice(message);
    }
    Ok(body.into())
}

/// What a frame of a batch's answer says of its item.
fn answer(frame: Frame<'_>) -> Result<Result<String, ItemError>, SidecarError> {
    let Frame::Whole(frame) = frame else {
        return Err(SidecarError::Unexpected(
            "a result is longer than anything that was sent".into(),
        ));
    };
    match frame.split_first() {
        Some((&DONE, message)) => Ok(Ok(to_text(message))),
        Some((_, problem)) => Ok(Err(parse::<Problem>(problem)?.into())),
        None => Err(SidecarError::Unexpected("a result is empty".into())),
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, SidecarError> {
    serde_json::from_slice(body).map_err(|error| SidecarError::Unexpected(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    const IN_FORCE: InForce = InForce {
        tag: [7; 4],
        primary: 2,
    };
    /// What a fake answers to one item, and its text form.
    const NEW: [u8; 9] = [1, 7, 7, 7, 7, 0, 0, 0, 2];
    const END: &str = "0\r\n\r\n";
    const NEW_TEXT: &str = "sk1.AQcHBwcAAAAC";

    /// An answer of chunks; `end` is that of the last, or nothing if it breaks off.
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

    /// A fake, for what a real sidecar does only when something goes wrong: each connection gets one answer and is closed.
    async fn fake(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, Sidecar) {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("fake.sock");
        let listener = UnixListener::bind(&socket).expect("bind");
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                while !is_whole(&request) {
                    let read = stream.read(&mut buffer).await.expect("read");
                    request.extend_from_slice(&buffer[..read]);
                }
                stream.write_all(&answer).await.expect("write");
            }
        });
        (folder, Sidecar::new(socket, "demo".into(), ""))
    }

    fn is_whole(request: &[u8]) -> bool {
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
        format!("HTTP/1.1 {status}\r\nRetry-After: {retry_after}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
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
    async fn a_closed_connection_is_followed_by_another() {
        let (_folder, mut sidecar) = fake(vec![batch(1, END); 3]).await;
        for _ in 0..3 {
            assert_eq!(
                sidecar.items(&["sk1.olds"]).await.expect("an answer"),
                [Ok(NEW_TEXT.to_owned())]
            );
        }
    }

    #[tokio::test]
    async fn asks_again_where_there_was_no_room_and_not_where_waiting_would_be_long() {
        let busy = problem("503 Service Unavailable", 0, "overloaded");
        let (_folder, mut sidecar) = fake(vec![busy.clone(), busy, batch(1, END)]).await;
        assert_eq!(
            sidecar.items(&["sk1.olds"]).await.expect("an answer"),
            [Ok(NEW_TEXT.to_owned())]
        );
        let (_folder, mut sidecar) = fake(vec![problem(
            "503 Service Unavailable",
            60,
            "lease_expired",
        )])
        .await;
        let refused = sidecar.items(&["sk1.olds"]).await.expect_err("no lease");
        assert_eq!(refused.to_string(), "Title: detail (lease_expired)");
    }

    #[tokio::test]
    async fn a_batch_that_breaks_off_goes_on_where_it_did_and_says_why_it_cannot() {
        let (_folder, mut sidecar) = fake(vec![batch(2, ""), batch(1, ""), batch(1, END)]).await;
        // The second one never gets to the sidecar.
        let answers = sidecar
            .items(&["sk1.olds", "sk1.x", "sk1.olds", "sk1.olds", "sk1.olds"])
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
        let refused = sidecar.items(&["sk1.olds"; 2]).await.expect_err("no lease");
        assert_eq!(refused.to_string(), "Title: detail (lease_expired)");
        let (_folder, mut sidecar) = fake(vec![batch(0, "")]).await;
        assert!(matches!(
            sidecar.items(&["sk1.olds"]).await,
            Err(SidecarError::Unexpected(_))
        ));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_the_ciphertexts_fault() {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n".to_vec();
        answer.extend([1, 7, 7, 7, 7, 0, 0, 0, 2]);
        answer.extend(b"\r\n");
        let (_folder, mut sidecar) =
            fake(vec![answer.clone(), [&answer[..], b"0\r\n\r\n"].concat()]).await;
        let mut out = Vec::new();
        let result = sidecar
            .whole(&source(), IN_FORCE, &mut Sink::new(&mut out, false), |_| ())
            .await;
        assert!(
            matches!(result, Err(WholeError::Item(ItemError { code, .. })) if code == "answer_broke_off")
        );
        let result = sidecar
            .whole(&source(), IN_FORCE, &mut Sink::new(&mut out, false), |_| ())
            .await;
        assert!(result.is_ok(), "the same with an end");
    }

    #[tokio::test]
    async fn what_comes_back_has_to_be_a_ciphertext_of_the_keyring() {
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
            .whole(&source(), IN_FORCE, &mut Sink::new(&mut out, false), |_| ())
            .await;
        assert!(matches!(
            result,
            Err(WholeError::Sidecar(SidecarError::Unexpected(_)))
        ));
        for what in ["too few", "too many", "with a piece behind it"] {
            assert!(
                matches!(
                    sidecar.items(&["sk1.olds"]).await,
                    Err(SidecarError::Unexpected(_))
                ),
                "{what}"
            );
        }
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_not_the_sidecars_fault() {
        let (_folder, mut sidecar) = fake(vec![Vec::new()]).await;
        let source = Source { to: 90, ..source() };
        let result = sidecar
            .whole(&source, IN_FORCE, &mut Sink::new(Vec::new(), false), |_| ())
            .await;
        assert!(matches!(result, Err(WholeError::File(_))));
    }
}
