//! Streams: bodies that are encrypted, decrypted or rewrapped as they arrive, in constant memory.
//!
//! Plaintexts pass through here chunk by chunk. A chunk is released only after its tag is verified.

use std::sync::Arc;

use async_stream::try_stream;
use bytes::Bytes;
use hyper::Response;
use jiff::Timestamp;

use super::{error::RequestError, job::Job};
use crate::{
    crypto::{
        CHUNK_LEN, MessageError, PREFIX_LEN, SEALED_CHUNK_LEN, opened_stream_len, sealed_stream_len,
    },
    http::{body::BodyStream, problem::Problem, response::ResponseBody},
    refresh::Keyring,
    session::{Session, SessionError, StreamDecryptor},
    wire::{Code, OCTETS},
};

type StreamSession = Session<Arc<Keyring>>;

pub(crate) async fn encrypt(
    job: &Job<'_>,
    session: StreamSession,
    aad: &[u8],
    mut body: BodyStream,
) -> Result<Response<ResponseBody>, RequestError> {
    let (mut encryptor, prefix) = session.stream_encryptor(aad)?;
    let (received, version) = (body.received(), encryptor.version());
    let length = body.remaining().and_then(sealed_stream_len);
    let clock = job.clock.clone();
    let chunks = try_stream! {
        // The first chunk follows the prefix.
        let mut from = PREFIX_LEN;
        loop {
            let mut chunk = Vec::with_capacity(from + SEALED_CHUNK_LEN);
            chunk.extend_from_slice(&prefix[..from]);
            body.fill(&mut chunk, from + CHUNK_LEN).await?;
            let is_last = body.is_over().await?;
            encryptor.encrypt(clock.now(), is_last, &mut chunk, from)?;
            yield Bytes::from(chunk);
            if is_last {
                break;
            }
            from = 0;
        }
    };
    job.respond_stream(chunks, length, received, OCTETS, Some(version))
        .await
}

/// `session` is called once the ciphertext's prefix has arrived.
pub(crate) async fn decrypt(
    job: &Job<'_>,
    session: impl FnOnce() -> Result<StreamSession, SessionError>,
    aad: &[u8],
    mut body: BodyStream,
) -> Result<Response<ResponseBody>, RequestError> {
    let (received, announced) = (body.received(), body.remaining());
    let prefix = read_prefix(&mut body).await?;
    let decryptor = session()?.stream_decryptor(aad, &prefix).await?;
    let length = announced.map(plaintext_len).transpose()?;
    let (clock, version) = (job.clock.clone(), decryptor.version());
    let chunks = try_stream! {
        let mut plaintext = PlaintextChunks { body, decryptor };
        loop {
            let (chunk, is_last) = plaintext.next(|| clock.now()).await?;
            yield Bytes::from(chunk);
            if is_last {
                break;
            }
        }
    };
    job.respond_stream(chunks, length, received, OCTETS, Some(version))
        .await
}

/// `session` is called once the ciphertext's prefix has arrived.
pub(crate) async fn rewrap(
    job: &Job<'_>,
    session: impl FnOnce() -> Result<StreamSession, SessionError>,
    aad: &[u8],
    mut body: BodyStream,
) -> Result<Response<ResponseBody>, RequestError> {
    let (received, announced) = (body.received(), body.remaining());
    let old_prefix = read_prefix(&mut body).await?;
    let mut session = session()?;
    let decryptor = session.stream_decryptor(aad, &old_prefix).await?;
    let (mut encryptor, prefix) = session.stream_encryptor(aad)?;
    let length = announced
        .map(plaintext_len)
        .transpose()?
        .and_then(sealed_stream_len);
    let (clock, version) = (job.clock.clone(), encryptor.version());
    let chunks = try_stream! {
        let mut plaintext = PlaintextChunks { body, decryptor };
        let mut prefix = Some(Bytes::copy_from_slice(&prefix));
        loop {
            let (mut chunk, is_last) = plaintext.next(|| clock.now()).await?;
            encryptor.encrypt(clock.now(), is_last, &mut chunk, 0)?;
            // Sent after the first chunk was verified, so that an early failure becomes a problem.
            if let Some(prefix) = prefix.take() {
                yield prefix;
            }
            yield Bytes::from(chunk);
            if is_last {
                break;
            }
        }
    };
    job.respond_stream(chunks, length, received, OCTETS, Some(version))
        .await
}

async fn read_prefix(body: &mut BodyStream) -> Result<[u8; PREFIX_LEN], Problem> {
    let mut prefix = Vec::with_capacity(PREFIX_LEN);
    body.fill(&mut prefix, PREFIX_LEN).await?;
    prefix
        .try_into()
        .map_err(|_| MessageError::Malformed("shorter than any ciphertext").into())
}

/// The plaintext chunks of a stream that arrives.
struct PlaintextChunks {
    body: BodyStream,
    decryptor: StreamDecryptor,
}

impl PlaintextChunks {
    /// Returns the next chunk's plaintext, with capacity for a tag, and whether it is the last.
    async fn next(&mut self, now: impl FnOnce() -> Timestamp) -> Result<(Vec<u8>, bool), Problem> {
        let mut chunk = Vec::with_capacity(SEALED_CHUNK_LEN);
        self.body.fill(&mut chunk, SEALED_CHUNK_LEN).await?;
        let is_last = self.body.is_over().await?;
        let length = self.decryptor.decrypt(now(), is_last, &mut chunk)?;
        chunk.truncate(length);
        Ok((chunk, is_last))
    }
}

fn plaintext_len(stream: u64) -> Result<u64, Problem> {
    opened_stream_len(stream).ok_or_else(|| {
        Problem::new(
            Code::MalformedCiphertext,
            "no stream has this length: bytes are missing or surplus",
        )
    })
}
