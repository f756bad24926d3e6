//! The audit log: durable records, chained by hash and authenticated with a key (docs/audit.md).
//!
//! Commands write through [`Act`], which fails closed: without a record, nothing is done. A sidecar
//! writes through [`Recorder`], which fails open and reports the failure: no request and no refresh
//! waits for a disk.

mod act;
mod chain;
mod damage;
mod file;
mod forward;
mod link;
mod log_id;
mod origin;
mod record;
mod recorder;
mod refusals;
mod stream;
mod tail;
mod verify;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    config::{self, AuditSink},
    crypto::{KEY_LEN, MacKey},
    files::{Allowed, Patient, read_private},
};

pub use act::{Act, ActOutcome};
pub use chain::{ChainError, Verifier};
pub use damage::Damage;
pub use file::{Appended, AuditFile};
pub use forward::ForwardHealth;
pub use link::Link;
pub use log_id::LogId;
pub use origin::Origin;
pub use recorder::{LogHealth, Recorder, describe_metrics};
pub use refusals::{AccessRefusal, RefusalCounts, Refused, Requester};
pub use stream::Chain;
pub use verify::{Report, Requirements, VerifyError, verify};

/// An event to record.
#[derive(Debug, Clone)]
pub struct Event {
    /// The member `event` of the record.
    pub(super) name: &'static str,
    at: Timestamp,
    details: Map<String, Value>,
}

impl Event {
    /// Creates an event without details.
    pub fn new(name: &'static str, at: Timestamp) -> Self {
        Self {
            name,
            at,
            details: Map::new(),
        }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    fn with_all(mut self, details: Map<String, Value>) -> Self {
        self.details.extend(details);
        self
    }
}

/// No record was written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file can't be read or written.
    #[error("the audit log {}: {reason}", .path.display())]
    Sink {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The audit key can't be read, or is not a key.
    #[error("{}: {reason}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Reads an audit key: a file of 32 bytes that only its owner and group may read.
///
/// # Errors
/// [`AuditError::Key`]
pub fn read_key(path: &Path) -> Result<MacKey, AuditError> {
    let failed = |reason| AuditError::Key {
        path: path.to_owned(),
        reason,
    };
    let bytes = read_private(path, "the audit key", Allowed::OwnerAndGroup, KEY_LEN + 1)
        .map_err(|error| failed(error.to_string()))?;
    MacKey::from_slice(&bytes).ok_or_else(|| {
        failed(format!(
            "an audit key has {KEY_LEN} bytes; make one with: \
             (umask 077; head -c {KEY_LEN} /dev/urandom > FILE)"
        ))
    })
}

/// Opens the configured sink and reads its key. The sink is not written yet.
///
/// # Errors
/// [`AuditError::Key`]
pub fn open(settings: &config::Audit) -> Result<Sink, AuditError> {
    let key = settings.key_file.as_deref().map(read_key).transpose()?;
    Ok(match &settings.sink {
        AuditSink::File(path) => Sink::File(AuditFile::new(path, key)),
        AuditSink::Stdout => Sink::Stdout {
            key,
            chain: Chain::default(),
        },
    })
}

/// The destination of a sidecar's records.
pub enum Sink {
    /// A file, which commands may share.
    File(AuditFile),
    /// Standard output. Each process starts its own chain.
    Stdout {
        /// The key of the MACs.
        key: Option<MacKey>,
        /// What was written.
        chain: Chain,
    },
}

impl Sink {
    fn name(&self) -> String {
        match self {
            Self::File(file) => file.path().display().to_string(),
            Self::Stdout { .. } => "standard output".into(),
        }
    }

    fn has_key(&self) -> bool {
        match self {
            Self::File(file) => file.has_key(),
            Self::Stdout { key, .. } => key.is_some(),
        }
    }

    /// Appends records of `events`. After a failure, the next call must have the same events: some
    /// of their records may have been written.
    fn append(&mut self, origin: &Origin, events: &[Event]) -> Result<Appended, String> {
        match self {
            Self::File(file) => file
                .append(origin, events)
                .map_err(|error| error.to_string()),
            Self::Stdout { key, chain } => Patient::stdout()
                .and_then(|mut out| chain.append(&mut out, origin, events, key.as_ref()))
                .map_err(|error| format!("standard output: {error}")),
        }
    }

    fn reopen(&mut self) {
        if let Self::File(file) = self {
            file.reopen();
        }
    }
}
