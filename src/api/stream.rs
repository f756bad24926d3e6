//! Streams: bodies that are encrypted, decrypted or rewrapped as they arrive, in constant memory.
//!
//! Plaintexts pass through here chunk by chunk. A chunk is released only after its tag is verified.

use std::sync::Arc;

use async_stream::try_stream;
use bytes::Bytes;
use hyper::Response;
use jiff::Timestamp;

use super::{
    error::RequestError,
    job::{Buffering, Job},
};
use crate::{
    crypto::{
        CHUNK_LEN, CiphertextError, PREFIX_LEN, SEALED_CHUNK_LEN, opened_stream_len,
        sealed_stream_len,
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
    buffering: Buffering,
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
    job.respond_stream(chunks, buffering, length, received, (OCTETS, Some(version)))
        .await
}

/// `session` is called once the ciphertext's prefix has arrived.
pub(crate) async fn decrypt(
    job: &Job<'_>,
    session: impl FnOnce() -> Result<StreamSession, SessionError>,
    aad: &[u8],
    mut body: BodyStream,
    buffering: Buffering,
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
    job.respond_stream(chunks, buffering, length, received, (OCTETS, Some(version)))
        .await
}

/// `session` is called once the ciphertext's prefix has arrived.
pub(crate) async fn rewrap(
    job: &Job<'_>,
    session: impl FnOnce() -> Result<StreamSession, SessionError>,
    aad: &[u8],
    mut body: BodyStream,
    buffering: Buffering,
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
    job.respond_stream(chunks, buffering, length, received, (OCTETS, Some(version)))
        .await
}

async fn read_prefix(body: &mut BodyStream) -> Result<[u8; PREFIX_LEN], Problem> {
    let mut prefix = Vec::with_capacity(PREFIX_LEN);
    body.fill(&mut prefix, PREFIX_LEN).await?;
    prefix
        .try_into()
        .map_err(|_| CiphertextError::Malformed("shorter than any ciphertext").into())
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use http_body_util::BodyExt;
    use hyper::Version;
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::{
        api::{denial::Denials, metrics::OperationMetrics},
        audit::Recorder,
        clock::{Clock, ManualClock},
        config::{Limits, Timeouts},
        crypto::Header,
        http::{
            account::{Account, testing::account},
            body::{BodyLimits, BodyStart, RequestBody, testing},
        },
        keyring::{Policy, WaveSelector},
        model::Operation,
        policy::Caller,
        refresh::testing::ManualKeyring,
        session::testing::{AAD, ID, activate, keyring_with, manifest, start, table},
        telemetry::Registry,
    };

    /// A keyring with two versions, of which the first is primary.
    struct World {
        keyring: ManualKeyring,
        clock: Clock,
        time: ManualClock,
        limits: Limits,
        bodies: Arc<BodyLimits>,
        account: Arc<Account>,
        metrics: Arc<OperationMetrics>,
        denials: Denials,
    }

    impl World {
        fn new() -> Self {
            let keyring = keyring_with(table(manifest(2), "standard", &[]));
            let registry = Arc::new(Registry::default());
            let metrics = OperationMetrics::new(&registry, &keyring.keyring, Operation::Encrypt);
            let (clock, time) = Clock::manual(start());
            Self {
                keyring,
                denials: Denials::new(Recorder::default(), clock.clone()),
                clock,
                time,
                limits: Limits::default(),
                bodies: Arc::new(BodyLimits::new(&Timeouts::default())),
                account: account(1 << 20),
                metrics: Arc::new(metrics),
            }
        }

        fn activate_version_2(&self) {
            let mut manifest = manifest(2);
            activate(&mut manifest, 2, WaveSelector::Every, start());
            self.keyring
                .activate(table(manifest, "standard", &[]), start());
        }

        fn job(&self, operation: Operation) -> Job<'_> {
            Job {
                caller: Caller::TokenHolder,
                operation,
                keyring: &self.keyring.keyring,
                metrics: &self.metrics,
                limits: &self.limits,
                bodies: &self.bodies,
                denials: &self.denials,
                account: &self.account,
                clock: &self.clock,
                http_version: Version::HTTP_11,
                start: Instant::now(),
            }
        }

        async fn perform(
            &self,
            job: &Job<'_>,
            body: RequestBody,
        ) -> Result<Response<ResponseBody>, RequestError> {
            let body = self
                .bodies
                .stream(&self.account, body, BodyStart::default())
                .await?;
            let session = || Session::new(Arc::clone(job.keyring), job.now());
            match job.operation {
                Operation::Encrypt => encrypt(job, session()?, AAD, body, Buffering::Chunk).await,
                Operation::Rewrap => rewrap(job, session, AAD, body, Buffering::Chunk).await,
                _ => decrypt(job, session, AAD, body, Buffering::Chunk).await,
            }
        }

        /// Performs an operation on a whole body. Returns the response up to its end or its abort.
        async fn transform(
            &self,
            operation: Operation,
            body: &[u8],
        ) -> Result<(Vec<u8>, Result<(), String>), RequestError> {
            let (request, _client) = testing::request_with(body).await;
            let response = self.perform(&self.job(operation), request).await?;
            Ok(collect(response).await)
        }

        async fn complete(&self, operation: Operation, body: &[u8]) -> Vec<u8> {
            let (bytes, end) = self.transform(operation, body).await.expect("begins");
            end.expect("is complete");
            bytes
        }
    }

    async fn collect(response: Response<ResponseBody>) -> (Vec<u8>, Result<(), String>) {
        let (mut body, mut bytes) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame.into_data().expect("data")),
                Err(error) => return (bytes, Err(error.to_string())),
            }
        }
        (bytes, Ok(()))
    }

    async fn send_chunk(client: &mut DuplexStream, chunk: &[u8]) {
        let length = format!("{:x}\r\n", chunk.len());
        for bytes in [length.as_bytes(), chunk, b"\r\n"] {
            client.write_all(bytes).await.expect("written");
        }
    }

    fn plaintext() -> Vec<u8> {
        (0..2 * CHUNK_LEN + 5).map(|at| at as u8).collect()
    }

    #[tokio::test]
    async fn a_plaintext_survives_encrypting_rewrapping_and_decrypting() {
        let world = World::new();
        for plaintext in [plaintext(), Vec::new(), vec![7; CHUNK_LEN]] {
            let stream = world.complete(Operation::Encrypt, &plaintext).await;
            let expected = sealed_stream_len(plaintext.len() as u64);
            assert_eq!(Some(stream.len() as u64), expected);
            assert_eq!(Header::parse(&stream, &ID).expect("header").version, 1);
            world.activate_version_2();
            let rewrapped = world.complete(Operation::Rewrap, &stream).await;
            assert_eq!(Header::parse(&rewrapped, &ID).expect("header").version, 2);
            let decrypted = world.complete(Operation::Decrypt, &rewrapped).await;
            assert!(decrypted == plaintext);
            world
                .keyring
                .activate(table(manifest(2), "standard", &[]), start());
        }
    }

    #[tokio::test]
    async fn a_tampered_chunk_is_never_released() {
        let world = World::new();
        let mut stream = world.complete(Operation::Encrypt, &plaintext()).await;
        stream[PREFIX_LEN + SEALED_CHUNK_LEN + 1] ^= 1;
        let result = world.transform(Operation::Decrypt, &stream).await;
        let (released, end) = result.expect("the first chunk is intact");
        assert!(released == plaintext()[..CHUNK_LEN]);
        assert_eq!(end, Err("response aborted: decryption_failed".into()));
    }

    #[tokio::test]
    async fn a_stream_without_its_last_chunk_is_aborted() {
        let world = World::new();
        let mut stream = world.complete(Operation::Encrypt, &plaintext()).await;
        stream.truncate(PREFIX_LEN + 2 * SEALED_CHUNK_LEN);
        let (_, end) = world
            .transform(Operation::Decrypt, &stream)
            .await
            .expect("begins");
        assert_eq!(end, Err("response aborted: decryption_failed".into()));
    }

    #[tokio::test]
    async fn a_failure_of_the_first_chunk_is_a_problem() {
        let world = World::new();
        let mut stream = world.complete(Operation::Encrypt, b"text").await;
        stream[PREFIX_LEN] ^= 1;
        for operation in [Operation::Decrypt, Operation::Rewrap] {
            let error = world.transform(operation, &stream).await.err();
            let code = error.expect("fails").problem.code;
            assert_eq!(code, Code::DecryptionFailed);
        }
        let error = world
            .transform(Operation::Decrypt, &stream[..10])
            .await
            .err();
        let code = error.expect("fails").problem.code;
        assert_eq!(code, Code::MalformedCiphertext);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_ends_aborts_an_encrypting_stream() {
        let world = World::new();
        let (request, mut client) = testing::request("Transfer-Encoding: chunked").await;
        send_chunk(&mut client, &plaintext()[..CHUNK_LEN + 1]).await;
        let job = world.job(Operation::Encrypt);
        let response = world.perform(&job, request).await.expect("begins");
        world.time.advance(Policy::default().encrypt_lease.0);
        send_chunk(&mut client, &plaintext()[CHUNK_LEN + 1..]).await;
        client.write_all(b"0\r\n\r\n").await.expect("written");
        let (sent, end) = collect(response).await;
        assert_eq!(sent.len(), PREFIX_LEN + SEALED_CHUNK_LEN);
        assert_eq!(end, Err("response aborted: lease_expired".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_aborts_the_stream() {
        let world = World::new();
        let (request, mut client) = testing::request("Transfer-Encoding: chunked").await;
        send_chunk(&mut client, &plaintext()[..CHUNK_LEN + 1]).await;
        let job = world.job(Operation::Encrypt);
        let response = world.perform(&job, request).await.expect("begins");
        let start = tokio::time::Instant::now();
        let (_, end) = collect(response).await;
        assert_eq!(end, Err("response aborted: request_timeout".into()));
        assert!(start.elapsed() >= Duration::from_secs(300));
    }

    #[tokio::test]
    async fn http_1_0_can_only_receive_a_stream_of_known_length() {
        let world = World::new();
        let job = Job {
            http_version: Version::HTTP_10,
            ..world.job(Operation::Encrypt)
        };
        let (request, mut client) = testing::request("Transfer-Encoding: chunked").await;
        send_chunk(&mut client, b"text").await;
        let error = world.perform(&job, request).await.err().expect("fails");
        assert_eq!(error.problem.code, Code::InvalidRequest);
        let (request, _client) = testing::request_with(b"text").await;
        let (_, end) = collect(world.perform(&job, request).await.expect("begins")).await;
        end.expect("is complete");
    }
}
