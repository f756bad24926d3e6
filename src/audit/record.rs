//! One record: a line of JSON with its number, the hash of the line before it, and a MAC if there
//! is a key. docs/audit.md specifies every member. Pure: lines in, lines out.

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Event, Link, LogId, Origin,
    link::{Position, from_lower_hex},
};
use crate::crypto::{MacKey, fingerprint, fingerprint_of, to_hex};

/// The longest line, in bytes, without its newline.
pub(super) const LONGEST_LINE: usize = 64 << 10;
/// Longer details are clipped, which leaves space for the rest of a record.
const LONGEST_DETAILS: usize = 48 << 10;
/// Longer texts within details are clipped, in characters.
const LONGEST_TEXT: usize = 4 << 10;

/// The event that describes a line which a crash left unfinished.
const TORN: &str = "log.torn";
/// The event that starts the use of a key after a record without its MAC.
const UNVOUCHED: &str = "log.unvouched";

/// Every MAC starts with this, so that the key could also serve another purpose.
const MAC_LABEL: &[u8] = b"sidekey audit v2\n";
const MAC_BEGIN: &[u8] = br#","mac":""#;
const MAC_END: &[u8] = br#""}"#;
const HEX_LEN: usize = 64;

#[derive(Serialize)]
struct Record<'a> {
    seq: u64,
    log: LogId,
    prev: String,
    at: Timestamp,
    by: &'a Origin,
    event: &'a str,
    details: &'a Map<String, Value>,
}

/// The members that verification reads. The hash covers the others.
#[derive(Deserialize)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) log: LogId,
    pub(super) prev: String,
    pub(super) event: String,
    #[serde(default)]
    pub(super) details: Map<String, Value>,
    mac: Option<String>,
}

/// Returns the line of the record that follows `after`, without a newline, and its position.
pub(super) fn seal(
    after: &Position,
    origin: &Origin,
    event: &Event,
    key: Option<&MacKey>,
) -> (Vec<u8>, Position) {
    let details = clipped(&event.details);
    let record = Record {
        seq: after.link.seq + 1,
        log: after.log,
        prev: after.link.to_hex(),
        at: event.at,
        by: origin,
        event: event.name,
        details: details.as_ref().unwrap_or(&event.details),
    };
    let mut line = match serde_json::to_vec(&record) {
        Ok(line) => line,
        Err(error) => unreachable!("a record has only string keys and finite numbers: {error}"),
    };
    if let Some(key) = key {
        let mac = key.mac(&[MAC_LABEL, &line]);
        line.pop();
        line.extend_from_slice(MAC_BEGIN);
        line.extend_from_slice(to_hex(&mac).as_bytes());
        line.extend_from_slice(MAC_END);
    }
    let link = Link {
        seq: record.seq,
        hash: fingerprint(&line),
    };
    let position = Position {
        log: after.log,
        link,
    };
    (line, position)
}

/// Returns shortened details, or `None` if they are short enough.
fn clipped(details: &Map<String, Value>) -> Option<Map<String, Value>> {
    let length =
        |details: &Map<String, Value>| serde_json::to_vec(details).map_or(0, |bytes| bytes.len());
    if length(details) <= LONGEST_TEXT {
        return None;
    }
    let mut short: Map<String, Value> = details
        .iter()
        .map(|(name, value)| (name.clone(), clip(value)))
        .collect();
    if length(&short) > LONGEST_DETAILS {
        // Only lists can still be too long. The member `clipped` shows that some were dropped.
        short.retain(|_, value| !value.is_array() && !value.is_object());
    }
    short.insert("clipped".into(), true.into());
    Some(short)
}

fn clip(value: &Value) -> Value {
    match value {
        Value::String(text) if text.chars().count() > LONGEST_TEXT => {
            Value::String(text.chars().take(LONGEST_TEXT).chain("…".chars()).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(clip).collect()),
        other => other.clone(),
    }
}

/// Returns the event that follows a record without the writer's MAC. Later records have it.
pub(super) fn unvouched(last: &Link, at: Timestamp) -> Event {
    Event::new(UNVOUCHED, at)
        .with("seq", last.seq)
        .with("sha256", last.to_hex())
}

/// A line that a crash left unfinished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) bytes: usize,
    pub(super) hash: [u8; 32],
}

impl Torn {
    pub(super) fn of(line: &[u8]) -> Self {
        Self {
            bytes: line.len(),
            hash: fingerprint(line),
        }
    }

    /// Like [`Torn::of`], for a line that need not fit into memory.
    pub(super) fn read(line: &mut impl io::Read) -> io::Result<Self> {
        let (hash, bytes) = fingerprint_of(line)?;
        Ok(Self { bytes, hash })
    }

    /// Returns the event that describes the line.
    pub(super) fn event(&self, at: Timestamp) -> Event {
        Event::new(TORN, at)
            .with("bytes", self.bytes)
            .with("sha256", to_hex(&self.hash))
    }

    pub(super) fn is_described_by(&self, head: &Head) -> bool {
        head.event == TORN
            && head.details.get("bytes").and_then(Value::as_u64) == Some(self.bytes as u64)
            && head.details.get("sha256").and_then(Value::as_str) == Some(&to_hex(&self.hash))
    }
}

/// A record's MAC is missing or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MacError {
    Missing,
    Wrong,
}

/// Verifies that a record's MAC is its last member and right.
pub(super) fn check_mac(key: &MacKey, line: &[u8], head: &Head) -> Result<(), MacError> {
    let mac = head.mac.as_ref().ok_or(MacError::Missing)?;
    let record = line
        .len()
        .checked_sub(MAC_BEGIN.len() + HEX_LEN + MAC_END.len())
        .map(|end| line.split_at(end));
    let Some((record, tail)) = record else {
        return Err(MacError::Wrong);
    };
    let is_last = tail.starts_with(MAC_BEGIN)
        && tail.ends_with(MAC_END)
        && tail[MAC_BEGIN.len()..].starts_with(mac.as_bytes());
    match from_lower_hex(mac) {
        Some(mac) if is_last && key.verify(&[MAC_LABEL, record, b"}"], &mac) => Ok(()),
        _ => Err(MacError::Wrong),
    }
}

/// Returns whether a line is a record with a MAC by `key`.
pub(super) fn is_vouched(key: &MacKey, line: &[u8]) -> bool {
    serde_json::from_slice::<Head>(line).is_ok_and(|head| check_mac(key, line, &head).is_ok())
}

/// Returns the position of a record's line, or `None` if it isn't a record.
pub(super) fn position_of(line: &[u8]) -> Option<Position> {
    let head: Head = serde_json::from_slice(line).ok()?;
    Some(Position {
        log: head.log,
        link: Link {
            seq: head.seq,
            hash: fingerprint(line),
        },
    })
}
