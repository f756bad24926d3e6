//! A value in memory, and what is known of its use.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use bytes::Bytes;
use jiff::Timestamp;

use super::field::{Field, NoField};
use crate::{backend::Fetched, crypto::to_hex};

/// One value of a secret. It is zeroized with the last request that sends it, and has no `Debug`.
pub struct Value {
    bytes: Bytes,
    version: String,
    labels: Labels,
    created_at: Option<Timestamp>,
    fetched_at: Timestamp,
    usage: Arc<Usage>,
    /// Its usual answer, made when it is first wanted.
    answer: OnceLock<Bytes>,
}

/// The headers of responses with a value, as text that is made once.
pub struct Labels {
    /// Its version.
    pub version: Bytes,
    /// The entity tag of its JSON.
    pub json: Bytes,
    /// The entity tag of its bytes.
    pub octets: Bytes,
}

impl Labels {
    /// The tags are weak (RFC 9110 §8.8.1): responses with one value differ in how stale it is. A
    /// version may come to mean another value, like the time of a file; the fingerprint tells them
    /// apart and reveals nothing.
    fn new(version: &str, fingerprint: &[u8; 16]) -> Self {
        let fingerprint = to_hex(&fingerprint[..8]);
        let tag = |form: &str| Bytes::from(format!("W/\"{version}.{fingerprint}{form}\""));
        Self {
            version: Bytes::copy_from_slice(version.as_bytes()),
            json: tag("j"),
            octets: tag("b"),
        }
    }
}

/// How often a version was handed out here: the evidence that it is out of use.
pub struct Usage {
    version: String,
    count: AtomicU64,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    last: AtomicI64,
}

impl Usage {
    fn new(version: &str) -> Arc<Self> {
        Arc::new(Self {
            version: version.to_owned(),
            count: AtomicU64::new(0),
            last: AtomicI64::new(i64::MIN),
        })
    }

    /// The version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// When last.
    pub fn last(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last.load(Ordering::Relaxed)).ok()
    }
}

impl Value {
    /// `usage` goes on counting for a version that was known before.
    pub(super) fn new(
        fetched: Fetched,
        fetched_at: Timestamp,
        fingerprint: &[u8; 16],
        usage: Option<Arc<Usage>>,
    ) -> Self {
        let usage = usage.unwrap_or_else(|| Usage::new(&fetched.version));
        Self {
            bytes: Bytes::from_owner(fetched.bytes),
            labels: Labels::new(&fetched.version, fingerprint),
            version: fetched.version,
            created_at: fetched.created_at,
            fetched_at,
            usage,
            answer: OnceLock::new(),
        }
    }

    /// When this sidecar got it.
    pub fn fetched_at(&self) -> Timestamp {
        self.fetched_at
    }

    /// The usual answer with it, which `render` makes once.
    pub fn answer(&self, render: impl FnOnce() -> Bytes) -> Bytes {
        self.answer.get_or_init(render).clone()
    }

    /// The value itself.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What its provider calls it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What answers say of it in their heads.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// When it was made, if its provider says so.
    pub fn created_at(&self) -> Option<Timestamp> {
        self.created_at
    }

    /// Notes that it was handed out.
    pub fn used(&self, now: Timestamp) {
        self.usage.count.fetch_add(1, Ordering::Relaxed);
        self.usage
            .last
            .fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    pub(super) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Finds a field of a value that is a JSON object.
    ///
    /// # Errors
    /// [`NoField`]
    pub fn field(&self, name: &str) -> Result<Field<'_>, NoField> {
        Field::find(&self.bytes, name)
    }
}

/// What is served now. A request takes one and keeps it to its end.
pub(super) struct State {
    pub(super) current: Option<Current>,
    pub(super) previous: Option<Previous>,
    /// Why the last attempt gave nothing.
    pub(super) failure: Option<Failed>,
}

/// The value in force.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) value: Arc<Value>,
    /// When its provider last said that it is the one.
    pub(super) confirmed_at: Timestamp,
    /// When it was made or, if its provider doesn't tell, first seen.
    pub(super) since: Timestamp,
    /// When its lease ends.
    pub(super) valid_until: Option<tokio::time::Instant>,
}

/// The value before.
#[derive(Clone)]
pub(super) struct Previous {
    pub(super) value: Arc<Value>,
    pub(super) until: tokio::time::Instant,
}

/// A failure and its time.
#[derive(Clone)]
pub(super) struct Failed {
    pub(super) error: crate::backend::SecretError,
    pub(super) at: Timestamp,
    pub(super) instant: tokio::time::Instant,
    /// When the first of the failures in a row was.
    pub(super) since: tokio::time::Instant,
}
