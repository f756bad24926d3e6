//! The binary batch: frames in, frames out, in order, while the request still arrives. A bad item
//! fails alone.
//!
//! Plaintexts pass through here in chunks of the request.

use std::sync::Arc;

use async_stream::try_stream;
use bytes::Bytes;
use futures_util::Stream;
use hyper::Response;

use super::{
    denial::{Denials, Resource},
    error::RequestError,
    job::{Buffering, Job},
    metrics::OperationMetrics,
};
use crate::{
    clock::Clock,
    config::Limits,
    crypto::{CHUNK_LEN, PREFIX_LEN, sealed_stream_len},
    http::{body::BodyStream, memory::MemoryShare, problem::Problem, response::ResponseBody},
    model::Operation,
    policy::Caller,
    refresh::Keyring,
    session::{ItemProcessor, Session},
    wire::{BATCH, Code, DONE, FAILED, Frame, Frames, ITEMS_HAVE_AAD},
};

/// The length of a frame's length.
const LENGTH: usize = 4;
/// The longest AAD of an item.
const MAX_AAD: usize = 64 << 10;
/// Items up to this length fit into the memory that every batch reserves.
const MAX_UNRESERVED_ITEM: usize = CHUNK_LEN;

/// Performs the job on the items of a batch. `aad` is that of the header.
pub(crate) async fn perform(
    job: &Job<'_>,
    aad: Vec<u8>,
    body: BodyStream,
) -> Result<Response<ResponseBody>, RequestError> {
    let session = Session::new(Arc::clone(job.keyring), job.now())?;
    let processor = ItemProcessor::new(job.operation, session)?;
    let version = processor.encrypting_version();
    let max_item = max_item_len(job.operation, job.limits.body);
    let received = body.received();
    let batch = Batch {
        body,
        frames: Frames::new(LENGTH + MAX_AAD + max_item),
        writer: ResponseWriter {
            processor,
            aad: Some(aad),
            max_item,
            out: Vec::new(),
        },
        reserved: None,
        clock: job.clock.clone(),
        failures: FailureLog {
            keyring: Arc::clone(job.keyring),
            operation: job.operation,
            caller: job.caller,
            metrics: Arc::clone(job.metrics),
            denials: job.denials.clone(),
        },
    };
    let content = (BATCH, version);
    job.respond_stream(batch.run(), Buffering::Ahead, None, received, content)
        .await
}

/// The longest item. Anything that can be encrypted can be decrypted, as a message or as a stream.
fn max_item_len(operation: Operation, max_plaintext: usize) -> usize {
    match operation {
        Operation::Encrypt => max_plaintext,
        _ => sealed_stream_len(max_plaintext as u64)
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX),
    }
}

/// A batch in progress.
struct Batch {
    body: BodyStream,
    frames: Frames,
    writer: ResponseWriter,
    /// Memory for the long item that is arriving.
    reserved: Option<MemoryShare>,
    clock: Clock,
    failures: FailureLog,
}

impl Batch {
    /// The chunks of the response.
    fn run(mut self) -> impl Stream<Item = Result<Bytes, Problem>> + Send {
        try_stream! {
            self.read_flags().await?;
            while let Some(data) = self.body.next().await? {
                self.writer.processor.advance(self.clock.now())?;
                let mut data = &data[..];
                while self.process_next(&mut data).await? {
                    if self.writer.out.len() >= CHUNK_LEN {
                        yield self.writer.take();
                    }
                }
                if !self.writer.out.is_empty() {
                    yield self.writer.take();
                }
                self.reserve_for_long_item().await?;
            }
            self.reserved = None;
            if !self.frames.is_between_frames() {
                Err(invalid("the body ends within a frame"))?;
            }
        }
    }

    async fn read_flags(&mut self) -> Result<(), Problem> {
        let has_own_aad = match self.body.byte().await? {
            Some(flags) if flags & !ITEMS_HAVE_AAD == 0 => flags == ITEMS_HAVE_AAD,
            _ => {
                return Err(invalid(
                    "a batch starts with a byte of flags: 0, or 1 if each item has its own AAD",
                ));
            }
        };
        if has_own_aad {
            let header = self.writer.aad.take();
            if header.is_some_and(|aad| !aad.is_empty()) {
                return Err(invalid(
                    "send the AAD either in the Sidekey-Aad header or with each item, not both",
                ));
            }
        }
        Ok(())
    }

