//! Static roles: credentials that Vault itself rotates, such as a database's or a directory's. They
//! have no lease but a time of rotation, and every response counts the seconds to the next one.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::backend::{FetchedValue, HeldValue};

/// The member that changes with every read. The value would change with it.
const TIME_LEFT: &str = "ttl";
const ROTATED_AT: &str = "last_vault_rotation";
/// Longer times to the next rotation are of no use here, and could overflow.
const MAX_TIME_LEFT: u64 = 10 * 365 * 24 * 3600;

/// The credentials of a static role.
pub(super) struct StaticCredentials {
    /// The response's data without the time left.
    bytes: Zeroizing<Vec<u8>>,
    /// As Vault writes it, which identifies the rotation.
    rotated_at: String,
    time_left: Option<Duration>,
}

impl StaticCredentials {
    /// Returns `None` if the data doesn't have the members of a static role.
    pub(super) fn of(data: &RawValue) -> Option<Self> {
        let mut members: BTreeMap<Cow<'_, str>, &RawValue> =
            serde_json::from_str(data.get()).ok()?;
        let rotated_at: String = serde_json::from_str(members.get(ROTATED_AT)?.get()).ok()?;
        let is_plain = !rotated_at.is_empty()
            && rotated_at.len() <= 64
            && rotated_at
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'"');
        let seconds = members
            .remove(TIME_LEFT)
            .and_then(|left| serde_json::from_str::<u64>(left.get()).ok());
        is_plain.then(|| Self {
            bytes: object(&members, data.get().len()),
            rotated_at,
            time_left: seconds.map(|seconds| Duration::from_secs(seconds.min(MAX_TIME_LEFT))),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the credentials as a value whose version is the time of their rotation, and which
    /// expires with the next one.
    pub(super) fn into_value(self, held: Option<HeldValue<'_>>, now: Timestamp) -> FetchedValue {
        let created_at = self.rotated_at.parse().ok();
        FetchedValue {
            version: HeldValue::distinct_version(held, self.rotated_at, &self.bytes),
            bytes: self.bytes,
            created_at,
            expires_at: self.time_left.and_then(|left| now.checked_add(left).ok()),
            lease: None,
        }
    }
}

/// Writes a JSON object of at most `length` bytes, without reallocating: it holds a password.
fn object(members: &BTreeMap<Cow<'_, str>, &RawValue>, length: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.max(2)));
    bytes.push(b'{');
    for (index, (name, value)) in members.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        // A text always serializes, and a vector takes everything.
        let _ = serde_json::to_writer(&mut *bytes, name);
        bytes.push(b':');
        bytes.extend_from_slice(value.get().as_bytes());
    }
    bytes.push(b'}');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(text: &str) -> Option<StaticCredentials> {
        StaticCredentials::of(serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn a_value_changes_with_the_password_and_not_with_the_time_left() {
        let read = |ttl: u32, password: &str, rotated_at: &str| {
            let text = format!(
                r#"{{"last_vault_rotation":"{rotated_at}","password":"{password}",
                    "rotation_period":60,"ttl":{ttl},"username":"app"}}"#
            );
            credentials(&text)
                .expect("a static role")
                .into_value(None, Timestamp::UNIX_EPOCH)
        };
        let rotated_at = "2026-11-26T12:00:00.268765Z";
        let first = read(40, "one", rotated_at);
        assert_eq!(first.version, rotated_at);
        assert_eq!(first.created_at, rotated_at.parse().ok());
        assert_eq!(first.expires_at, Timestamp::from_second(40).ok());
        let text = String::from_utf8(first.bytes.to_vec()).expect("text");
        assert!(
            text.contains(r#""password":"one""#) && !text.contains("ttl"),
            "{text}"
        );
        let later = read(3, "one", rotated_at);
        assert_eq!(
            (&later.version, &*later.bytes),
            (&first.version, &*first.bytes)
        );
        let next = read(60, "two", "2026-11-26T12:01:00.3Z");
        assert!(next.version != first.version && *next.bytes != *first.bytes);
    }

    #[test]
    fn a_password_changed_within_the_same_second_is_another_version() {
        let text = r#"{"last_vault_rotation":"2026-11-26T12:00:00Z","password":"two"}"#;
        let held = HeldValue {
            version: "2026-11-26T12:00:00Z",
            bytes: br#"{"password":"one"}"#,
        };
        let value = credentials(text)
            .expect("a static role")
            .into_value(Some(held), Timestamp::UNIX_EPOCH);
        assert_eq!(value.version, "2026-11-26T12:00:00Z~");
        assert_eq!(value.expires_at, None);
    }

    #[test]
    fn other_secrets_are_left_as_they_are() {
        for other in [
            r#"{"password":"one","ttl":40}"#,
            r#"{"last_vault_rotation":5,"password":"one"}"#,
            r#"{"last_vault_rotation":"a b","password":"one"}"#,
            r#"{"last_vault_rotation":"","password":"one"}"#,
            r#"["last_vault_rotation"]"#,
            "null",
        ] {
            assert!(credentials(other).is_none(), "{other}");
        }
    }
}
