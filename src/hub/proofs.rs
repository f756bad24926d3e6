//! Proofs: each asked sidecar answers once, or doesn't within the time.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    caller::Identity,
    registry::InstanceId,
    streams::{Live, Streams, text},
};
use crate::{
    encoding::from_hex,
    http::problem::Problem,
    wire::{
        Code,
        hub::{NamedProof, ProofAnswer, ProofResult, Proofs, ProofsRequest, Prove, StreamEvent},
        proof::ProofRequest,
    },
};

/// How long sidecars have to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most proofs that are awaited at a time.
const MAX_PENDING: usize = 100_000;
/// The longest reason of a refusal, in bytes.
const MAX_REASON: usize = 1000;

/// The proofs that are awaited.
pub(super) struct PendingProofs {
    /// Random at first, so that a late answer to a former process answers nothing.
    next: AtomicU64,
    pending: Mutex<BTreeMap<u64, Pending>>,
}

struct Pending {
    instance: InstanceId,
    answer: oneshot::Sender<ProofResult>,
}

impl PendingProofs {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            // Every JSON parser reads a number of 53 bits exactly.
            next: AtomicU64::new(fastrand::u64(..1 << 52)),
            pending: Mutex::default(),
        })
    }

    /// Asks sidecars for proofs, and waits for their answers.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if too many proofs are awaited already.
    pub(super) async fn ask(
        self: &Arc<Self>,
        streams: &Streams,
        request: ProofsRequest,
    ) -> Result<Proofs, Problem> {
        let ProofsRequest { sidecars, request } = request;
        let found = find(streams, &sidecars);
        let deadline = Instant::now() + PATIENCE;
        let mut asked = Vec::with_capacity(sidecars.len());
        for name in sidecars {
            let proof = match found.get(&name) {
                Some(Found::One(live)) => Ok((self.begin(live.instance)?, Arc::clone(live))),
                Some(Found::Several) => Err("several connected sidecars have this name"),
                None => Err("it is not connected to this hub"),
            };
            asked.push((name, proof));
        }
        let answers = asked.into_iter().map(async |(name, proof)| {
            let result = match proof {
                Err(reason) => ProofResult::Refused(reason.into()),
                Ok((awaited, live)) => awaited.answer(streams, &live, &request, deadline).await,
            };
            NamedProof { name, result }
        });
        Ok(Proofs {
            answers: join_all(answers).await,
        })
    }

    fn begin(self: &Arc<Self>, instance: InstanceId) -> Result<Awaited, Problem> {
        let (answer, answered) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut pending = self.lock();
        if pending.len() >= MAX_PENDING {
            let detail = format!("{MAX_PENDING} proofs are awaited already");
            return Err(Problem::new(Code::Overloaded, detail).retry_after(10));
        }
        pending.insert(id, Pending { instance, answer });
        drop(pending);
        Ok(Awaited {
            proofs: Arc::clone(self),
            id,
            answered: Some(answered),
        })
    }

    /// Takes an answer by `identity`, whose stream was asked.
    ///
    /// # Errors
    /// [`Code::ProofNotPending`]
    pub(super) fn take(
        &self,
        streams: &Streams,
        identity: &Arc<Identity>,
        answer: ProofAnswer,
    ) -> Result<(), Problem> {
        let is_own = streams
            .of(&answer.instance)
            .is_some_and(|live| live.is_of(identity));
        let mut pending = self.lock();
        let is_pending = pending
            .get(&answer.id)
            .is_some_and(|pending| pending.instance == answer.instance);
        let awaited = (is_own && is_pending)
            .then(|| pending.remove(&answer.id))
            .flatten()
            .ok_or_else(|| {
                Problem::new(
                    Code::ProofNotPending,
                    "this instance was not asked for it on its stream, or it was answered, or the \
                     time for it is over",
                )
            })?;
        drop(pending);
        let result = match answer.result {
            ProofResult::Refused(mut reason) => {
                reason.truncate(reason.floor_char_boundary(MAX_REASON));
                ProofResult::Refused(reason)
            }
            proof => proof,
        };
        // Who asked may be gone.
        let _ = awaited.answer.send(result);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proof that is awaited, until this is dropped.
struct Awaited {
    proofs: Arc<PendingProofs>,
    id: u64,
    /// None once it was waited for.
    answered: Option<oneshot::Receiver<ProofResult>>,
}

impl Awaited {
    async fn answer(
        mut self,
        streams: &Streams,
        live: &Arc<Live>,
        request: &ProofRequest,
        deadline: Instant,
    ) -> ProofResult {
        let prove = Prove {
            id: self.id,
            request: request.clone(),
        };
        let refused = |reason: &str| ProofResult::Refused(reason.into());
        let is_sent = text(&StreamEvent::Prove(prove)).is_some_and(|event| {
            // A stream that is full has ended.
            streams.send(live, event)
        });
        let Some(answered) = self.answered.take().filter(|_| is_sent) else {
            return refused("its stream has ended");
        };
        tokio::select! {
            answer = timeout_at(deadline, answered) => match answer {
                Ok(Ok(result)) => result,
                Ok(Err(_)) | Err(_) => {
                    refused(&format!("it did not answer within {} s", PATIENCE.as_secs()))
                }
            },
            () = live.ended() => refused("its stream has ended"),
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.proofs.lock().remove(&self.id);
    }
}

/// What is connected under a name.
enum Found {
    One(Arc<Live>),
    Several,
}

/// Finds the streams of sidecars by name, or by instance as 32 hexadecimal digits: an instance
/// comes first, whatever others call themselves. Of two with one name, neither shows what the other
/// one has.
fn find(streams: &Streams, names: &[String]) -> BTreeMap<String, Found> {
    let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for live in streams.all() {
        let name = live.name().filter(|name| wanted.contains(name.as_str()));
        if let Some(name) = name {
            match found.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(Found::One(live));
                }
                Entry::Occupied(mut entry) => {
                    entry.insert(Found::Several);
                }
            }
        }
    }
    for name in names {
        let instance = from_hex(name.as_bytes());
        let live = instance.and_then(|instance: InstanceId| streams.of(&instance));
        found.extend(live.map(|live| (name.clone(), Found::One(live))));
    }
    found
}
