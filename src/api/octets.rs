//! The octet-stream form: bytes in, bytes out, AAD in a header.

use std::sync::{Arc, atomic::AtomicU64};

use base64::Engine;
use bytes::Bytes;
use futures_util::Stream;
use hyper::{HeaderMap, header::HeaderName};

use super::{
    ANY_PADDING,
    flow::{Streamed, Streaming},
    meters::Account,
    service::Job,
};
use crate::http::{
    body::{Arriving, Form, Read},
    problem::{Code, Problem},
    reply::Flow,
};
use crate::session::{Session, message_buffer};
use crate::{
    crypto::{OVERHEAD, PREFIX_LEN, SUITE_STREAM},
    model::Operation,
};

/// Carries the AAD in base64.
pub(crate) const AAD_HEADER: HeaderName = HeaderName::from_static("sidekey-aad");

pub(crate) fn aad(headers: &HeaderMap) -> Result<Vec<u8>, Problem> {
    let mut values = headers.get_all(AAD_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(Vec::new());
    };
    let invalid = |detail| Problem::new(Code::InvalidRequest, detail);
    if values.next().is_some() {
        return Err(invalid("the header Sidekey-Aad stands there twice"));
    }
    ANY_PADDING
        .decode(value)
        .map_err(|_| invalid("the header Sidekey-Aad is not base64"))
}

/// Refuses the header where it would not bind anything.
pub(crate) fn no_aad(headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(AAD_HEADER) {
        return Ok(());
    }
    Err(Problem::new(
        Code::InvalidRequest,
        "the header Sidekey-Aad binds nothing here: in JSON, every item has a member `aad`",
    ))
}

/// What a body is answered with.
pub(crate) enum Answer {
    /// The whole answer, made of so many bytes.
    Whole {
        received: usize,
        bytes: Bytes,
        version: u32,
    },
    /// An answer that goes on while the body comes.
    Flow(Flow, u32),
}

/// Does an operation on a body. One that is longer than a message may be, or whose length nobody announced, is a stream.
pub(crate) async fn perform(
    job: &Job<'_>,
    aad: Vec<u8>,
    mut body: Arriving,
) -> Result<Answer, Problem> {
    let announced = body.remaining();
    let is_at_most = |limit: usize| announced.is_some_and(|length| length <= limit as u64);
    if job.operation == Operation::Encrypt {
        let form = Form {
            limit: job.limits.body,
            cost: 1,
        };
        if !is_at_most(form.limit) {
            return Box::pin(stream(job, aad, body, Bytes::new())).await;
        }
        let body = job
            .bodies
            .read(body, Bytes::new(), form, message_buffer)
            .await?;
        return whole(job, &aad, body).await;
    }
    // A ciphertext may be as long as the longest plaintext makes it.
    let form = Form {
        limit: job.limits.body + OVERHEAD,
        cost: 1,
    };
    let mut first = Bytes::new();
    if !is_at_most(form.limit) {
        first = job.bodies.first(&mut body).await?;
        if first.first() == Some(&SUITE_STREAM) {
            return Box::pin(stream(job, aad, body, first)).await;
        }
    }
    let body = job
        .bodies
        .read(body, first, form, Vec::with_capacity)
        .await?;
    whole(job, &aad, body).await
}

/// Begins an answer that goes on while its body comes. Callers box this: a connection keeps room for all that any request may need.
async fn stream(
    job: &Job<'_>,
    aad: Vec<u8>,
    body: Arriving,
    first: Bytes,
) -> Result<Answer, Problem> {
    let inflow = job.bodies.flow(body, first).await?;
    let received = inflow.received();
    let streaming = Streaming {
        keyring: Arc::clone(job.keyring),
        clock: job.clock.clone(),
        aad,
        inflow,
    };
    match job.operation {
        Operation::Encrypt => flow(job, received, streaming.encrypt()?).await,
        Operation::Rewrap => flow(job, received, streaming.rewrap().await?).await,
        _ => flow(job, received, streaming.decrypt().await?).await,
    }
}

/// Waits for the first piece, so that what is wrong at once is answered with a problem.
async fn flow(
    job: &Job<'_>,
    received: Arc<AtomicU64>,
    streamed: Streamed<impl Stream<Item = Result<Bytes, Problem>> + Send + 'static>,
) -> Result<Answer, Problem> {
    let account = Account::new(Arc::clone(job.meters), job.start, received);
    Ok(Answer::Flow(
        Flow::begin(streamed.pieces, streamed.length, account).await?,
        streamed.version,
    ))
}

/// Does the work on a body that is all there; a plaintext stands behind the room that [`message_buffer`] leaves.
async fn whole(job: &Job<'_>, aad: &[u8], body: Read) -> Result<Answer, Problem> {
    let Read {
        mut bytes,
        length: received,
        share,
    } = body;
    let mut session = Session::new(job.keyring, job.clock.now())?;
    if job.operation != Operation::Encrypt {
        let (plaintext, version) = session.decrypt(aad, &mut bytes).await?;
        let end = PREFIX_LEN + plaintext.len();
        if job.operation != Operation::Rewrap {
            return Ok(Answer::Whole {
                received,
                bytes: share.keep_for(bytes).slice(PREFIX_LEN..end),
                version,
            });
        }
        // The plaintext already stands where the new message needs it.
        bytes.truncate(end);
    }
    let mut encryptor = session.encryptor()?;
    encryptor.encrypt(aad, &mut bytes);
    let (bytes, version) = (share.keep_for(bytes), encryptor.version());
    Ok(Answer::Whole {
        received,
        bytes,
        version,
    })
}
