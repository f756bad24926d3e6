//! The stored state of a keyring's rollouts, beside its manifest (`NAME.rollout`) or in a hub. It
//! is a cache. What a rollout may do, the manifest decides.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::kept::{KeptError, KeptState};
use crate::{
    backend::{self, BackendError, Backends, ErrorKind, ManifestStore},
    model::Location,
    rollout::{Approval, Asked, State, Verb},
};

const FORMAT: &str = "sidekey-rollout/1";
/// The longest journal that is read, in bytes.
const LIMIT: usize = 64 << 20;
/// The time limit for reading or writing it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many rollouts are kept besides the last one.
const KEPT: usize = 8;

/// The rollouts of a keyring.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `sidekey-rollout/1`.
    pub(super) format: String,
    /// The last rollout.
    pub state: State,
    /// Who runs it.
    pub runner: Option<RunnerId>,
    /// What people asked for and the runner hasn't taken yet.
    #[serde(default)]
    pub requests: Vec<Request>,
    /// The rollouts before, newest first.
    #[serde(default)]
    pub earlier: Vec<State>,
}

/// The process that runs a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerId {
    /// The name of its machine.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// When it began.
    pub since: Timestamp,
    /// When it last said that it is alive.
    pub alive_at: Timestamp,
}

/// What a person asks a runner for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// A verb.
    Asked(Asked),
    /// An approval.
    Approved(Approval),
}

impl Request {
    /// Returns whether a request is still about what the person saw. To pause, end or roll back
    /// makes sense at any step.
    pub(super) fn is_current(&self, state: &State) -> bool {
        match self {
            // The order says what it is for.
            Self::Approved(_) => true,
            Self::Asked(Asked {
                rollout,
                step,
                verb,
                ..
            }) => {
                let is_for_any_step = matches!(
                    verb,
                    Verb::Pause | Verb::Abort | Verb::Rollback | Verb::PromoteFull
                );
                *rollout == state.id && (is_for_any_step || *step == state.step)
            }
        }
    }
}

/// The journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The location failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// It is not a journal.
    #[error("{place}: not a rollout's journal: {reason}; move it away to begin without")]
    Damaged {
        /// Its place.
        place: String,
        /// The reason.
        reason: String,
    },
    /// It was removed.
    #[error("{0}: the journal is gone, so the request can't be left there")]
    Gone(String),
    /// What this machine keeps of it can't be used.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The location of the manifest has no place beside it.
    #[error("{0} has no place for a rollout's journal beside it; give one with --journal LOCATION")]
    NoPlace(Location),
}

/// The place of a journal.
pub struct Journal {
    place: String,
    store: Arc<dyn ManifestStore>,
    kept: Option<KeptState>,
}

/// A journal as it was read, to be replaced by compare-and-swap.
#[derive(Debug, Clone)]
pub struct Stored {
    /// None if its place has none, and only its state was kept.
    bytes: Option<Vec<u8>>,
    /// Its content.
    pub record: Record,
}

impl Record {
    /// Begins a record with a rollout. The one before is kept.
    pub fn new(state: State, before: Option<Self>) -> Self {
        let mut earlier = Vec::new();
        if let Some(before) = before {
            earlier.push(before.state);
            earlier.extend(before.earlier);
            earlier.truncate(KEPT);
        }
        Self {
            format: FORMAT.into(),
            state,
            runner: None,
            requests: Vec::new(),
            earlier,
        }
    }
}

impl Stored {
    /// Replaces what a place says about the rollout by what is known. If it has gone over to
    /// another one, an unfinished one still comes first.
    fn with_state(self, own: State) -> Self {
        let record = self.record;
        let record = if record.state.id == own.id {
            Record {
                state: own,
                ..record
            }
        } else if own.phase.is_over() {
            record
        } else {
            Record {
                requests: record.requests.clone(),
                runner: record.runner.clone(),
                ..Record::new(own, Some(record))
            }
        };
        Self { record, ..self }
    }
}

impl Journal {
    /// Returns the journal at `place` or, by default, beside the manifest.
    ///
    /// # Errors
    /// There is no such place, or this build lacks its backend.
    pub fn new(
        manifest: &Location,
        place: Option<Location>,
        backends: &Arc<dyn Backends>,
    ) -> Result<Self, JournalError> {
        let place = match place {
            Some(place) => place,
            None => beside(manifest).ok_or_else(|| JournalError::NoPlace(manifest.clone()))?,
        };
        let store = backends.store(&place)?;
        Ok(Self::at(place.to_string(), store))
    }

