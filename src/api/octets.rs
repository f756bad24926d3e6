//! The octet-stream format: bytes in, bytes out, AAD in a header.

use std::sync::Arc;

use hyper::Response;

use super::{error::RequestError, job::Job, stream};
use crate::{
    crypto::{OVERHEAD, PREFIX_LEN, SUITE_STREAM},
    http::{
        body::{BodySize, BodyStart, BufferedBody, RequestBody},
        payload::Payload,
        response::ResponseBody,
    },
    model::Operation,
    session::{Session, message_buffer},
    wire::OCTETS,
};

/// Performs the job on a body. A body that is longer than a message may be, or of unknown length,
/// is processed as a stream.
pub(crate) async fn perform(
    job: &Job<'_>,
    aad: Vec<u8>,
    mut body: RequestBody,
) -> Result<Response<ResponseBody>, RequestError> {
    let announced = body.remaining();
    let is_at_most = |limit: usize| announced.is_some_and(|length| length <= limit as u64);
    if job.operation == Operation::Encrypt {
        let size = BodySize {
            max_len: job.limits.body,
            memory_factor: 1,
        };
        if !is_at_most(size.max_len) {
            return Box::pin(perform_stream(job, aad, body, BodyStart::default())).await;
        }
        let start = BodyStart::default();
        let body = job
            .bodies
            .read(job.account, body, start, size, message_buffer)
            .await?;
        return perform_buffered(job, &aad, body).await;
    }
    let size = BodySize {
        max_len: job.limits.body + OVERHEAD,
        memory_factor: 1,
    };
    let mut start = BodyStart::default();
    if !is_at_most(size.max_len) {
        start = Box::pin(job.bodies.first(job.account, &mut body)).await?;
        if start.bytes.first() == Some(&SUITE_STREAM) {
            return Box::pin(perform_stream(job, aad, body, start)).await;
        }
    }
    let body = job
        .bodies
        .read(job.account, body, start, size, Vec::with_capacity)
        .await?;
    perform_buffered(job, &aad, body).await
}

/// Callers box this future: a connection reserves room for the largest future of any request.
async fn perform_stream(
    job: &Job<'_>,
    aad: Vec<u8>,
    body: RequestBody,
    start: BodyStart,
) -> Result<Response<ResponseBody>, RequestError> {
    let body = job.bodies.stream(job.account, body, start).await?;
    let buffering = job.buffering(body.remaining());
    let session = || Session::new(Arc::clone(job.keyring), job.now());
    match job.operation {
        Operation::Encrypt => stream::encrypt(job, session()?, &aad, body, buffering).await,
        Operation::Rewrap => stream::rewrap(job, session, &aad, body, buffering).await,
        _ => stream::decrypt(job, session, &aad, body, buffering).await,
    }
}

/// Performs the job on a whole body. A plaintext is preceded by the room of [`message_buffer`].
async fn perform_buffered(
    job: &Job<'_>,
    aad: &[u8],
    body: BufferedBody,
) -> Result<Response<ResponseBody>, RequestError> {
    let BufferedBody {
        mut bytes,
        length: received,
        share,
    } = body;
    let mut session = job.session()?;
    if job.operation != Operation::Encrypt {
        let (plaintext, version) = session.decrypt(aad, &mut bytes).await?;
        let end = PREFIX_LEN + plaintext.len();
        if job.operation != Operation::Rewrap {
            let payload = Payload::new(bytes, share).slice(PREFIX_LEN..end);
            return Ok(job.respond(received, payload, OCTETS, Some(version)));
        }
        // The plaintext is already where the new message needs it.
        bytes.truncate(end);
    }
    let mut encryptor = session.encryptor()?;
    encryptor.encrypt(aad, &mut bytes, 0);
    let payload = Payload::new(bytes, share);
    Ok(job.respond(received, payload, OCTETS, Some(encryptor.version())))
}