    /// Processes the next item in `data`. Returns false if more bytes must arrive first.
    async fn process_next(&mut self, data: &mut &[u8]) -> Result<bool, Problem> {
        let item = match self.frames.next(data) {
            None => return Ok(false),
            Some(Frame::Whole(item)) => Ok(item),
            Some(Frame::TooLong) => Err(too_long(self.writer.max_item).into()),
        };
        self.failures.record(self.writer.write(item).await?);
        self.reserved = None;
        Ok(true)
    }

    /// Reserves memory for a long item before more of it is kept. Without memory, the item fails.
    async fn reserve_for_long_item(&mut self) -> Result<(), Problem> {
        let length = self.frames.partial_len();
        if length <= MAX_UNRESERVED_ITEM || self.reserved.is_some() {
            return Ok(());
        }
        match self.body.reserve(Limits::ITEM_COST * length).await {
            Ok(reserved) => self.reserved = Some(reserved),
            Err(problem) => {
                self.frames.skip_partial();
                self.failures
                    .record(self.writer.write(Err(problem.into())).await?);
            }
        }
        Ok(())
    }
}

/// The code of an item's failure, and the key version that was refused.
type ItemFailure = (Code, Option<u32>);

/// Counts failed and denied items.
struct FailureLog {
    keyring: Arc<Keyring>,
    operation: Operation,
    caller: Caller,
    metrics: Arc<OperationMetrics>,
    denials: Denials,
}

impl FailureLog {
    fn record(&self, failure: Option<ItemFailure>) {
        if let Some((code, version)) = failure {
            self.metrics.item_failed(code);
            let resource = Resource::Keyring(self.keyring.name(), self.operation);
            self.denials.add(&self.caller, resource, code, version);
        }
    }
}

/// Processes items and writes the frames of the response.
struct ResponseWriter {
    processor: ItemProcessor<Arc<Keyring>>,
    /// None if each item has its own.
    aad: Option<Vec<u8>>,
    max_item: usize,
    out: Vec<u8>,
}

impl ResponseWriter {
    fn take(&mut self) -> Bytes {
        // Keeps a capacity that is likely to be needed, but not that of a single long item.
        let capacity = self.out.len().min(2 * CHUNK_LEN);
        Bytes::from(std::mem::replace(
            &mut self.out,
            Vec::with_capacity(capacity),
        ))
    }

    /// Writes the frame for an item. Returns how the item failed, if it did.
    ///
    /// # Errors
    /// The batch can't continue.
    async fn write(
        &mut self,
        item: Result<&[u8], RequestError>,
    ) -> Result<Option<ItemFailure>, Problem> {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; LENGTH]);
        self.out.push(DONE);
        let result = match item {
            Ok(item) => self.process(item).await,
            Err(error) => Err(error),
        };
        let failure = result.err().map(|RequestError { problem, version }| {
            self.out.truncate(start + LENGTH);
            self.out.push(FAILED);
            self.out.extend_from_slice(&problem.to_json());
            (problem.code, version)
        });
        let length = u32::try_from(self.out.len() - start - LENGTH)
            .map_err(|_| Problem::new(Code::Internal, "a response frame exceeds 4 GiB"))?;
        self.out[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
        Ok(failure)
    }

    async fn process(&mut self, item: &[u8]) -> Result<(), RequestError> {
        let (aad, item) = match &self.aad {
            Some(aad) => (&aad[..], item),
            None => split_aad(item)?,
        };
        if item.len() > self.max_item {
            return Err(too_long(self.max_item).into());
        }
        if aad.len() > MAX_AAD {
            return Err(Problem::new(
                Code::BodyTooLarge,
                format!("the AAD of an item may have at most {MAX_AAD} bytes"),
            )
            .into());
        }
        let from = self.out.len();
        if self.processor.operation() == Operation::Encrypt {
            self.out.extend_from_slice(&[0; PREFIX_LEN]);
        }
        self.out.extend_from_slice(item);
        self.processor.process(aad, &mut self.out, from).await?;
        if self.processor.encrypting_version().is_none() {
            // Moves a decrypted plaintext over the room before it.
            self.out.copy_within(from + PREFIX_LEN.., from);
            self.out.truncate(self.out.len() - PREFIX_LEN);
        }
        Ok(())
    }
}

/// Splits a frame into the item's own AAD and the item.
fn split_aad(frame: &[u8]) -> Result<(&[u8], &[u8]), Problem> {
    let parts = frame.split_first_chunk::<LENGTH>();
    parts
        .and_then(|(length, rest)| rest.split_at_checked(u32::from_be_bytes(*length) as usize))
        .ok_or_else(|| invalid("the item's frame is shorter than its AAD"))
}

fn too_long(max_item: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("an item of this batch may have at most {max_item} bytes"),
    )
}

fn invalid(detail: &'static str) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}
