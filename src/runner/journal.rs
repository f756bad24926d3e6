//! The stored state of a keyring's rollouts, beside its manifest (`NAME.rollout`) or in a hub. It
//! is a cache. What a rollout may do, the manifest decides.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::kept::{KeptError, KeptState};
use crate::{
    backend::{self, BackendError, Backends, ErrorKind, ManifestStore},
    model::Location,
    rollout::{LeftRequest, Request, State},
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
    pub requests: Vec<LeftRequest>,
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

impl RunnerId {
    /// Returns whether both are one process, whenever they were last heard of.
    pub(super) fn is_same_process(&self, other: &Self) -> bool {
        (&self.host, self.pid, self.since) == (&other.host, other.pid, other.since)
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
    /// Returns whether a request waits for the runner.
    pub fn awaits(&self, request: &Request) -> bool {
        self.requests
            .iter()
            .any(|left| matches!(left, LeftRequest::Readable(known) if known == request))
    }

    /// Replaces what a place says about the rollout by what is known. If it has gone over to
    /// another one, an unfinished one still comes first.
    fn with_state(self, own: State) -> Self {
        if self.state.id == own.id {
            Self { state: own, ..self }
        } else if own.phase.is_over() {
            self
        } else {
            Self {
                requests: self.requests.clone(),
                runner: self.runner.clone(),
                ..Self::new(own, Some(self))
            }
        }
    }

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
    /// The record that is known here, where the place has not taken it over.
    pub(super) fn ahead(before: Option<Self>, record: Record) -> Self {
        Self {
            bytes: before.and_then(|before| before.bytes),
            record,
        }
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

    /// Whether its place is a copy of what this machine keeps.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
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
        let bytes = self.read_place().await?;
        let own = match &self.kept {
            None => None,
            Some(kept) => kept.read()?,
        };
        let found = bytes.as_deref().map(|bytes| self.parse(bytes)).transpose();
        let record = match (found, own) {
            (found, None) => found?,
            (Ok(Some(found)), Some(own)) => Some(found.with_state(own)),
            (Ok(None), Some(own)) => Some(Record::new(own, None)),
            (Err(error), Some(own)) => {
                tracing::debug!(%error, "the journal is written again");
                Some(Record::new(own, None))
            }
        };
        Ok(record.map(|record| Stored { bytes, record }))
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

    async fn read_place(&self) -> Result<Option<Vec<u8>>, JournalError> {
        let read = backend::within(TIMEOUT, self.store.read(LIMIT)).await;
        match read.unwrap_or_else(|late| Err(late.on(&self.place, None))) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Record, JournalError> {
        let damaged = |reason: String| JournalError::Damaged {
            place: self.place.clone(),
            reason,
        };
        let record: Record =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if record.format != FORMAT {
            return Err(damaged(format!("its format is {:?}", record.format)));
        }
        if record.state.plan.steps.is_empty() {
            return Err(damaged("its plan has no steps".into()));
        }
        Ok(record)
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
            record.requests.push(request.clone().into());
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