    /// Returns the journal in `store`. `place` is what errors call it.
    pub fn at(place: String, store: Arc<dyn ManifestStore>) -> Self {
        Self {
            place,
            store,
            kept: None,
        }
    }

    /// Trusts the place with requests alone: the state of a rollout is the one that `kept` has.
    #[must_use]
    pub fn keeping(self, kept: KeptState) -> Self {
        Self {
            kept: Some(kept),
            ..self
        }
    }

    /// Where it is.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Reads the journal; `None` if there is none.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn read(&self) -> Result<Option<Stored>, JournalError> {
        let found = self.read_place().await?;
        let own = match &self.kept {
            None => return Ok(found),
            Some(kept) => kept.read()?,
        };
        Ok(match (found, own) {
            (found, None) => found,
            (None, Some(own)) => Some(Stored {
                bytes: None,
                record: Record::new(own, None),
            }),
            (Some(found), Some(own)) => Some(found.with_state(own)),
        })
    }

    /// Returns whether this process has run the rollout of a record, so that its state is known to
    /// be true.
    ///
    /// # Errors
    /// [`JournalError::Kept`]
    pub(super) fn is_own(&self, state: &State) -> Result<bool, JournalError> {
        let Some(kept) = &self.kept else {
            return Ok(true);
        };
        Ok(kept.read()?.is_some_and(|own| own == *state))
    }

    /// Returns the state of the last rollout that was run here, whatever its place says.
    ///
    /// # Errors
    /// [`JournalError::Kept`]
    pub(super) fn own_state(&self) -> Result<Option<State>, JournalError> {
        match &self.kept {
            Some(kept) => Ok(kept.read()?),
            None => Ok(None),
        }
    }

    async fn read_place(&self) -> Result<Option<Stored>, JournalError> {
        let read = backend::within(TIMEOUT, self.store.read(LIMIT)).await;
        let bytes = match read.unwrap_or_else(|late| Err(late.on(&self.place, None))) {
            Ok(bytes) => bytes.to_vec(),
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = |reason: String| JournalError::Damaged {
            place: self.place.clone(),
            reason,
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.format != FORMAT {
            return Err(damaged(format!("its format is {:?}", record.format)));
        }
        if record.state.plan.steps.is_empty() {
            return Err(damaged("its plan has no steps".into()));
        }
        Ok(Some(Stored {
            bytes: Some(bytes),
            record,
        }))
    }

    /// Replaces the journal, unless it changed since it was read. What this machine keeps comes
    /// first: what its place says later doesn't matter.
    ///
    /// # Errors
    /// [`JournalError`]; with [`ErrorKind::Conflict`] if it changed.
    pub async fn replace(
        &self,
        expected: Option<Stored>,
        record: Record,
    ) -> Result<Stored, JournalError> {
        let mut bytes = match serde_json::to_vec_pretty(&record) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a record has only string keys: {error}"),
        };
        bytes.push(b'\n');
        if let Some(kept) = &self.kept {
            kept.write(&record.state)?;
        }
        let expected = expected.and_then(|stored| stored.bytes);
        let replaced = backend::within(TIMEOUT, self.store.replace(expected, bytes.clone())).await;
        replaced.unwrap_or_else(|late| Err(late.on(&self.place, None)))?;
        Ok(Stored {
            bytes: Some(bytes),
            record,
        })
    }

    /// Adds a request for the runner.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn ask(&self, request: &Request) -> Result<(), JournalError> {
        loop {
            let stored = self.read().await?;
            let stored = stored.ok_or_else(|| JournalError::Gone(self.place.clone()))?;
            let mut record = stored.record.clone();
            record.requests.push(request.clone());
            match self.replace(Some(stored), record).await {
                Err(JournalError::Backend(error)) if error.kind == ErrorKind::Conflict => {}
                result => return result.map(drop),
            }
        }
    }
}

/// Returns the place beside a manifest, if its system stores more than manifests and takes frequent
/// writes: Secrets Manager doesn't, and web servers are only read.
fn beside(manifest: &Location) -> Option<Location> {
    match manifest {
        Location::File(path) => {
            let mut path = path.clone().into_os_string();
            path.push(".rollout");
            Some(Location::File(path.into()))
        }
        Location::VaultKv { mount, path } => Some(Location::VaultKv {
            mount: mount.clone(),
            path: format!("{path}.rollout"),
        }),
        Location::S3 { bucket, key } => Some(Location::S3 {
            bucket: bucket.clone(),
            key: format!("{key}.rollout"),
        }),
        Location::AwsSm(_) | Location::Web(_) => None,
    }
}
