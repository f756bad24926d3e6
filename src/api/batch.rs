//! The binary batch: frames in, frames out, in order, while the request still comes. One bad item fails alone.
//!
//! Plaintexts pass through here in pieces of the request.

use std::sync::Arc;

use async_stream::try_stream;
use bytes::Bytes;
use futures_util::Stream;

use super::{
    meters::OperationMeters,
    refusal::{self, Of},
};
use crate::http::{
    body::Inflow,
    problem::{Code, Problem},
};
use crate::session::{Encryptor, Session};
use crate::{
    audit::Recorder,
    clock::Clock,
    config::Limits,
    crypto::{CHUNK_LEN, PREFIX_LEN, sealed_stream_len},
    model::Operation,
    policy::Caller,
    refresh::Keyring,
    wire::{DONE, FAILED, Frame, Frames, ITEMS_HAVE_AAD},
};

const LENGTH: usize = 4;
/// The most bytes of an item's own AAD.
const LONGEST_AAD: usize = 64 << 10;
/// Items up to this length fit into what every batch holds anyway.
const UNCOUNTED_ITEM: usize = CHUNK_LEN;

/// A batch that is worked on.
pub(crate) struct Batch {
    pub(crate) operation: Operation,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) meters: Arc<OperationMeters>,
    pub(crate) clock: Clock,
    /// Takes note of items that were refused.
    pub(crate) audit: Recorder,
    pub(crate) caller: Caller,
    /// For every item, unless each brings its own.
    pub(crate) aad: Vec<u8>,
    pub(crate) inflow: Inflow,
    /// The most bytes of a plaintext.
    pub(crate) plaintext_limit: usize,
}

impl Batch {
    /// The answer's pieces, and the version that encrypts if one does.
    pub(crate) fn perform(
        self,
    ) -> Result<
        (
            impl Stream<Item = Result<Bytes, Problem>> + Send,
            Option<u32>,
        ),
        Problem,
    > {
        let session = Session::new(&self.keyring, self.clock.now())?;
        let encryptor = match self.operation {
            Operation::Encrypt | Operation::Rewrap => Some(session.encryptor()?),
            _ => None,
        };
        let version = encryptor.as_ref().map(Encryptor::version);
        let snapshot = session.into_snapshot();
        let Self {
            operation,
            keyring,
            meters,
            clock,
            audit,
            caller,
            aad,
            mut inflow,
            plaintext_limit,
        } = self;
        let pieces = try_stream! {
            let has_own_aad = match inflow.byte().await? {
                Some(flags) if flags & !ITEMS_HAVE_AAD == 0 => flags == ITEMS_HAVE_AAD,
                _ => Err(invalid("a batch begins with a byte of flags: 0, or 1 if every item brings its own AAD"))?,
            };
            if has_own_aad && !aad.is_empty() {
                Err(invalid("the AAD stands either in the header Sidekey-Aad or with every item"))?;
            }
            let aad = (!has_own_aad).then_some(aad);
            let session = Session::resume(&keyring, snapshot, clock.now());
            // What is encrypted can be decrypted, too, as a message or as the stream of as long a plaintext.
            let item_limit = match operation {
                Operation::Encrypt => plaintext_limit,
                _ => sealed_stream_len(plaintext_limit as u64).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX),
            };
            let mut worker = Worker { operation, session, encryptor, aad, item_limit, out: Vec::new() };
            let mut frames = Frames::new(LENGTH + LONGEST_AAD + item_limit);
            let mut room = None;
            let note = |outcome: Result<(), Failed>| {
                if let Err((code, version)) = outcome {
                    meters.item_failed(code);
                    refusal::note(&audit, &caller, Of::Keyring(keyring.name(), operation), code, version);
                }
            };
            while let Some(piece) = inflow.next().await? {
                worker.go_on(&clock)?;
                let mut data = &piece[..];
                while let Some(frame) = frames.next(&mut data) {
                    let item = match frame {
                        Frame::Whole(item) => Ok(item),
                        Frame::TooLong => Err(too_long(item_limit)),
                    };
                    note(worker.answer(item).await?);
                    room = None;
                    if worker.out.len() >= CHUNK_LEN {
                        yield worker.take();
                    }
                }
                if !worker.out.is_empty() {
                    yield worker.take();
                }
                // Before more of a long item is kept.
                if frames.coming() > UNCOUNTED_ITEM && room.is_none() {
                    match inflow.reserve(Limits::ITEM_COST * frames.coming()).await {
                        Ok(reserved) => room = Some(reserved),
                        Err(problem) => {
                            frames.pass_over();
                            note(worker.answer(Err(problem)).await?);
                        }
                    }
                }
            }
            drop(room);
            if !frames.is_between_frames() {
                Err(invalid("the body ends within a frame"))?;
            }
        };
        Ok((pieces, version))
    }
}

