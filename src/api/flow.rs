//! Streams: bodies that are encrypted, decrypted or rewrapped while they come, in memory that doesn't grow with them.
//!
//! Plaintexts pass through here, chunk by chunk; one leaves only after its tag has been verified.

use std::sync::Arc;

use async_stream::try_stream;
use bytes::Bytes;
use futures_util::Stream;

use crate::http::{
    body::Inflow,
    problem::{Code, Problem},
};
use crate::session::{Session, StreamDecryptor};
use crate::{
    clock::Clock,
    crypto::{
        CHUNK_LEN, MessageError, PREFIX_LEN, SEALED_CHUNK_LEN, opened_stream_len, sealed_stream_len,
    },
    refresh::Keyring,
};

/// A stream that is worked on.
pub(crate) struct Streaming {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) clock: Clock,
    pub(crate) aad: Vec<u8>,
    pub(crate) inflow: Inflow,
}

/// What a stream is answered with: the pieces, their whole length if that is known, and the version behind them.
pub(crate) struct Streamed<S> {
    pub(crate) pieces: S,
    pub(crate) length: Option<u64>,
    pub(crate) version: u32,
}

impl Streaming {
    pub(crate) fn encrypt(
        self,
    ) -> Result<Streamed<impl Stream<Item = Result<Bytes, Problem>> + Send>, Problem> {
        let session = Session::new(&self.keyring, self.clock.now())?;
        let (mut encryptor, prefix) = session.stream_encryptor(&self.aad)?;
        let (version, length) = (
            encryptor.version(),
            self.inflow.remaining().and_then(sealed_stream_len),
        );
        let Self {
            keyring,
            clock,
            mut inflow,
            ..
        } = self;
        let pieces = try_stream! {
            let mut from = PREFIX_LEN;
            loop {
                let mut piece = Vec::with_capacity(from + SEALED_CHUNK_LEN);
                piece.extend_from_slice(&prefix[..from]);
                inflow.fill(&mut piece, from + CHUNK_LEN).await?;
                let is_last = inflow.is_over().await?;
                encryptor.encrypt(&keyring, clock.now(), is_last, &mut piece, from)?;
                yield Bytes::from(piece);
                if is_last {
                    break;
                }
                from = 0;
            }
        };
        Ok(Streamed {
            pieces,
            length,
            version,
        })
    }

    pub(crate) async fn decrypt(
        mut self,
    ) -> Result<Streamed<impl Stream<Item = Result<Bytes, Problem>> + Send>, Problem> {
        let announced = self.inflow.remaining();
        let prefix = self.prefix().await?;
        let mut session = Session::new(&self.keyring, self.clock.now())?;
        let decryptor = session.stream_decryptor(&self.aad, &prefix).await?;
        let length = announced.map(plaintext_len).transpose()?;
        let version = decryptor.version();
        let Self { clock, inflow, .. } = self;
        let pieces = try_stream! {
            let mut chunks = Chunks { inflow, decryptor };
            loop {
                let (piece, is_last) = chunks.next(&clock).await?;
                yield Bytes::from(piece);
                if is_last {
                    break;
                }
            }
        };
        Ok(Streamed {
            pieces,
            length,
            version,
        })
    }

    pub(crate) async fn rewrap(
        mut self,
    ) -> Result<Streamed<impl Stream<Item = Result<Bytes, Problem>> + Send>, Problem> {
        let announced = self.inflow.remaining();
        let old = self.prefix().await?;
        let mut session = Session::new(&self.keyring, self.clock.now())?;
        let decryptor = session.stream_decryptor(&self.aad, &old).await?;
        let (mut encryptor, prefix) = session.stream_encryptor(&self.aad)?;
        let length = announced
            .map(plaintext_len)
            .transpose()?
            .and_then(sealed_stream_len);
        let version = encryptor.version();
        let Self {
            keyring,
            clock,
            inflow,
            ..
        } = self;
        let pieces = try_stream! {
            let mut chunks = Chunks { inflow, decryptor };
            let mut head = Some(Bytes::copy_from_slice(&prefix));
            loop {
                let (mut piece, is_last) = chunks.next(&clock).await?;
                encryptor.encrypt(&keyring, clock.now(), is_last, &mut piece, 0)?;
                // Only now, so that what fails at once is answered with a problem.
                if let Some(head) = head.take() {
                    yield head;
                }
                yield Bytes::from(piece);
                if is_last {
                    break;
                }
            }
        };
        Ok(Streamed {
            pieces,
            length,
            version,
        })
    }

    async fn prefix(&mut self) -> Result<[u8; PREFIX_LEN], Problem> {
        let mut prefix = Vec::with_capacity(PREFIX_LEN);
        self.inflow.fill(&mut prefix, PREFIX_LEN).await?;
        prefix
            .try_into()
            .map_err(|_| MessageError::Malformed("shorter than any ciphertext").into())
    }
}

/// The plaintext chunks of a stream that comes.
struct Chunks {
    inflow: Inflow,
    decryptor: StreamDecryptor,
}

impl Chunks {
    /// The next chunk's plaintext, with room for its tag, and whether it was the last.
    async fn next(&mut self, clock: &Clock) -> Result<(Vec<u8>, bool), Problem> {
        let mut chunk = Vec::with_capacity(SEALED_CHUNK_LEN);
        self.inflow.fill(&mut chunk, SEALED_CHUNK_LEN).await?;
        let is_last = self.inflow.is_over().await?;
        let length = self.decryptor.decrypt(clock.now(), is_last, &mut chunk)?;
        chunk.truncate(length);
        Ok((chunk, is_last))
    }
}

fn plaintext_len(stream: u64) -> Result<u64, Problem> {
    opened_stream_len(stream).ok_or_else(|| {
        Problem::new(
            Code::MalformedCiphertext,
            "no stream has this length: bytes are missing, or there are too many",
        )
    })
}
