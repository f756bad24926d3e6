//! A value in memory, and what is known of its use.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use hyper::header::HeaderValue;
use jiff::Timestamp;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

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

/// What answers say of a value in their heads, made once.
pub struct Labels {
    /// Its version.
    pub version: HeaderValue,
    /// The entity tag of its JSON.
    pub json: HeaderValue,
    /// The entity tag of its bytes.
    pub octets: HeaderValue,
}

impl Labels {
    /// The tags are weak ones (RFC 9110 §8.8.1): answers with one value differ in how stale it is. A version may come to mean another
    /// value, as a file's time does; the fingerprint tells them apart and tells nobody else anything.
    fn new(version: &str, fingerprint: &[u8; 16]) -> Self {
        // A provider's word for a version is visible ASCII.
        let value =
            |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("?"));
        let fingerprint = to_hex(&fingerprint[..8]);
        let tag = |form: &str| value(format!("W/\"{version}.{fingerprint}{form}\""));
        Self {
            version: value(version.to_owned()),
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

/// Why a value has no such field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoField {
    /// The value isn't a JSON object.
    NotAnObject,
    /// It has no member of that name.
    Missing,
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

    /// A member of a value that is a JSON object: the text of a string, and anything else as it stands there.
    ///
    /// # Errors
    /// [`NoField`]
    pub fn field(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, NoField> {
        let members: HashMap<String, &RawValue> =
            serde_json::from_slice(&self.bytes).map_err(|_| NoField::NotAnObject)?;
        let member = members.get(name).ok_or(NoField::Missing)?.get();
        // A string; what isn't one stays what it is.
        let text: Option<String> = serde_json::from_str(member).ok();
        Ok(Zeroizing::new(text.map_or_else(
            || member.as_bytes().to_vec(),
            String::into_bytes,
        )))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        let bytes = Zeroizing::new(text.as_bytes().to_vec());
        let fetched = Fetched {
            bytes,
            version: "1".into(),
            created_at: None,
            expires_at: None,
            lease: None,
        };
        Value::new(fetched, Timestamp::UNIX_EPOCH, &[0; 16], None)
    }

    #[test]
    fn a_field_is_a_strings_text_or_what_stands_there() {
        let value = value(r#"{"password":"a\"b\u00e9","port":5432,"tls":{"on":true},"none":null}"#);
        let field = |name| {
            value
                .field(name)
                .map(|field| String::from_utf8(field.to_vec()).expect("text"))
        };
        assert_eq!(field("password").as_deref(), Ok("a\"b\u{e9}"));
        assert_eq!(field("port").as_deref(), Ok("5432"));
        assert_eq!(field("tls").as_deref(), Ok(r#"{"on":true}"#));
        assert_eq!(field("none").as_deref(), Ok("null"));
        assert_eq!(field("user"), Err(NoField::Missing));
    }

    #[test]
    fn only_an_object_has_fields() {
        for text in ["secret", "[1]", "{", ""] {
            assert_eq!(
                value(text).field("a").err(),
                Some(NoField::NotAnObject),
                "{text}"
            );
        }
    }
}