/// What went wrong with an item, and the version that was refused, if that is why.
type Failed = (Code, Option<u32>);

struct Worker<'k> {
    operation: Operation,
    session: Session<'k>,
    encryptor: Option<Encryptor>,
    /// None if every item brings its own.
    aad: Option<Vec<u8>>,
    item_limit: usize,
    out: Vec<u8>,
}

impl Worker<'_> {
    /// A batch may take long; what is true of one moment needn't be true later.
    fn go_on(&mut self, clock: &Clock) -> Result<(), Problem> {
        let now = clock.now();
        self.session.go_on(now);
        match &mut self.encryptor {
            Some(encryptor) => encryptor.go_on(self.session.keyring(), now),
            None => Ok(()),
        }
    }

    fn take(&mut self) -> Bytes {
        // Room as it will be needed, but not for ever that of one long item.
        let room = self.out.len().min(2 * CHUNK_LEN);
        Bytes::from(std::mem::replace(&mut self.out, Vec::with_capacity(room)))
    }

    /// Appends the answer to an item. What fails is the item alone; its code is given for the count, and for the audit log.
    async fn answer(
        &mut self,
        item: Result<&[u8], Problem>,
    ) -> Result<Result<(), Failed>, Problem> {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; LENGTH]);
        self.out.push(DONE);
        let result = match item {
            Ok(item) => self.append(item).await,
            Err(problem) => Err(problem),
        };
        let outcome = result.map_err(|problem| {
            self.out.truncate(start + LENGTH);
            self.out.push(FAILED);
            self.out.extend_from_slice(&problem.to_json());
            (problem.code, problem.version)
        });
        let length = u32::try_from(self.out.len() - start - LENGTH)
            .map_err(|_| Problem::new(Code::Internal, "an answer's frame is longer than 4 GiB"))?;
        self.out[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
        Ok(outcome)
    }

    async fn append(&mut self, item: &[u8]) -> Result<(), Problem> {
        let (aad, item) = match &self.aad {
            Some(aad) => (&aad[..], item),
            None => split_aad(item)?,
        };
        if item.len() > self.item_limit {
            return Err(too_long(self.item_limit));
        }
        if aad.len() > LONGEST_AAD {
            return Err(Problem::new(
                Code::BodyTooLarge,
                format!("an item's AAD has at most {LONGEST_AAD} bytes"),
            ));
        }
        let from = self.out.len();
        if self.operation == Operation::Encrypt {
            self.out.extend_from_slice(&[0; PREFIX_LEN]);
            self.out.extend_from_slice(item);
        } else {
            self.out.extend_from_slice(item);
            let (plaintext, _) = self.session.decrypt(aad, &mut self.out[from..]).await?;
            let length = plaintext.len();
            self.out.truncate(from + PREFIX_LEN + length);
        }
        match &mut self.encryptor {
            Some(encryptor) => encryptor.encrypt_at(aad, &mut self.out, from),
            None => {
                self.out.copy_within(from + PREFIX_LEN.., from);
                self.out.truncate(self.out.len() - PREFIX_LEN);
            }
        }
        Ok(())
    }
}

/// An item's own AAD, and the item.
fn split_aad(frame: &[u8]) -> Result<(&[u8], &[u8]), Problem> {
    let parts = frame.split_first_chunk::<LENGTH>();
    parts
        .and_then(|(length, rest)| rest.split_at_checked(u32::from_be_bytes(*length) as usize))
        .ok_or_else(|| invalid("the item's frame is shorter than its AAD"))
}

fn too_long(limit: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("an item of such a batch has at most {limit} bytes"),
    )
}

fn invalid(detail: &'static str) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}
