//! The client of the sidecar that rewraps.

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
    crypto::{CiphertextError, KeyringId, PEEK_LEN, Peek, from_text, peek, to_text},
    wire::{AAD_HEADER, BATCH, DONE, Frame, Frames, ITEMS_HAVE_AAD, OCTETS},
};

/// How many times a request is sent while the sidecar is overloaded.
const MAX_ATTEMPTS: u32 = 5;
/// The longest Retry-After that is respected. A longer one has a reason other than overload.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A ciphertext was not rewrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ItemError {
    pub(super) code: String,
    pub(super) message: String,
}

/// A ciphertext that is sent alone was not rewrapped.
pub(super) enum SingleError {
    /// The ciphertext is at fault.
    Item(ItemError),
    /// The sidecar is at fault.
    Sidecar(SidecarError),
    /// The file is at fault.
    File(io::Error),
}

/// The keyring that the sidecar serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ActiveKeyring {
    /// The first bytes of the keyring's id.
    pub(super) tag: [u8; 4],
    /// The primary of the sidecar's wave.
    pub(super) primary: u32,
}

type Payload = Either<Full<Bytes>, Source>;

/// A sidecar, one of its keyrings, and the AAD of all ciphertexts.
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
    /// Uses the sidecar at `socket`. Sends nothing yet.
    pub fn new(socket: PathBuf, keyring: String, aad: &str) -> Self {
        Self {
            socket: Socket::new(socket),
            keyring,
            aad: aad.into(),
            connection: None,
        }
    }

    /// Asks for the keyring's id and primary.
    pub(super) async fn active_keyring(&mut self) -> Result<ActiveKeyring, SidecarError> {
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
            message: format!("{} has no primary for this sidecar's wave", self.keyring),
        };
        Ok(ActiveKeyring {
            tag: status.id.tag(),
            primary: status.primary.ok_or_else(no_primary)?,
        })
    }

    /// Rewraps text forms. Returns one result per text, in order.
    pub(super) async fn rewrap_texts(
        &mut self,
        texts: &[&str],
    ) -> Result<Vec<Result<String, ItemError>>, SidecarError> {
        let malformed = |error: CiphertextError| ItemError {
            code: "malformed_ciphertext".into(),
            message: error.to_string(),
        };
        let messages: Vec<_> = texts
            .iter()
            .map(|text| from_text(text).map_err(malformed))
            .collect();
        let sent: Vec<&[u8]> = messages.iter().flatten().map(Vec::as_slice).collect();
        let mut results = Vec::with_capacity(sent.len());
        while results.len() < sent.len() {
            self.batch(&sent[results.len()..], &mut results).await?;
        }
        let mut results = results.into_iter();
        Ok(messages
            .into_iter()
            .filter_map(|message| message.map_or_else(|error| Some(Err(error)), |_| results.next()))
            .collect())
    }

    /// Rewraps messages, and appends at least one result. The sidecar may abort the response before
    /// the last result, for example if it lacks memory for the next one. The next request, for the
    /// rest, then returns the reason.
    async fn batch(
        &mut self,
        messages: &[&[u8]],
        results: &mut Vec<Result<String, ItemError>>,
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
            results.len(),
        );
        while let Some(chunk) = body.frame().await {
            let chunk = match chunk {
                Ok(chunk) => chunk.into_data().unwrap_or_default(),
                Err(_) if results.len() > before => {
                    // An aborted response leaves no usable connection.
                    self.connection = None;
                    return Ok(());
                }
                Err(error) => return Err(incomplete(&error)),
            };
            let mut data = &chunk[..];
            while let Some(frame) = frames.next(&mut data) {
                if results.len() - before == messages.len() {
                    return Err(SidecarError::Unexpected(format!(
                        "more than {} results",
                        messages.len()
                    )));
                }
                results.push(result_in(frame)?);
            }
        }
        match results.len() - before {
            count if count == messages.len() && frames.is_between_frames() => Ok(()),
            count => Err(SidecarError::Unexpected(format!(
                "{count} results for {} items",
                messages.len()
            ))),
        }
    }

    /// Rewraps one ciphertext of any length into `sink`. After an error, the sink may hold a part.
    pub(super) async fn rewrap_single<W: io::Write>(
        &mut self,
        source: &Source,
        active: ActiveKeyring,
        sink: &mut Sink<W>,
        progress: impl Fn(u64),
    ) -> Result<(), SingleError> {
        let path = format!("/v1/keyrings/{}/rewrap", self.keyring);
        let payload = || Either::Right(source.clone());
        let response = self.send(Method::POST, &path, Some(OCTETS), payload).await;
        let response = response.map_err(|error| match error {
            SidecarError::Unreadable(reason) => SingleError::File(io::Error::other(reason)),
            error => SingleError::Sidecar(error),
        })?;
        if response.status() != StatusCode::OK {
            let problem = Problem::from_response(response)
                .await
                .map_err(SingleError::Sidecar)?;
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
                | "request_timeout" => SingleError::Item(problem.into()),
                _ => SingleError::Sidecar(problem.into()),
            });
        }
        let mut body = response.into_body();
        let mut first = Vec::new();
        while let Some(frame) = body.frame().await {
            // A stream is decrypted chunk by chunk, so a damaged chunk aborts a response that has
            // begun.
            let aborted = |error: hyper::Error| {
                SingleError::Item(ItemError {
                    code: "answer_broke_off".into(),
                    message: format!("the response was aborted, as for a damaged chunk: {error}"),
                })
            };
            if let Ok(data) = frame.map_err(aborted)?.into_data() {
                first.extend_from_slice(
                    &data[..data.len().min(PEEK_LEN.saturating_sub(first.len()))],
                );
                sink.write(&data).map_err(SingleError::File)?;
                progress(data.len() as u64);
            }
        }
        match peek(&first) {
            Some(Peek { tag, .. }) if tag == active.tag => Ok(()),
            _ => Err(SingleError::Sidecar(SidecarError::Unexpected(
                "the response is not a ciphertext of this keyring".into(),
            ))),
        }
    }

    /// Sends a request. Retries on a new connection if the previous one was closed meanwhile, and
    /// after a delay if the sidecar is overloaded. That is safe: a rewrap changes no state at the
    /// sidecar.
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
                    request = request.header(AAD_HEADER, STANDARD.encode(&self.aad));
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
                                && attempt < MAX_ATTEMPTS
                                && wait <= MAX_WAIT =>
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

    /// Returns a connection that is ready for a request, and whether it was used before.
    async fn connect(&mut self) -> Result<(SendRequest<Payload>, bool), SidecarError> {
        if let Some(mut sender) = self.connection.take()
            && sender.ready().await.is_ok()
        {
            return Ok((sender, true));
        }
        Ok((self.socket.connect().await?, false))
    }
}

/// Returns the body of a batch request.
fn batch_of(messages: &[&[u8]], aad: &[u8]) -> Result<Bytes, SidecarError> {
    let length = |length: usize| {
        let length = u32::try_from(length)
            .map_err(|_| SidecarError::Unreadable("the AAD is longer than 4 GiB".into()))?;
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

/// Parses one result of a batch response.
fn result_in(frame: Frame<'_>) -> Result<Result<String, ItemError>, SidecarError> {
    let Frame::Whole(frame) = frame else {
        return Err(SidecarError::Unexpected(
            "a result is longer than any item".into(),
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
mod tests;
