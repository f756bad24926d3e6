//! A secret's value in memory.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;

use super::{Field, NoField, Usage};
use crate::{
    backend::FetchedValue,
    crypto::{MAC_LEN, to_hex},
};

/// One value of a secret. It is zeroized when the last request that sends it ends, and has no
/// `Debug`.
pub struct Value {
    bytes: Bytes,
    version: String,
    labels: Labels,
    created_at: Option<Timestamp>,
    fetched_at: Timestamp,
    usage: Arc<Usage>,
    /// The value as JSON, rendered at first use.
    json: OnceLock<Bytes>,
}

/// The response headers that describe a value, in visible ASCII.
///
/// The entity tags are weak (RFC 9110 §8.8.1), because responses with the same value differ in how
/// stale it is. They contain a fingerprint, because a version can later denote another value (a
/// file's modification time, for example). The fingerprint is keyed and reveals nothing about the
/// value.
pub struct Labels {
    pub(crate) version: Bytes,
    /// The entity tag of the JSON format.
    pub(crate) json: Bytes,
    /// The entity tag of the bytes.
    pub(crate) octets: Bytes,
}

impl Labels {
    fn new(version: &str, fingerprint: &[u8; MAC_LEN]) -> Self {
        let fingerprint = to_hex(&fingerprint[..8]);
        let tag = |form: &str| Bytes::from(format!("W/\"{version}.{fingerprint}{form}\""));
        Self {
            version: Bytes::copy_from_slice(version.as_bytes()),
            json: tag("j"),
            octets: tag("b"),
        }
    }
}

impl Value {
    pub(super) fn new(
        fetched: FetchedValue,
        fetched_at: Timestamp,
        fingerprint: &[u8; MAC_LEN],
        usage: Arc<Usage>,
    ) -> Self {
        Self {
            bytes: Bytes::from_owner(fetched.bytes),
            labels: Labels::new(&fetched.version, fingerprint),
            version: fetched.version,
            created_at: fetched.created_at,
            fetched_at,
            usage,
            json: OnceLock::new(),
        }
    }

    /// Returns when this sidecar read the value.
    pub(crate) fn fetched_at(&self) -> Timestamp {
        self.fetched_at
    }

    /// Returns the value as JSON, which `render` produces at first use.
    pub(crate) fn json(&self, render: impl FnOnce() -> Bytes) -> Bytes {
        self.json.get_or_init(render).clone()
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the provider's name for this value.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Returns when the value was created, if the provider says so.
    pub(crate) fn created_at(&self) -> Option<Timestamp> {
        self.created_at
    }

    /// Counts one use of the value.
    pub(crate) fn record_use(&self, now: Timestamp) {
        self.usage.record(now);
    }

    /// Finds a field of a value that is a JSON object.
    ///
    /// # Errors
    /// The value is not a JSON object, or has no such field.
    pub(crate) fn field(&self, name: &str) -> Result<Field<'_>, NoField> {
        Field::find(&self.bytes, name)
    }
}
